"""Networks that a trace would change, or that need a workaround."""

import functools

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
pytest.importorskip("torchax", reason="needs the extra torch")
import timm  # noqa: E402

from rankckpt_jax.checkpoints import from_torch  # noqa: E402
from rankckpt_jax.checkpoints.backbone import split_head  # noqa: E402
from rankckpt_jax.checkpoints.torch_modules import convert, points, skeletons  # noqa: E402
from rankckpt_jax.checkpoints.torch_modules.spec import ModuleSpec  # noqa: E402
from tests.checkpoints.torch_modules import networks  # noqa: E402

pytestmark = pytest.mark.torch

# As small as each network allows, with the part that is special about it.
SPECIAL = {
    # Keeps computed tensors in `attention_bias_cache`.
    "levit_128s": dict(
        img_size=64,
        embed_dim=(16, 16, 16),
        key_dim=4,
        num_heads=(2, 2, 2),
        depth=(1, 1, 1),
    ),
    # Uses one module under several names.
    "coat_lite_tiny": dict(
        img_size=64,
        embed_dims=(8, 8, 8, 8),
        serial_depths=(2, 1, 1, 1),
    ),
    # Calls F.linear with `weight=`.
    "swinv2_tiny_window8_256": dict(
        img_size=32,
        window_size=4,
        depths=(2, 2),
        embed_dim=8,
        num_heads=(2, 2),
    ),
    # Indexes tables with integers that it makes in its forward pass.
    "samvit_base_patch16_224": dict(
        img_size=64,
        embed_dim=16,
        depth=2,
        num_heads=2,
        global_attn_indexes=(1,),
        neck_chans=8,
    ),
    # Calls F.fold, which pads by negative widths.
    "volo": dict(
        img_size=64,
        layers=(1, 1),
        embed_dims=(12, 24),
        num_heads=(2, 2),
        stem_hidden_dim=8,
    ),
}


def make(name, seed=0):
    torch.manual_seed(seed)
    arguments = {**SPECIAL[name], "num_classes": 5}
    build = functools.partial(timm.create_model, name)
    if name == "volo":
        build = timm.models.volo.VOLO
    module = networks.perturb(build(**arguments), seed)
    size = arguments["img_size"]
    return module.eval(), ModuleSpec("timm", name, tuple(arguments.items())), size


@pytest.mark.parametrize(
    "name",
    # The operations of the others have tests of their own.
    [
        n if n == "levit_128s" else pytest.param(n, marks=pytest.mark.slow)
        for n in SPECIAL
    ],
)
def test_network_serves_other_batches_and_weights(name):
    module, spec, size = make(name)
    other, _, _ = make(name, seed=1)
    backbones = [networks.to_backbone(m, spec, size) for m in (module, other)]
    apply = backbones[0].apply
    assert apply == backbones[1].apply
    forward = convert._features(apply)
    # The trace of another batch size reads what the first one left.
    for count in (2, 1):
        images = np.random.default_rng(1).uniform(size=(count, size, size, 3))
        images = images.astype(np.float32)
        for network, backbone in zip((module, other), backbones, strict=True):
            headless, _ = split_head(backbone.variables)
            with torch.no_grad():
                maps = network.forward_features(networks.normalize(images))
                features = network.forward_head(maps, pre_logits=True)
            expected = points.pool(features).numpy()
            computed = np.asarray(forward(headless, images))
            assert points.difference(computed, expected) <= points.TOLERANCE
    assert forward._cache_size() == 2
    skeleton = skeletons.get(apply.spec, apply.constants).module
    assert not list(tensors_of_jax(skeleton))


def tensors_of_jax(module):
    """Yield the tensors of torchax among the attributes of all submodules."""
    for part in module.modules():
        for container in skeletons._containers(vars(part)):
            values = container.values() if isinstance(container, dict) else container
            yield from (v for v in values if type(v).__module__.startswith("torchax"))


class Caching(torch.nn.Module):
    """Keeps tensors in its attributes, and uses one layer twice."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.again = self.layer
        self.cache, self.last, self.all = {}, None, []

    def forward(self, x):
        x = self.again(self.layer(x.mean((2, 3))))
        if "scale" not in self.cache:
            self.cache["scale"] = self.layer.weight.sum()
        self.last = x
        self.all.append([x])
        return x * self.cache["scale"]


def test_computed_tensors_are_not_kept():
    applies = set()
    for count in (1, 3):
        module = Caching().eval()
        backbone = from_torch(
            module, image_size=9, mean=(0, 0, 0), std=(1, 1, 1), name="net"
        )
        images = np.random.default_rng(0).uniform(size=(count, 9, 9, 3))
        images = images.astype(np.float32)
        computed = jax.jit(backbone.apply)(backbone.variables, images).features
        with torch.no_grad():
            expected = module(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
        assert points.difference(np.asarray(computed), expected) <= points.TOLERANCE
        applies.add(backbone.apply)
    [apply] = applies
    skeleton = skeletons.get(apply.spec, apply.constants).module
    assert not list(tensors_of_jax(skeleton))


def test_skeleton_of_shared_modules_shares_their_tensors():
    shared = torch.nn.Linear(3, 3)
    module = torch.nn.Sequential(shared, torch.nn.ReLU(), shared)
    skeleton = skeletons._strip(module)
    assert [name for name, _, _ in skeleton.locations] == ["0.weight", "0.bias"]
    tied = torch.nn.Linear(3, 3)
    tied.weight = shared.weight
    skeleton = skeletons._strip(torch.nn.Sequential(shared, tied))
    names = [name for name, _, _ in skeleton.locations]
    assert names == ["0.weight", "0.bias", "0.weight", "1.bias"]
