import pytest

huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs the extra torch")
constants = pytest.importorskip("huggingface_hub.constants")
errors = pytest.importorskip("huggingface_hub.errors")

from rankckpt_jax.checkpoints.fetch import hub_cache  # noqa: E402
from rankckpt_jax.errors import InputError  # noqa: E402

pytestmark = pytest.mark.torch

FILES = ("model.safetensors", "pytorch_model.bin")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one file, and an empty cache."""
    (tmp_path / "pytorch_model.bin").write_text("weights")
    asked = []

    def download(repository, name, revision):
        asked.append((repository, name, revision))
        if repository != "me/net":
            raise OSError("401 Client Error.\nRepository Not Found")
        if not (tmp_path / name).exists():
            raise errors.EntryNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub_cache.network, "reachable", lambda url: True)
    return asked


def test_get_downloads_the_first_file_that_exists(hub, tmp_path):
    assert hub_cache.get("me/net@v1", FILES) == tmp_path / "pytorch_model.bin"
    assert hub == [("me/net", name, "v1") for name in FILES]


@pytest.mark.parametrize(
    ("repository", "files", "found"),
    [
        ("me/net", ("model.safetensors",), "none of model.safetensors in the repo"),
        ("me/other", FILES, "401 Client Error."),
    ],
)
def test_get_says_why_nothing_was_downloaded(hub, repository, files, found):
    with pytest.raises(InputError, match=f"found: {found}"):
        hub_cache.get(repository, files)


def test_get_does_not_try_without_connection(hub, monkeypatch):
    monkeypatch.setattr(hub_cache.network, "reachable", lambda url: False)
    with pytest.raises(InputError, match="no connection to https://"):
        hub_cache.get("me/net", FILES)
    assert hub == []


def test_digest_takes_the_name_of_a_file_in_the_cache(tmp_path):
    """It is the SHA-256 of large files, which need not be read again."""
    blob = tmp_path / "blobs" / ("0123456789abcdef" * 4)
    blob.parent.mkdir()
    blob.write_text("weights")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert hub_cache.digest(link) == blob.name
    link.unlink()
    link.write_text("weights")
    first = hub_cache.digest(link)
    link.write_text("other weights")
    assert len(first) == 64 and hub_cache.digest(link) != first
