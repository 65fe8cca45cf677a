"""Locks, errors and digests of the directories for downloads."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Iterator

import filelock
from etils import epath

from rankckpt_jax.errors import InputError, StorageError
from rankckpt_jax.storage import files


@contextlib.contextmanager
def exclusive(path: pathlib.Path) -> Iterator[None]:
    """Let one process of this machine at a time create a path in the downloads.

    Raises:
      InputError: The directory cannot be written, is full or has no file locks.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Users who share the directory share its locks.
        with filelock.FileLock(path.with_name(f".{path.name}.lock"), mode=0o666):
            yield


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turn errors of the downloads into an `InputError`.

    It fails one checkpoint. A `StorageError` would end the run.
    """
    try:
        yield
    # A file system without locks raises OSError or, by filelock, NotImplementedError.
    except (OSError, StorageError, NotImplementedError) as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        place = getattr(cause, "filename", None) or path
        raise InputError(
            "A file cannot be kept in the directory for downloads",
            where=str(place),
            expected="a directory that this user may write, with free space and locks",
            found=getattr(cause, "strerror", None) or files.reason(error),
            fix="free space, or choose another directory with "
            "--config.download.directory or RANKCKPT_DOWNLOADS",
        ) from error


def digest(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file, read once while its size and time stay the same."""
    return _digest(path, *files.size_and_time(epath.Path(path)))


@functools.lru_cache(maxsize=256)
def _digest(path: pathlib.Path, size: int, changed: float) -> str:
    return files.digest_file(path)
