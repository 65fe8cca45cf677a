"""Unpacks archives from elsewhere: plain files, and only where they belong.

What an archive says of itself is not believed: members are counted, bytes are counted
as they are written, and names are compared as the least careful file system would.
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
"""Bytes that an archive may unpack to, unless said otherwise."""

_CHUNK = 1 << 20
_MAX_MEMBERS = 1_000_000
# Of a name in bytes, and of the folders that it lies in; file systems take no more.
_MAX_NAME = 255
_MAX_PATH = 3000
_MAX_DEPTH = 100
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,  # Of gzip; those of the disk carry a number.
    NotImplementedError,
    RuntimeError,  # Of zipfile, where there is a password.
    ValueError,  # Of tarfile, where a number is none.
    OverflowError,
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
            fix="remove it and download it again",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack_members(
    archive: pathlib.Path, directory: pathlib.Path, limit: int, shown: Any
) -> None:
    directory.mkdir()
    root = directory.resolve()
    left = limit
    # What names a file, and what a folder, by the names' plainest form.
    files: set[str] = set()
    folders: set[str] = {""}
    for count, (name, is_directory, source) in enumerate(_members(archive)):
        if count >= _MAX_MEMBERS:
            raise _refused(f"It has more than {_MAX_MEMBERS} members", archive, name)
        target = _place(archive, root, name)
        parts = [_plain(part) for part in target.relative_to(root).parts]
        within = {"/".join(parts[:i]) for i in range(len(parts))}
        plain = "/".join(parts)
        if within & files or plain in files or (plain in folders and not is_directory):
            raise _refused("Two members have one name", archive, name)
        folders |= within
        if is_directory:
            folders.add(plain)
            target.mkdir(parents=True, exist_ok=True)
            continue
        files.add(plain)
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


def _place(archive: pathlib.Path, root: pathlib.Path, name: str) -> pathlib.Path:
    """Where a member belongs, by its name."""
    # By its text first, then by where it would stand.
    pure = pathlib.PurePosixPath(name.replace("\\", "/"))
    if "\0" in name or any(
        len(part.encode("utf-8", "surrogateescape")) > _MAX_NAME for part in pure.parts
    ):
        raise _refused("A member has a name that no file can have", archive, name)
    if len(pure.parts) > _MAX_DEPTH or len(str(pure)) > _MAX_PATH:
        raise _refused("A member lies too deep", archive, name)
    drive = re.match("[A-Za-z]:", str(pure))
    if pure.is_absolute() or ".." in pure.parts or drive:
        raise _refused("A member would be written outside", archive, name)
    target = (root / pure).resolve()
    if not target.is_relative_to(root):
        raise _refused("A member would be written outside", archive, name)
    return target


def _plain(name: str) -> str:
    """A name as file systems see it that fold case and compose letters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class _Careful:
    """A stream that a header cannot make read more into memory than any header has."""

    def __init__(self, stream: Any):
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """Reads `size` bytes."""
        if not 0 <= size <= 16 * _CHUNK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Goes to a place."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """The place at hand."""
        return self._stream.tell()


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
        careful: Any = _Careful(stream)
        with tarfile.open(fileobj=careful, mode="r:") as opened_tar:
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
        found=ascii(member[:200]) if not member.isprintable() else member[:200],
        fix="get it from its publisher; if it is meant to be like that, unpack it "
        "yourself",
    )
