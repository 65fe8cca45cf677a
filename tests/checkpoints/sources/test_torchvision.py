import hashlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
torchvision = pytest.importorskip("torchvision", reason="needs the extra torch")

from rankckpt_jax import checkpoints  # noqa: E402
from rankckpt_jax.checkpoints.fetch import torch_cache  # noqa: E402
from rankckpt_jax.checkpoints.sources import torchvision as source  # noqa: E402
from rankckpt_jax.errors import InputError  # noqa: E402

pytestmark = pytest.mark.torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def create(name, **arguments):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, **arguments).eval()


def load(path, model, **options):
    """Load a file for PyTorch, which compiles nothing."""
    spec = f"{path}#model=torchvision:{model}"
    return checkpoints.load(spec, torch_engine="torch", **options)


def assert_same(backbone, module):
    size = backbone.image_size
    images = np.random.default_rng(0).uniform(size=(2, size, size, 3))
    images = images.astype(np.float32)
    with torch.no_grad():
        batch = torch.tensor((images - MEAN) / STD).float().permute(0, 3, 1, 2)
        expected = module(batch).numpy()
    logits = backbone.apply(backbone.variables, images).logits
    # JAX computes the classifier, whose sums have another order.
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_load_equals_torchvision(torch_home, monkeypatch):
    module = create("resnet18")
    file = torch_home / "resnet18-f37072fd.pth"
    torch.save(module.state_dict(), file)
    # The name promises the hash of the published file.
    monkeypatch.setattr(torch_cache, "_DIGEST", torch_cache.re.compile("-([0-9]{99})"))
    name = "resnet18.IMAGENET1K_V1"
    assert checkpoints.find("torchvision:resnet18") == [(name, f"torchvision:{name}")]
    assert checkpoints.identify(f"torchvision:{name}") != ""
    backbone = checkpoints.load(
        "torchvision:resnet18", image_size=64, torch_engine="torch"
    )
    assert backbone.name == name
    assert (backbone.image_size, backbone.own_image_size) == (64, 224)
    # For 256 and 224 pixels; timm's center is that of torchvision.
    assert backbone.own_preprocess == "own(73,bilinear,center)"
    assert_same(backbone, module)


def test_load_refuses_a_file_of_another_hash(torch_home):
    file = torch_home / "resnet18-f37072fd.pth"
    file.write_bytes(b"hello")
    found = hashlib.sha256(b"hello").hexdigest()
    with pytest.raises(InputError, match=f"begins with f37072fd\n  found: {found}"):
        checkpoints.load("torchvision:resnet18")


def test_load_without_network_says_where_to_put_the_file(torch_home, monkeypatch):
    monkeypatch.setattr(torch_cache.network, "reachable", lambda url: False)
    with pytest.raises(InputError, match="no connection") as raised:
        checkpoints.load("torchvision:resnet18")
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert f"download {url} and save it here as {torch_home}" in str(raised.value)
    assert checkpoints.identify("torchvision:resnet18") == ""


# Networks whose builders or weights differ from the others'.
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("googlenet", {"aux_logits": True, "transform_input": True}),
        ("densenet121", {}),
        ("mnasnet0_5", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_load_reads_a_classifier_of_any_width(tmp_path, name, arguments):
    module = create(name, num_classes=7, **arguments)
    weights = module.state_dict()
    if name == "densenet121":
        # As in the published file.
        weights = {
            key.replace("norm1", "norm.1").replace("conv2", "conv.2"): value
            for key, value in weights.items()
        }
    torch.save(weights, tmp_path / "net.pth")
    backbone = load(tmp_path / "net.pth", name, image_size=64)
    assert backbone.num_source_classes == 7
    assert_same(backbone, module)


def test_load_keeps_a_fixed_image_size(tmp_path, monkeypatch):
    # A small network in the place of vision transformers.
    monkeypatch.setattr(source, "_FIXED", ("resnet18",))
    torch.save(create("resnet18").state_dict(), tmp_path / "net.pth")
    backbone = load(tmp_path / "net.pth", "resnet18", preferred_image_size=96)
    assert backbone.image_size == 224
    assert "224 x 224 pixels only" in backbone.warnings["image_size"]
    with pytest.raises(InputError, match="remove #image_size=96"):
        load(tmp_path / "net.pth", "resnet18", image_size=96)


def test_names_expands_patterns():
    assert source.names("resnet5*") == (
        "resnet50.IMAGENET1K_V1",
        "resnet50.IMAGENET1K_V2",
    )
    assert source.names("resnet50") == ("resnet50.IMAGENET1K_V2",)
    assert source.names("*V2")[0].endswith("V2")
    with pytest.raises(InputError, match="did you mean 'resnet50.IMAGENET1K_V2'?"):
        source.names("resnet50.IMAGENET1K_V3")


@pytest.mark.parametrize(
    "name",
    [
        *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0"),
        *("efficientnet_v2_s", "maxvit_t", "mnasnet0_5", "mobilenet_v2"),
        *("mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"),
        *("swin_t", "swin_v2_t", "vgg11", "vit_b_32"),
    ],
)
def test_the_last_weight_of_a_network_is_its_classifier(name):
    with torch.device("meta"):
        weights = torchvision.models.get_model(name, num_classes=7).state_dict()
    assert [v.shape[0] for k, v in weights.items() if k.endswith(".weight")][-1] == 7
