import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
timm = pytest.importorskip("timm", reason="needs the extra torch")

import safetensors.torch  # noqa: E402

from rankckpt_jax import checkpoints  # noqa: E402
from rankckpt_jax.checkpoints import sources  # noqa: E402
from rankckpt_jax.errors import InputError  # noqa: E402
from tests.checkpoints.sources.conftest import put  # noqa: E402

pytestmark = pytest.mark.torch

NAME = "timm:test_resnet.r160_in1k"
# PyTorch computes both, but JAX the classifier, whose sums have another order.
RELATIVE = 1e-5


@pytest.fixture
def network(hub):
    """The network of NAME in the cache."""
    torch.manual_seed(0)
    module = timm.create_model("test_resnet").eval()
    place = put(hub, "timm/test_resnet.r160_in1k")
    safetensors.torch.save_file(module.state_dict(), place / "model.safetensors")
    return module


def test_load_equals_timm(network):
    backbone = checkpoints.load("timm:test_resnet#image_size=64", torch_engine="torch")
    assert backbone.name == "test_resnet.r160_in1k"
    assert (backbone.image_size, backbone.own_image_size) == (64, 160)
    images = np.random.default_rng(0).uniform(size=(2, 64, 64, 3)).astype(np.float32)
    mean, std = (network.pretrained_cfg[key] for key in ("mean", "std"))
    with torch.no_grad():
        batch = torch.tensor((images - mean) / std).float().permute(0, 3, 1, 2)
        expected = network(batch).numpy()
    assert backbone.own_preprocess == "own(67,bilinear,center)"
    logits = backbone.apply(backbone.variables, images).logits
    np.testing.assert_allclose(logits, expected, atol=RELATIVE * np.abs(expected).max())


def test_identify_changes_with_the_file(network, hub):
    first = checkpoints.identify(NAME)
    assert first == checkpoints.identify("timm:test_resnet") != ""
    (file,) = hub.rglob("*.safetensors")
    network.fc.bias.data += 1
    safetensors.torch.save_file(network.state_dict(), file)
    assert checkpoints.identify(NAME) not in (first, "")


def test_identify_is_empty_before_the_download(hub):
    assert checkpoints.identify(NAME) == ""


def test_load_without_network_says_where_to_put_the_file(hub):
    with pytest.raises(InputError) as raised:
        checkpoints.load(NAME)
    message = str(raised.value)
    assert "HF_HUB_OFFLINE is set" in message
    place = hub / "models--timm--test_resnet.r160_in1k"
    for text in (
        "https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/",
        f"{place}/snapshots/main/model.safetensors",
        f"{place}/refs/main",
    ):
        assert text in message


def test_load_refuses_the_weights_of_another_network(network, hub):
    (file,) = hub.rglob("*.safetensors")
    safetensors.torch.save_file({"a.weight": torch.ones(1)}, file)
    with pytest.raises(InputError, match=r"92 missing .* 1 unexpected \(a\.weight\)"):
        checkpoints.load(NAME)


@pytest.mark.parametrize(
    ("pattern", "specs"),
    [
        ("timm:convnext_atto", ["timm:convnext_atto.d2_in1k"]),
        (
            "timm:convnext_att*",
            ["timm:convnext_atto.d2_in1k", "timm:convnext_atto_ols.a2_in1k"],
        ),
        # Renamed by timm.
        ("timm:tf_efficientnet_b0_ns", ["timm:tf_efficientnet_b0.ns_jft_in1k"]),
        (
            "timm:test_vit#image_size=96",
            ["timm:test_vit.r160_in1k#image_size=96"],
        ),
    ],
)
def test_find_expands_names(pattern, specs):
    found = checkpoints.find(pattern)
    assert [spec for _, spec in found] == specs
    assert [spec.partition("#")[0] for spec in specs] == [f"timm:{n}" for n, _ in found]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet5o", "did you mean 'resnet50'?"),
        ("resnet50.a1_in1", "did you mean 'resnet50.a1_in1k'?"),
        ("convnext_zzz_*", "No name matches"),
        # timm has no weights for it.
        ("botnet50ts_256", "did you mean 'halo2botnet50ts_256'?"),
    ],
)
def test_find_suggests_the_nearest_name(name, nearest):
    with pytest.raises(InputError) as raised:
        checkpoints.find(f"timm:{name}")
    assert nearest in str(raised.value)


def test_names_lists_all_networks_with_weights():
    names = sources.schemes()["timm"].names()
    assert len(names) > 1000
    assert "resnet50.a1_in1k" in names
