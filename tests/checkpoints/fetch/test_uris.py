import hashlib
import os
import tarfile

import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints.fetch import download
from rankckpt_jax.checkpoints.fetch import uris as handles
from rankckpt_jax.errors import InputError
from tests.checkpoints import modules
from tests.checkpoints.fetch import test_download

server = test_download.server


@pytest.fixture
def storage(tmp_path):
    return download.Storage(tmp_path / "cache")


def _module(folder):
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"")
    return folder


def _archive(path, folder):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname=".")
    return path


@pytest.mark.parametrize(
    ("handle", "mirrors", "expected"),
    [
        (
            "https://tfhub.dev/vtab/sup-100/1",
            (),
            [
                "https://storage.googleapis.com/vtab/sup-100/1.tar.gz",
                "https://tfhub.dev/vtab/sup-100/1?tf-hub-format=compressed",
            ],
        ),
        (
            "https://tfhub.dev/google/net/3",
            ("http://a/{path}.tgz", "http://b/c/"),
            [
                "http://a/google/net/3.tgz",
                "http://b/c/google/net/3.tar.gz",
                "https://storage.googleapis.com/tfhub-modules/google/net/3.tar.gz",
                "https://tfhub.dev/google/net/3?tf-hub-format=compressed",
            ],
        ),
        (
            download.RANK_CKPT,
            ("http://b/c",),
            ["http://b/c/rank_ckpt.zip", download.RANK_CKPT],
        ),
    ],
)
def test_addresses_of_a_handle(handle, mirrors, expected):
    assert handles.addresses(handle, mirrors) == expected


def test_a_handle_is_fetched_unpacked_and_kept(server, tmp_path):
    module = _module(tmp_path / "module")
    archive = _archive(tmp_path / "1.tar.gz", module)
    server.files["mirror/vtab/net/1.tar.gz"] = archive.read_bytes()
    storage = download.Storage(
        tmp_path / "cache", mirrors=(server.url("mirror/{path}.tar.gz"),)
    )
    for handle in ("https://tfhub.dev/vtab/net/1", "tfhub.dev/vtab/net/1"):
        place = handles.resolve(handle, storage)
        assert (place / "saved_model.pb").exists()
    assert len(server.requests) == 1
    found = checkpoints.find("https://tfhub.dev/vtab/net/1", storage)
    assert found == [("vtab_net", "https://tfhub.dev/vtab/net/1")]


def test_tensorflow_hubs_cache_is_used(tmp_path):
    handle = "https://tfhub.dev/vtab/net/1"
    cached = tmp_path / "hub" / hashlib.sha1(handle.encode()).hexdigest()
    _module(cached)
    storage = download.Storage(tmp_path / "cache", hub_cache=tmp_path / "hub")
    assert os.fspath(handles.resolve(handle, storage)) == os.fspath(cached)


def test_without_a_network_a_handle_says_what_to_put_where(
    tmp_path, storage, monkeypatch
):
    monkeypatch.setattr(
        handles, "addresses", lambda handle, mirrors: ["http://127.0.0.1:9/vtab/net/1"]
    )
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    with pytest.raises(InputError) as raised:
        handles.resolve("https://tfhub.dev/vtab/net/1", storage)
    target = storage.directory / "tfhub.dev" / "vtab" / "net" / "1.tar.gz"
    assert str(target) in str(raised.value)
    _archive(target, _module(tmp_path / "module"))
    place = handles.resolve("https://tfhub.dev/vtab/net/1", storage)
    assert (place / "saved_model.pb").exists()


def test_pools_in_archives(tmp_path, storage):
    pool = tmp_path / "files" / "rank_ckpt"
    for run in ("inat", "places"):
        (pool / run).mkdir(parents=True)
        (pool / run / "model.ckpt-3.index").touch()
    archive = _archive(tmp_path / "pool.tar.gz", tmp_path / "files")
    listed = checkpoints.find(archive, storage)
    assert [name for name, _ in listed] == ["inat-3", "places-3"]
    listed = checkpoints.find(f"{archive}!/rank_ckpt/in*", storage)
    assert [name for name, _ in listed] == ["inat-3"]
    inner = f"{archive}!/rank_ckpt/inat/model.ckpt-3"
    assert checkpoints.find(inner, storage) == [("rank_ckpt_inat-3", inner)]
    resolved = handles.resolve(inner, storage)
    assert resolved.with_name("model.ckpt-3.index").exists()


def test_modules_below_a_folder_are_found(tmp_path):
    _module(tmp_path / "pool" / "vtab" / "net")
    (tmp_path / "pool" / "own.keras").touch()
    (tmp_path / "pool" / "rest.tar.gz").touch()
    names = [name for name, _ in checkpoints.find(tmp_path / "pool")]
    assert names == ["own.keras", "vtab_net"]
    assert [name for name, _ in checkpoints.find(tmp_path / "pool/vtab/net")] == ["net"]


def test_options_after_a_handle(tmp_path, storage):
    module = tmp_path / "m"
    signatures = {"default": {"one": "pooled", "two": "map"}}
    modules.export_tf1(module, modules.small, 24, signatures=signatures)
    (listed,) = checkpoints.find(f"{module}#output=two&input_range=-1:1", storage)
    assert listed[0] == "m"
    backbone = checkpoints.load(listed[1], storage=storage)
    assert backbone.input_range == (-1.0, 1.0)
    assert (
        backbone.fingerprint == checkpoints.load_hub(module, output="two").fingerprint
    )
    with pytest.raises(InputError, match="input_range=LOW:HIGH"):
        checkpoints.load(f"{module}#input_range=1", storage=storage)


def test_what_is_no_module_is_refused(tmp_path):
    with pytest.raises(InputError, match="Not a TF-Hub module"):
        checkpoints.load_hub(tmp_path)
