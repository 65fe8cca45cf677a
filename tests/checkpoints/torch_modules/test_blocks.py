import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
torchvision = pytest.importorskip("torchvision", reason="needs the extra torch")

from rankckpt_jax.checkpoints.torch_modules import blocks, points  # noqa: E402
from tests.checkpoints.torch_modules import networks  # noqa: E402

pytestmark = pytest.mark.torch

# float32 sums in another order.
RELATIVE = 1e-5


def images(size):
    random = np.random.default_rng(1)
    return random.uniform(size=(2, size, size, 3)).astype(np.float32)


def apply(backbone, batch):
    forward = dataclasses.replace(backbone.apply, with_blocks=True)
    forward = forward if backbone.engine == "torch" else jax.jit(forward)
    return forward(backbone.variables, batch)


def assert_close(values, expected):
    atol = RELATIVE * np.abs(expected).max()
    np.testing.assert_allclose(values, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "engine"),
    [("resnet", "torch"), ("swin", "torch"), ("vit", "torch"), ("vit", "jax")],
)
def test_blocks_equal_forward_intermediates_of_timm(name, engine):
    module, spec, size = networks.make(name)
    batch = images(size)
    count = 2 if name in ("vit", "swin") else 3
    with torch.no_grad():
        tensor = networks.normalize(batch)
        _, maps = module.forward_intermediates(tensor, indices=count)
        plain = module.forward_head(module.forward_features(tensor), pre_logits=True)
    backbone = networks.to_backbone(module, spec, size, engine, with_blocks=True)
    output = apply(backbone, batch)
    assert len(output.blocks) == len(backbone.apply.block_names) == count
    for block, expected in zip(output.blocks, maps, strict=True):
        assert_close(block, expected.mean((2, 3)).numpy())
    assert_close(output.features, plain.numpy())
    if name == "resnet":
        # No layer lies between the last stage and the features.
        assert backbone.apply.block_names == ("layer2", "layer3", "layer4")
        assert_close(output.blocks[-1], output.features)


class Stages(torch.nn.Module):
    """Three stages, of which a later layer changes the second in place."""

    def __init__(self, channels_last=False):
        super().__init__()
        self.stages = torch.nn.Sequential(
            *(torch.nn.Conv2d(w, v, 3, 2, 1) for w, v in ((3, 4), (4, 5), (5, 6)))
        )
        self.head = torch.nn.Linear(6, 4)

    def forward(self, x):
        x = self.stages[0](x)
        x = self.stages[1](x)
        x = self.stages[2](x.relu_())
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("engine", ["jax", "torch"])
def test_blocks_of_other_networks_end_resolutions(engine):
    torch.manual_seed(0)
    module, batch = Stages().eval(), images(24)
    with torch.no_grad():
        x = networks.normalize(batch)
        expected = []
        for i, stage in enumerate(module.stages):
            x = stage(x.relu() if i == 2 else x)
            expected.append(x.mean((2, 3)).numpy())
    from rankckpt_jax.checkpoints import from_torch

    backbone = from_torch(
        module,
        image_size=24,
        mean=networks.MEAN,
        std=networks.STD,
        name="stages",
        engine=engine,
    )
    assert backbone.apply.block_names == ("stages.0", "stages.1", "stages.2")
    for block, value in zip(apply(backbone, batch).blocks, expected, strict=True):
        assert_close(block, value)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (torchvision.models.resnet18, ("layer2", "layer3", "layer4")),
        (
            lambda: torchvision.models.VisionTransformer(32, 8, 4, 2, 8, 16),
            tuple(f"encoder.layers.encoder_layer_{i}" for i in (1, 2, 3)),
        ),
        (
            lambda: torchvision.models.SwinTransformer(
                [2, 2], 8, [1, 1, 1], [1, 1, 2], [2, 2]
            ),
            ("features.1", "features.3", "permute"),
        ),
        # One resolution, and no sequence of blocks.
        (lambda: torch.nn.Conv2d(3, 4, 3), ()),
    ],
)
def test_find_by_resolution_or_sequence(make, names):
    module = make().eval()
    size = 64 if make is torchvision.models.resnet18 else 32
    tensor = torch.zeros(2, 3, size, size)
    with torch.no_grad():
        assert blocks.find(module, points.Point("output"), tensor) == names


def test_blocks_that_cannot_be_computed_leave_the_features(monkeypatch):
    module, spec, size = networks.make("resnet")

    def fail(*args, **options):
        raise NotImplementedError("no intermediates")

    monkeypatch.setattr(type(module), "forward_intermediates", fail)
    backbone = networks.to_backbone(module, spec, size, "torch", with_blocks=True)
    assert backbone.apply.block_names == ()
    assert backbone.feature_dim == 16
