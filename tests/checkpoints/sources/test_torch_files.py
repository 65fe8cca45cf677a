import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
timm = pytest.importorskip("timm", reason="needs the extra torch")

import safetensors.torch  # noqa: E402

from rankckpt_jax import checkpoints  # noqa: E402
from rankckpt_jax.errors import InputError  # noqa: E402
from tests.checkpoints.sources.conftest import save_folder  # noqa: E402

pytestmark = pytest.mark.torch


def create(name="test_resnet", **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, **arguments).eval()


def load(path, model="", preferred_image_size=32, **options):
    """Load a file for PyTorch, which compiles nothing, and for small images."""
    spec = f"{path}#model={model}" if model else path
    options["preferred_image_size"] = preferred_image_size
    return checkpoints.load(spec, torch_engine="torch", **options)


def logits(backbone, images):
    return np.asarray(backbone.apply(backbone.variables, images).logits)


def expected_logits(module, images):
    mean, std = (module.pretrained_cfg[key] for key in ("mean", "std"))
    with torch.no_grad():
        batch = torch.tensor((images - mean) / std).float().permute(0, 3, 1, 2)
        return module(batch).numpy()


def assert_same(backbone, module):
    size = backbone.image_size
    images = np.random.default_rng(0).uniform(size=(2, size, size, 3))
    images = images.astype(np.float32)
    expected = expected_logits(module, images)
    # PyTorch computes both, but JAX the classifier, whose sums have another order.
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(logits(backbone, images), expected, atol=atol)


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("net.pth", lambda weights: {"state_dict": weights, "epoch": 3}),
        ("net.pth.tar", lambda weights: {"model": weights}),
        ("net.bin", lambda weights: {f"module.{k}": v for k, v in weights.items()}),
        (
            "net.ckpt",
            lambda weights: {
                "state_dict": {f"model.{k}": v for k, v in weights.items()}
                | {"loss.weight": torch.ones(2)},
                "hyper_parameters": {"lr": 0.1},
            },
        ),
    ],
)
def test_load_reads_a_classifier_of_any_width(tmp_path, name, wrap):
    module = create(num_classes=7)
    torch.save(wrap(module.state_dict()), tmp_path / name)
    backbone = load(tmp_path / name, "test_resnet")
    assert (backbone.num_source_classes, backbone.own_image_size) == (7, 160)
    assert_same(backbone, module)


def test_load_reads_weights_without_a_classifier(tmp_path):
    weights = {f"backbone.{k}": v for k, v in create().state_dict().items()}
    kept = {k: v for k, v in weights.items() if not k.startswith("backbone.fc.")}
    torch.save(kept | {"head.weight": torch.ones(1)}, tmp_path / "net.pth")
    backbone = load(tmp_path / "net.pth", "test_resnet")
    assert backbone.num_source_classes == 0
    assert backbone.feature_dim == 96


def test_load_converts_the_names_of_other_programs(tmp_path):
    """As PyTorch Image Models does, here those of the authors of ConvNeXt."""
    module = create("test_convnext", num_classes=5)
    renamed = {}
    for name, value in module.state_dict().items():
        stage = name.split(".")[1]
        name = name.replace("stem.", "downsample_layers.0.")
        name = name.replace(f"stages.{stage}.downsample", f"downsample_layers.{stage}")
        name = name.replace("blocks.", "").replace("conv_dw", "dwconv")
        name = name.replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        name = name.replace("head.norm", "norm").replace("head.fc", "head")
        renamed[name] = value
    torch.save({"model": renamed}, tmp_path / "net.pth")
    assert_same(load(tmp_path / "net.pth", "test_convnext"), module)


def test_fingerprint_counts_the_network_and_the_weights(tmp_path):
    """Networks of equal weights can differ, such as in their padding."""
    path, name = tmp_path / "net.safetensors", "mobilenetv3_small_075"
    safetensors.torch.save_file(create(name).state_dict(), path)
    first = load(path, name, image_size=32)
    assert load(path, f"tf_{name}", image_size=32).fingerprint != first.fingerprint


def test_load_takes_the_preprocessing_of_a_tag(tmp_path):
    torch.save(create().state_dict(), tmp_path / "net.pt")
    model = "test_resnet.r160_in1k&input_range=0:255"
    backbone = load(tmp_path / "net.pt", model)
    assert backbone.own_image_size == 160
    assert backbone.input_range == (0, 255)


def test_load_lists_names_of_another_architecture(tmp_path):
    torch.save(create().state_dict(), tmp_path / "net.pth")
    with pytest.raises(InputError, match="not those of test_vit") as raised:
        load(tmp_path / "net.pth", "test_vit")
    assert "80 missing (cls_token, pos_embed, " in str(raised.value)
    assert "92 unexpected (conv1.0.weight, " in str(raised.value)


def test_load_refuses_incomplete_weights(tmp_path):
    """Without a complaint, timm would leave the missing ones of a DLA random."""
    weights = create("dla46x_c").state_dict()
    del weights["level0.0.weight"]
    torch.save(weights, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"1 missing \(level0\.0\.weight\)"):
        load(tmp_path / "net.pth", "dla46x_c")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("test_resnett", "did you mean 'test_resnet'?"),
        ("test_resnet.r16_in1k", "did you mean 'test_resnet.r160_in1k'?"),
        ("torchvision:resnet19", "did you mean 'resnet18'?"),
        ("flax:resnet", "Networks of 'flax' cannot be built"),
    ],
)
def test_load_suggests_the_nearest_network(tmp_path, model, message):
    torch.save({"a": torch.ones(1)}, tmp_path / "net.pth")
    with pytest.raises(InputError) as raised:
        checkpoints.load(f"{tmp_path}/net.pth#model={model}")
    assert message in str(raised.value)


def test_load_asks_for_the_network_of_a_file(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "net.pth")
    with pytest.raises(InputError, match="net.pth#model=resnet50"):
        checkpoints.load(tmp_path / "net.pth")


def test_load_reads_a_folder_of_the_hub(tmp_path):
    module = create("test_vit", num_classes=3, img_size=64)
    folder = save_folder(tmp_path / "vit", module, model_args={"img_size": [64, 64]})
    assert checkpoints.find(tmp_path) == [("vit", str(folder))]
    backbone = load(folder, preferred_image_size=0)
    assert (backbone.image_size, backbone.own_image_size) == (64, 64)
    assert_same(backbone, module)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth"])
def test_load_reads_other_weights_of_a_folder(tmp_path, name):
    module = create(num_classes=3)
    folder = save_folder(tmp_path / "net", module)
    (folder / "model.safetensors").unlink()
    torch.save(module.state_dict(), folder / name)
    assert_same(load(folder), module)


def test_load_keeps_or_resizes_a_fixed_image_size(tmp_path):
    """Position embeddings are resized only on request for this checkpoint."""
    module = create("vit_tiny_patch16_224", num_classes=2)
    folder = save_folder(tmp_path / "vit", module)
    kept = load(folder, preferred_image_size=96)
    assert kept.image_size == 224
    assert "#image_size=96" in kept.warnings["image_size"]
    resized = load(folder, image_size=96)
    assert (resized.image_size, resized.own_image_size) == (96, 224)
    expected = timm.create_model(
        f"local-dir:{folder}", pretrained=True, img_size=96
    ).eval()
    assert_same(resized, expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not JSON"),
        ("[]", '"architecture": a name of timm'),
        (
            json.dumps({"architectures": ["ViTForImageClassification"]}),
            "ViTForImageClassification of the library transformers",
        ),
        (json.dumps({"architecture": "test_resnett"}), "did you mean 'test_resnet'?"),
        (
            json.dumps({"architecture": "test_resnet", "model_args": {"colour": 1}}),
            "timm cannot build the network",
        ),
    ],
)
def test_load_names_what_is_wrong_with_a_folder(tmp_path, config, message):
    folder = save_folder(tmp_path / "net", create())
    (folder / "config.json").write_text(config)
    with pytest.raises(InputError) as raised:
        load(folder)
    assert message in str(raised.value)
    assert str(folder) in str(raised.value)


def test_load_refuses_gray_images(tmp_path):
    module = create(in_chans=1)
    cfg = {**module.pretrained_cfg, "input_size": (1, 160, 160)}
    folder = save_folder(tmp_path / "net", module, pretrained_cfg=cfg)
    with pytest.raises(InputError, match="found: 1"):
        load(folder)


def test_options_reach_the_backbone(tmp_path):
    torch.save(create().state_dict(), tmp_path / "net.pth")
    backbone = load(tmp_path / "net.pth", "test_resnet&output=layer3")
    assert backbone.feature_tensor == "output of layer3"
