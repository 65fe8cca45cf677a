import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch")
timm = pytest.importorskip("timm", reason="needs the extra torch")

from rankckpt_jax import checkpoints  # noqa: E402
from rankckpt_jax.errors import InputError  # noqa: E402
from tests.checkpoints.sources.conftest import put, save_folder  # noqa: E402

pytestmark = pytest.mark.torch


def test_load_reads_the_files_in_the_cache(hub):
    module = timm.create_model("test_resnet", num_classes=4)
    place = save_folder(put(hub, "me/pets"), module)
    assert checkpoints.find("hf-hub:me/pets") == [("me_pets", "hf-hub:me/pets")]
    first = checkpoints.identify("hf-hub:me/pets")
    backbone = checkpoints.load("hf-hub:me/pets", torch_engine="torch")
    assert (backbone.architecture, backbone.num_source_classes) == ("test_resnet", 4)
    # The description counts too.
    text = (place / "config.json").read_text()
    (place / "config.json").write_text(f"{text}\n")
    assert checkpoints.identify("hf-hub:me/pets") not in ("", first)


def test_load_without_network_says_which_file_is_missing(hub):
    put(hub, "me/pets")
    assert checkpoints.identify("hf-hub:me/pets") == ""
    with pytest.raises(InputError, match="expected: config.json in") as raised:
        checkpoints.load("hf-hub:me/pets")
    assert f"{hub}/models--me--pets/snapshots/main/config.json" in str(raised.value)


@pytest.mark.parametrize("name", ["", "pets", "*", "me/pets/more", "../x"])
def test_find_refuses_what_is_no_repository(name):
    with pytest.raises(InputError, match="hf-hub:"):
        checkpoints.find(f"hf-hub:{name}")
