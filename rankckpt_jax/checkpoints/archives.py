"""Unpacks archives from elsewhere: plain files, and only where they belong."""

from __future__ import annotations

import gzip
import pathlib
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from rankckpt_jax import progress
from rankckpt_jax.errors import InputError

LIMIT = 64_000_000_000
"""Bytes that an archive may unpack to, unless said otherwise."""

_CHUNK = 1 << 20
_MAX_MEMBERS = 1_000_000
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,  # Of gzip; those of the disk carry a number.
    NotImplementedError,
)


class DamagedArchive(InputError):
    """The bytes are no archive, or not a whole one."""


def unpack(archive: pathlib.Path, directory: pathlib.Path, *, limit: int) -> None:
    """Unpacks a `.tar`, `.tar.gz`, `.tgz` or `.zip`.

    Args:
      archive: The file.
      directory: Appears, under its name, when everything is in it.
      limit: Bytes that the contents may have.

    Raises:
      DamagedArchive: It is none, or not a whole one. Nothing is left then.
      InputError: A member would stand outside, is a link or a device, or the contents
        are too large. Likewise.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with progress.bar(f"unpacking {archive.name}", 0, "file") as shown:
            _unpack_members(archive, partial, limit, shown)
        partial.replace(directory)
    except InputError:
        raise
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # The disk, not the archive.
        lines = str(error).strip().splitlines()
        raise DamagedArchive(
            "An archive cannot be unpacked",
            where=str(archive),
            expected="a whole .tar.gz or .zip",
            found=lines[0] if lines else type(error).__name__,
            mend="remove it and download it again",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack_members(
    archive: pathlib.Path, directory: pathlib.Path, limit: int, shown: Any
) -> None:
    directory.mkdir()
    root = directory.resolve()
    left = limit
    for count, (name, is_directory, source) in enumerate(_members(archive)):
        # By its text first, then by where it would stand.
        pure = pathlib.PurePosixPath(name.replace("\\", "/"))
        target = (root / pure).resolve()
        drive = re.match("[A-Za-z]:", str(pure))
        outside = pure.is_absolute() or ".." in pure.parts or drive
        if outside or not target.is_relative_to(root):
            raise _refused("A member would be written outside", archive, name)
        if count >= _MAX_MEMBERS:
            raise _refused(f"It has more than {_MAX_MEMBERS} members", archive, name)
        if is_directory:
            target.mkdir(parents=True, exist_ok=True)
            continue
        if target == root or target.exists():
            raise _refused("Two members have one name", archive, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        assert source is not None
        with source, target.open("wb") as out:
            while chunk := source.read(min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise _refused(
                        f"Its contents are larger than {limit / 1e9:g} GB",
                        archive,
                        name,
                    )
                out.write(chunk)
        shown.update(1)


def _members(
    archive: pathlib.Path,
) -> Iterator[tuple[str, bool, IO[bytes] | None]]:
    """(name, whether a directory, its bytes) of each; no links and no devices."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                # Archivers other than Unix's leave the kind out.
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _refused("A member is a link", archive, info.filename)
                directory = info.is_dir()
                yield info.filename, directory, None if directory else opened.open(info)
        return
    with archive.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    with gzip.open(archive) if compressed else archive.open("rb") as stream:
        with tarfile.open(fileobj=stream, mode="r:") as opened_tar:
            for member in opened_tar:
                if not (member.isreg() or member.isdir()):
                    what = "A member is a link or a device"
                    raise _refused(what, archive, member.name)
                source = None if member.isdir() else opened_tar.extractfile(member)
                yield member.name, member.isdir(), source
        # To the end, where gzip has its checksum: tar itself has none of the contents.
        while stream.read(_CHUNK):
            pass


def _refused(what: str, archive: pathlib.Path, member: str) -> InputError:
    return InputError(
        f"An archive was refused: {what[0].lower()}{what[1:]}",
        where=str(archive),
        found=member,
        mend="get it from its publisher; if it is meant to be like that, unpack it "
        "yourself",
    )
