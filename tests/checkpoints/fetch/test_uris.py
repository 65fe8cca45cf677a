import hashlib
import os
import tarfile

import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.checkpoints.fetch import download, uris
from rankckpt_jax.checkpoints.sources import hub
from rankckpt_jax.errors import InputError
from tests.checkpoints.fetch import test_download
from tests.storage import conftest as storage_fixtures

server = test_download.server
bucket = storage_fixtures.bucket


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
            neucrab.ARCHIVE,
            ("http://b/c",),
            ["http://b/c/rank_ckpt.zip", neucrab.ARCHIVE],
        ),
    ],
)
def test_addresses(handle, mirrors, expected):
    assert uris.addresses(handle, mirrors) == expected


def test_resolve_downloads_and_unpacks_a_handle_once(server, tmp_path):
    module = _module(tmp_path / "module")
    archive = _archive(tmp_path / "1.tar.gz", module)
    server.files["mirror/vtab/net/1.tar.gz"] = archive.read_bytes()
    storage = download.Storage(
        tmp_path / "cache", mirrors=(server.url("mirror/{path}.tar.gz"),)
    )
    for handle in ("https://tfhub.dev/vtab/net/1", "tfhub.dev/vtab/net/1"):
        place = uris.resolve(handle, storage)
        assert (place / "saved_model.pb").exists()
    assert len(server.requests) == 1
    found = checkpoints.find("https://tfhub.dev/vtab/net/1", storage)
    assert found == [("vtab_net", "https://tfhub.dev/vtab/net/1")]


def test_resolve_uses_the_cache_of_tensorflow_hub(tmp_path):
    handle = "https://tfhub.dev/vtab/net/1"
    cached = tmp_path / "hub" / hashlib.sha1(handle.encode()).hexdigest()
    _module(cached)
    storage = download.Storage(tmp_path / "cache", hub_cache=tmp_path / "hub")
    assert os.fspath(uris.resolve(handle, storage)) == os.fspath(cached)


def test_resolve_without_a_network_explains_where_to_put_the_file(
    tmp_path, storage, monkeypatch
):
    monkeypatch.setattr(
        uris, "addresses", lambda handle, mirrors: ["http://127.0.0.1:9/vtab/net/1"]
    )
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    with pytest.raises(InputError) as raised:
        uris.resolve("https://tfhub.dev/vtab/net/1", storage)
    target = storage.directory / "tfhub.dev" / "vtab" / "net" / "1.tar.gz"
    message = f"download http://127.0.0.1:9/vtab/net/1 and copy it to {target}"
    assert message in str(raised.value)
    _archive(target, _module(tmp_path / "module"))
    place = uris.resolve("https://tfhub.dev/vtab/net/1", storage)
    assert (place / "saved_model.pb").exists()


def test_find_and_resolve_paths_in_an_archive(tmp_path, storage):
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
    resolved = uris.resolve(inner, storage)
    assert resolved.with_name("model.ckpt-3.index").exists()


def test_find_modules_below_a_folder(tmp_path):
    _module(tmp_path / "pool" / "vtab" / "net")
    (tmp_path / "pool" / "own.keras").touch()
    (tmp_path / "pool" / "rest.tar.gz").touch()
    names = [name for name, _ in checkpoints.find(tmp_path / "pool")]
    assert names == ["own", "vtab_net"]
    assert [name for name, _ in checkpoints.find(tmp_path / "pool/vtab/net")] == ["net"]


def test_load_takes_options_after_a_handle(tmp_path, storage, monkeypatch):
    module = _module(tmp_path / "m")
    seen = []

    def load(path, options):
        seen.append(options)
        raise InputError("the end of the test")

    monkeypatch.setattr(hub, "load", load)
    spec = f"{module}#output=two&input_range=-1:1&image_size=64"
    assert checkpoints.find(spec, storage) == [("m", spec)]
    with pytest.raises(InputError, match="the end of the test"):
        checkpoints.load(spec, storage=storage)
    (options,) = seen
    assert (options.output, options.input_range) == ("two", (-1.0, 1.0))
    assert options.image_size == 64
    with pytest.raises(InputError, match="input_range=LOW:HIGH"):
        checkpoints.load(f"{module}#input_range=1", storage=storage)


def test_load_hub_refuses_other_files(tmp_path):
    with pytest.raises(InputError, match="Not a TF-Hub module"):
        checkpoints.load_hub(tmp_path)


def test_resolve_copies_from_a_bucket_once_per_version(
    bucket, tmp_path, storage, monkeypatch
):
    run = bucket / "runs" / "net_128"
    run.mkdir(parents=True)
    for name in ("model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001"):
        (run / name).write_text(name)
    (run / "model.ckpt-10.index").touch()
    _archive(bucket / "nets.tar.gz", _module(tmp_path / "module"))
    specs = [
        f"gs://bucket/{path}"
        for path in ("runs/net_128/model.ckpt-1", "runs/net_128", "nets.tar.gz")
    ]
    prefix, directory, unpacked = (uris.resolve(spec, storage) for spec in specs)
    assert {path.name for path in prefix.parent.glob("model*")} == {
        *("model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001")
    }
    assert prefix.parent.name == "net_128"
    assert len(list(directory.iterdir())) == 3
    assert (unpacked / "saved_model.pb").exists()
    identities = [checkpoints.identify(spec) for spec in specs]
    with monkeypatch.context() as patched:
        patched.setattr(uris, "_copy", lambda *paths: pytest.fail("copied"))
        again = [uris.resolve(spec, storage) for spec in specs]
    assert again == [prefix, directory, unpacked]
    # The same names and sizes, written later.
    for name in ("model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001"):
        (run / name).write_text(name.upper())
        os.utime(run / name, (2e9, 2e9))
    os.utime(bucket / "nets.tar.gz", (2e9, 2e9))
    for spec, identity in zip(specs, identities, strict=True):
        assert checkpoints.identify(spec) != identity
    prefix, directory = (uris.resolve(spec, storage) for spec in specs[:2])
    for folder in (prefix.parent, directory):
        assert (folder / "model.ckpt-1.index").read_text() == "MODEL.CKPT-1.INDEX"
    assert uris.resolve(specs[2], storage) != unpacked
    for spec in ("gs://bucket/absent", "gs://bucket/absent/model.ckpt"):
        with pytest.raises(InputError, match="no such file"):
            uris.resolve(spec, storage)
        assert checkpoints.identify(spec) == ""
