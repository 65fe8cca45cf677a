"""Unpack untrusted archives: regular files only, and only inside the target directory.

Sizes and names in an archive are not trusted. Members and bytes are counted while they
are written, and names are compared as a case-insensitive file system would.
"""

from __future__ import annotations

import gzip
import pathlib
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from rankckpt_jax.devices import progress
from rankckpt_jax.errors import InputError

LIMIT = 64_000_000_000
"""Default limit of an archive's contents in bytes."""

_CHUNK = 1 << 20
_MAX_MEMBERS = 1_000_000
# In bytes; common file systems allow no longer names.
_MAX_NAME = 255
_MAX_PATH = 3000
_MAX_DEPTH = 100
# What the readers of archives raise for damaged data.
_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,  # gzip raises it without an errno.
    NotImplementedError,
    RuntimeError,  # For a zip with a password.
    ValueError,
    OverflowError,
)


class DamagedArchive(InputError):
    """The file is not an archive, or is incomplete."""


def unpack(archive: pathlib.Path, directory: pathlib.Path, *, limit: int) -> None:
    """Unpack a `.tar`, `.tar.gz`, `.tgz` or `.zip`.

    Args:
      archive: The file.
      directory: The target. It appears once it is complete, and not at all after an
        error.
      limit: Largest size of the contents in bytes.

    Raises:
      DamagedArchive: The file is not an archive, or is incomplete.
      InputError: A member lies outside the directory or is a link or device, or the
        contents are too large.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with progress.bar(f"unpacking {archive.name}", 0, "file") as bar:
            _unpack_members(archive, partial, limit, bar)
        partial.replace(directory)
    except InputError:
        raise
    except _ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # An error of the disk.
        lines = str(error).strip().splitlines()
        raise DamagedArchive(
            "An archive cannot be unpacked",
            where=str(archive),
            expected="an intact .tar.gz or .zip",
            found=lines[0] if lines else type(error).__name__,
            fix="remove it and download it again",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack_members(
    archive: pathlib.Path, directory: pathlib.Path, limit: int, bar: Any
) -> None:
    directory.mkdir()
    root = directory.resolve()
    left = limit
    # Normalized paths of the files and folders so far.
    files: set[str] = set()
    folders: set[str] = {""}
    for count, (name, is_directory, source) in enumerate(_members(archive)):
        if count >= _MAX_MEMBERS:
            raise _refusal(f"It has more than {_MAX_MEMBERS} members", archive, name)
        target = _target(archive, root, name)
        parts = [_normalize(part) for part in target.relative_to(root).parts]
        parents = {"/".join(parts[:i]) for i in range(len(parts))}
        path = "/".join(parts)
        if parents & files or path in files or (path in folders and not is_directory):
            raise _refusal("Two members have one name", archive, name)
        folders |= parents
        if is_directory:
            folders.add(path)
            target.mkdir(parents=True, exist_ok=True)
            continue
        files.add(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        assert source is not None
        with source, target.open("wb") as out:
            while chunk := source.read(min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    size = f"{limit / 1e9:g} GB"
                    message = f"Its contents are larger than {size}"
                    raise _refusal(message, archive, name)
                out.write(chunk)
        bar.update(1)


def _target(archive: pathlib.Path, root: pathlib.Path, name: str) -> pathlib.Path:
    """Return the path that a member is written to."""
    pure = pathlib.PurePosixPath(name.replace("\\", "/"))
    if "\0" in name or any(
        len(part.encode("utf-8", "surrogateescape")) > _MAX_NAME for part in pure.parts
    ):
        raise _refusal("A member has an invalid file name", archive, name)
    if len(pure.parts) > _MAX_DEPTH or len(str(pure)) > _MAX_PATH:
        raise _refusal("A member is nested too deeply", archive, name)
    drive = re.match("[A-Za-z]:", str(pure))
    target = (root / pure).resolve()
    # Checked by name and by location.
    if (
        pure.is_absolute()
        or ".." in pure.parts
        or drive
        or not target.is_relative_to(root)
    ):
        raise _refusal("A member lies outside the directory", archive, name)
    return target


def _normalize(name: str) -> str:
    """Return a name as a file system that folds case and composes letters sees it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class _BoundedReads:
    """A stream that refuses large reads, which only a forged tar header causes."""

    def __init__(self, stream: Any):
        self._stream = stream
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes."""
        if not 0 <= size <= 16 * _CHUNK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)


def _members(archive: pathlib.Path) -> Iterator[tuple[str, bool, IO[bytes] | None]]:
    """Yield (name, whether it is a directory, its bytes) of each member."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                # Archivers on other systems than Unix leave the kind empty.
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _refusal("A member is a link", archive, info.filename)
                directory = info.is_dir()
                yield info.filename, directory, None if directory else opened.open(info)
        return
    with archive.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    with gzip.open(archive) if compressed else archive.open("rb") as stream:
        bounded: Any = _BoundedReads(stream)
        with tarfile.open(fileobj=bounded, mode="r:") as opened_tar:
            for member in opened_tar:
                if not (member.isreg() or member.isdir()):
                    message = "A member is a link or a device"
                    raise _refusal(message, archive, member.name)
                source = None if member.isdir() else opened_tar.extractfile(member)
                yield member.name, member.isdir(), source
        # gzip's checksum, at the end, is the only one of the contents.
        while stream.read(_CHUNK):
            pass


def _refusal(message: str, archive: pathlib.Path, member: str) -> InputError:
    return InputError(
        f"An archive was refused: {message[0].lower()}{message[1:]}",
        where=str(archive),
        found=ascii(member[:200]) if not member.isprintable() else member[:200],
        fix="get the archive from its publisher; if you trust it, unpack it yourself",
    )
