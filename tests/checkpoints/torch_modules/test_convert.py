import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
pytest.importorskip("torchax", reason="needs the extra torch")

from rankckpt_jax import checkpoints  # noqa: E402
from rankckpt_jax.checkpoints.backbone import split_head  # noqa: E402
from rankckpt_jax.checkpoints.torch_modules import convert, points  # noqa: E402
from rankckpt_jax.errors import InputError  # noqa: E402
from tests.checkpoints.torch_modules import networks  # noqa: E402

pytestmark = pytest.mark.torch

# float32 sums in another order; the largest measured difference of 82 networks is 2e-5.
RELATIVE = 1e-4


def images(size, count=2, seed=1):
    random = np.random.default_rng(seed)
    return random.uniform(size=(count, size, size, 3)).astype(np.float32)


def reference(module, batch):
    with torch.no_grad():
        tensor = networks.normalize(batch)
        features = module.forward_head(module.forward_features(tensor), pre_logits=True)
        return features.numpy(), module(tensor).numpy()


def assert_close(values, expected):
    np.testing.assert_allclose(values, expected, atol=RELATIVE * np.abs(expected).max())


@pytest.mark.parametrize("engine", ["jax", "torch"])
@pytest.mark.parametrize("name", networks.SMALL)
def test_to_backbone_equals_pytorch(name, engine):
    module, spec, size = networks.make(name)
    batch = images(size)
    features, logits = reference(module, batch)
    backbone = networks.to_backbone(module, spec, size, engine)
    # Op by op, JAX would compile each operation.
    apply = backbone.apply if engine == "torch" else jax.jit(backbone.apply)
    output = apply(backbone.variables, batch)
    assert_close(output.features, features)
    assert_close(output.logits, logits)
    assert output.features.dtype == np.float32
    assert backbone.feature_dim == module.head_hidden_size == features.shape[1]
    assert backbone.num_source_classes == 5
    assert backbone.engine == engine
    classifier = sum(p.numel() for p in module.get_classifier().parameters())
    everything = sum(p.numel() for p in module.parameters())
    assert backbone.num_parameters == everything - classifier


def test_apply_of_another_checkpoint_is_traced_once():
    first, spec, size = networks.make("swin")
    second, other_spec, _ = networks.make("swin", seed=1, num_classes=7)
    one = networks.to_backbone(first, spec, size)
    two = networks.to_backbone(second, other_spec, size)
    assert one.apply == two.apply and hash(one.apply) == hash(two.apply)
    traces = []

    @jax.jit
    def forward(variables, batch):
        traces.append(len(batch))
        return one.apply(variables, batch).features

    for count in (2, 3):
        batch = images(size, count)
        for module, backbone in ((first, one), (second, two)):
            headless, _ = split_head(backbone.variables)
            assert_close(forward(headless, batch), reference(module, batch)[0])
    assert traces == [2, 3]


def test_apply_depends_on_constants():
    module, spec, size = networks.make("swin")
    one = networks.to_backbone(module, spec, size)
    for name, buffer in module.named_buffers():
        if name.endswith("relative_position_index"):
            buffer.copy_(buffer.flip(0))
    two = networks.to_backbone(module, spec, size)
    assert one.apply != two.apply


def test_variables_have_no_integers_and_only_running_statistics():
    module, spec, size = networks.make("resnet")
    variables = networks.to_backbone(module, spec, size).variables
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert {name.rpartition(".")[2] for name in variables["batch_stats"]} == {
        "running_mean",
        "running_var",
    }
    assert variables["params"]["logits"]["kernel"].shape == (16, 5)
    assert "fc.weight" not in variables["params"]


def test_to_backbone_keeps_one_copy_of_the_weights():
    module, spec, size = networks.make("resnet")
    params = networks.to_backbone(module, spec, size).variables["params"]
    weight = module.conv1[0].weight
    assert params["conv1.0.weight"].ctypes.data == weight.data_ptr()
    apply = networks.to_backbone(module, spec, size).apply
    skeleton = convert.skeletons.get(apply.spec, apply.constants).module
    assert all(tensor.is_meta for tensor in skeleton.parameters())


def test_to_backbone_refuses_what_jax_computes_otherwise(monkeypatch):
    module, spec, size = networks.make("resnet")
    features = convert._features

    def changed(apply):
        return lambda *args: features(apply)(*args) * 1.001

    monkeypatch.setattr(convert, "_features", changed)
    with pytest.raises(InputError, match="torch_engine=torch"):
        networks.to_backbone(module, spec, size)
    networks.to_backbone(module, spec, size, engine="torch")


def test_to_backbone_refuses_another_image_size():
    module, spec, _ = networks.make("vit")
    with pytest.raises(InputError, match="images of 48 x 48 pixels"):
        networks.to_backbone(module, spec, 48)


def test_to_backbone_refuses_weights_that_are_not_finite():
    module, spec, size = networks.make("resnet")
    with torch.no_grad():
        module.conv1[0].weight[0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        networks.to_backbone(module, spec, size)


class Perceptron(torch.nn.Module):
    """A network without timm's methods."""

    def __init__(self, head):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3, stride=2), torch.nn.BatchNorm2d(6), torch.nn.GELU()
        )
        self.neck = torch.nn.Linear(6, 4)
        self.head = head

    def forward(self, x):
        return self.head(self.neck(self.body(x).mean((2, 3))))


def from_torch(module, **options):
    settings = dict(
        image_size=9, mean=networks.MEAN, std=networks.STD, name="mine", **options
    )
    return checkpoints.from_torch(networks.perturb(module), **settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"std": (0.2, 0.0, 0.2)}, "scaling of the pixels"),
        ({"mean": (0.5,)}, "scaling of the pixels"),
        ({"image_size": 4}, "Images of 4 x 4 pixels"),
    ],
)
def test_from_torch_refuses_settings_of_images(changed, message):
    module = Perceptron(torch.nn.Linear(4, 3)).eval()
    settings = dict(image_size=9, mean=networks.MEAN, std=networks.STD, name="mine")
    with pytest.raises(InputError, match=message):
        checkpoints.from_torch(module, **{**settings, **changed})


def test_from_torch_takes_the_input_of_the_last_linear_layer():
    module = Perceptron(torch.nn.Linear(4, 3)).eval()
    backbone = from_torch(module)
    batch = images(9)
    output = backbone.apply(backbone.variables, batch)
    with torch.no_grad():
        tensor = networks.normalize(batch)
        assert_close(output.logits, module(tensor).numpy())
        features = module.neck(module.body(tensor).mean((2, 3)))
        assert_close(output.features, features.numpy())
    assert (backbone.name, backbone.feature_tensor) == ("mine", "input of head")


class TwoLayerHead(torch.nn.Module):
    """A network like torchvision's VGG, whose features are inside its classifier."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 6, 3)
        self.classifier = torch.nn.Sequential(
            torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)
        )

    def forward(self, x):
        return self.classifier(self.body(x).mean((2, 3)))


def test_from_torch_keeps_the_part_of_a_classifier_before_its_last_layer():
    backbone = from_torch(TwoLayerHead().eval())
    params = backbone.variables["params"]
    assert "classifier.0.weight" in params and "classifier.2.weight" not in params
    assert (backbone.feature_dim, backbone.num_source_classes) == (4, 3)


@pytest.mark.parametrize("norm", [True, False])
def test_to_backbone_takes_a_classifier_behind_a_norm(norm):
    """As in timm's EfficientViT, which returns only the linear layer of its head."""

    class Head(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(width) if norm else torch.nn.Identity()
            self.linear = torch.nn.Linear(width, 5)

        def forward(self, x):
            return self.linear(self.norm(x))

    module, spec, size = networks.make("resnet")
    module.fc = networks.perturb(Head(module.num_features)).eval()
    module.get_classifier = lambda: module.fc.linear
    backbone = networks.to_backbone(module, spec, size, "torch")
    batch = images(size)
    output = backbone.apply(backbone.variables, batch)
    assert_close(output.logits, reference(module, batch)[1])
    assert not backbone.warnings


def test_from_torch_takes_a_named_layer():
    module = Perceptron(torch.nn.Linear(4, 3)).eval()
    backbone = from_torch(module, features="body")
    batch = images(9)
    output = backbone.apply(backbone.variables, batch)
    with torch.no_grad():
        body = module.body(networks.normalize(batch))
        assert_close(output.features, body.mean((2, 3)).numpy())
    assert output.logits is None
    with pytest.raises(InputError, match="did you mean 'body'"):
        from_torch(module, features="bodi")


def test_from_torch_takes_the_output_of_a_network_without_classifier():
    module = Perceptron(torch.nn.Tanh()).eval()
    backbone = from_torch(module)
    assert (backbone.feature_dim, backbone.num_source_classes) == (4, 0)


def test_from_torch_copies_the_module_and_shares_programs():
    module = Perceptron(torch.nn.Linear(4, 3)).eval()
    backbone = from_torch(module)
    before = backbone.apply(backbone.variables, images(9)).features
    with torch.no_grad():
        module.neck.weight += 1
    np.testing.assert_array_equal(
        before, backbone.apply(backbone.variables, images(9)).features
    )
    other = from_torch(module)
    assert other.apply == backbone.apply
    assert other.fingerprint != backbone.fingerprint
    module.body[1].eps = 1.0
    assert from_torch(module).apply != backbone.apply


def test_from_torch_refuses_other_objects():
    with pytest.raises(InputError, match="Not a PyTorch module"):
        from_torch_of_a_list = dict(image_size=9, mean=(0,), std=(1,), name="list")
        checkpoints.from_torch([], **from_torch_of_a_list)
    with pytest.raises(InputError, match="did you mean 'torch'"):
        from_torch(Perceptron(torch.nn.Tanh()), engine="tork")


class Timm(Perceptron):
    """A network with timm's methods."""

    def forward_features(self, x):
        return self.body(x)

    def forward_head(self, x, pre_logits=False):
        x = self.neck(x.mean((2, 3)))
        return x if pre_logits else self.head(x)

    def get_classifier(self):
        return self.head


def test_split_evaluates_a_classifier_of_several_layers():
    # LeViT's.
    head = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    module = Timm(head).eval()
    backbone = from_torch(module)
    batch = images(9)
    output = backbone.apply(backbone.variables, batch)
    with torch.no_grad():
        assert_close(output.logits, module(networks.normalize(batch)).numpy())
    assert not [name for name in backbone.variables["params"] if "head" in name]
    assert not backbone.warnings


def test_split_omits_a_classifier_that_is_not_linear():
    head = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(dim=-1))
    backbone = from_torch(Timm(head).eval())
    output = backbone.apply(backbone.variables, images(9))
    assert output.logits is None and backbone.num_source_classes == 0
    assert "not a linear layer" in backbone.warnings["logits"]


def test_apply_in_bfloat16_is_close_to_float32():
    module, spec, size = networks.make("resnet")
    backbone = networks.to_backbone(module, spec, size)
    batch = images(size)
    low = dataclasses.replace(backbone.apply, dtype="bfloat16")
    output, expected = (
        jax.jit(apply)(backbone.variables, batch) for apply in (low, backbone.apply)
    )
    assert output.features.dtype == np.float32
    # bfloat16 has eight bits of precision, and this network a dozen layers.
    difference = points.difference(*map(np.asarray, (output[0], expected[0])))
    assert 1e-5 < difference < 0.05
