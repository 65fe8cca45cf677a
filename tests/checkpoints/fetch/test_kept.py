"""Directories for downloads that are shared, read-only, full, or absent."""

import contextlib
import errno
import os
import pathlib
import subprocess
import tempfile

import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.checkpoints.fetch import download, kept
from rankckpt_jax.errors import InputError, StorageError
from tests import test_faults
from tests.checkpoints.fetch import test_download
from tests.checkpoints.fetch.test_archives import DATA, make_tar

server = test_download.server


@pytest.fixture
def shared_directory():
    """A directory outside of pytest's, which other users may write."""
    if os.geteuid():
        pytest.skip("needs root, to act as two users")
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        place.chmod(0o777)
        yield place


@contextlib.contextmanager
def another_user():
    os.seteuid(12345)
    try:
        yield
    finally:
        os.seteuid(0)


def refused(match):
    """Expect the one error of a checkpoint, not a `StorageError`, which ends a run."""
    return pytest.raises(InputError, match=rf"(?s)kept in the directory.*{match}")


def test_fetch_and_unpack_read_from_a_read_only_directory(tmp_path):
    place = tmp_path / "disk"
    with test_faults.small_disk(place, "1m"):
        archive, copied = place / "net.tar.gz", place / "copied.h5"
        archive.write_bytes(make_tar({"a": b"1"}))
        copied.write_bytes(b"copied by the user")
        unpacked = download.unpack(archive, place / "net")
        for lock in place.glob(".*.lock"):
            lock.unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        urls = ["http://127.0.0.1:1/net.tar.gz"]
        assert download.fetch(urls, copied) == copied
        assert download.fetch(urls, archive) == archive
        assert download.unpack(archive, unpacked) == unpacked
        assert download.fetch_unpacked(urls, archive, unpacked) == unpacked
        with refused("Read-only file system"):
            download.fetch(urls, place / "other.h5")
        with refused("Read-only file system"):
            download.unpack(archive, place / "other")


def test_fetch_and_unpack_raise_one_error_on_a_full_disk(server, tmp_path):
    server.files = {"net.h5": DATA, "net.tar.gz": make_tar({"a": bytes(300_000)})}
    place = tmp_path / "disk"
    with test_faults.small_disk(place, "200k"):
        with refused("No space left") as error:
            download.fetch([server.url("net.h5")], place / "net.h5")
        assert not isinstance(error.value, StorageError)
        (place / ".net.h5.partial").unlink()
        paths = place / "net.tar.gz", place / "net"
        with refused("No space left"):
            download.fetch_unpacked([server.url("net.tar.gz")], *paths)
        assert not paths[1].exists()


def test_exclusive_is_shared_by_users(shared_directory):
    path = shared_directory / "net"
    with kept.exclusive(path):
        pass
    with another_user(), kept.exclusive(path):
        pass
    lock = shared_directory / ".old.lock"
    lock.touch(0o600)
    denied = refused("Permission denied")
    with another_user(), denied as error, kept.exclusive(shared_directory / "old"):
        pass
    assert str(lock) in str(error.value)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_exclusive_raises_without_file_locks(tmp_path, number, monkeypatch):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with refused(os.strerror(number)), kept.exclusive(tmp_path / "net"):
        pass


def test_storage_needs_a_home_directory_for_downloads_only(tmp_path, monkeypatch):
    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "RANKCKPT_DOWNLOADS", "TFHUB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "model.ckpt.index").touch()
    assert checkpoints.find(tmp_path, download.storage())
    with pytest.raises(InputError, match="no directory for downloads") as error:
        checkpoints.load("https://tfhub.dev/vtab/net/1")
    assert "--config.download.directory" in str(error.value)
    with pytest.raises(InputError, match="no home directory"):
        checkpoints.find("~/nets")
    monkeypatch.setenv("RANKCKPT_DOWNLOADS", str(tmp_path))
    assert download.storage().place("a") == tmp_path / "a"
