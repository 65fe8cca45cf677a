"""Names of files, atomic writes and checksums."""

from __future__ import annotations

import contextlib
import contextvars
import fnmatch
import hashlib
import logging
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterator, Mapping

from etils import epath
from etils.epath import gpath

from rankckpt_jax.errors import InputError, StorageError

# Bytes; leaves room for the affixes of temporary files.
_MAX_NAME_BYTES = 120
# Names of files and directories that stand beside those of tasks and checkpoints.
_RESERVED = (
    *("ranking.csv", "ranking.json", "report.html"),
    *("converted", "model", "tensorboard"),
)

# Bytes of a file that are read at a time.
_CHUNK = 1 << 20

_writer: contextvars.ContextVar[str] = contextvars.ContextVar("writer", default="")

WILDCARD = re.compile(r"[*?\[]")
"""Matches a character that makes a path a pattern, unless the path exists."""

_log = logging.getLogger(__name__)


def to_path(text: epath.PathLike) -> epath.Path:
    """Return the path of a local file or directory, or of one in a bucket.

    Raises:
      InputError: It has another scheme than gs://, or starts with "~" and there is no
        home directory.
    """
    text = os.fspath(text)
    scheme, separator, _ = text.partition("://")
    if separator and scheme != "gs" and "/" not in scheme:
        raise InputError(
            f"Paths of the scheme {scheme}:// cannot be read or written",
            where=text,
            expected="a local path or gs://BUCKET/PATH; for checkpoints also "
            "https://HOST/FILE",
            found=f"{scheme}://",
            fix="leave out file://"
            if scheme == "file"
            else "mount or copy it, and name the local path",
        )
    place = epath.Path(text).expanduser()
    if place.parts[:1] == ("~",):
        raise InputError(
            "There is no home directory",
            where=text,
            expected="the variable HOME, or an entry of this user in /etc/passwd",
            found=f"neither, for user id {os.getuid()}",
            fix="set HOME, or give a path without ~",
        )
    return place


def is_on_bucket(path: epath.PathLike) -> bool:
    """Return whether a path is in a bucket, which has neither locks nor renames."""
    return os.fspath(path).startswith("gs://")


def size_and_time(path: epath.Path) -> tuple[int, float]:
    """Return the size of a file in bytes, and when it was changed.

    `epath.Path.stat` also looks up the owner's name, and fails in a container whose
    user has none.

    Raises:
      OSError: It does not exist.
    """
    if is_on_bucket(path):
        facts = path.stat()
        return facts.length, facts.mtime
    status = os.stat(path)
    return status.st_size, status.st_mtime


def display(path: epath.Path) -> str:
    """Return a path for people: relative to the current directory if it is below it."""
    if not is_on_bucket(path):
        # The current directory can have been removed.
        with contextlib.suppress(OSError, ValueError):
            absolute = pathlib.Path(os.path.abspath(path))
            return os.fspath(absolute.relative_to(os.getcwd()))
    return os.fspath(path)


class _LiteralPath(gpath.PosixGPath):
    """A path that `glob` does not read as a pattern."""

    def glob(self, pattern: str) -> Iterator[epath.Path]:
        return iter(matching(self, pattern))


def literal(path: epath.Path) -> epath.Path:
    """Return an absolute path for libraries that call its `glob`.

    `epath.Path.glob` reads the directory's own name as a pattern too. Orbax therefore
    finds none of the files that it has just written below "runs[1]".
    """
    return _LiteralPath(path.resolve())


def expand(pattern: epath.Path) -> tuple[epath.Path, list[epath.Path]]:
    """Return the paths that match a pattern.

    A part of the pattern that exists is meant literally, even if it has brackets. `**`
    stands for any number of directories.

    Returns:
      (the directory above the first wildcard, the existing paths, sorted).
    """
    chain = [*reversed(pattern.parents), pattern]
    root, names = pattern, []
    for parent, place in zip(chain, chain[1:], strict=False):
        if WILDCARD.search(place.name) and not place.exists():
            root, names = parent, list(pattern.relative_to(parent).parts)
            break
    paths = [root]
    for name in names:
        paths = [match for path in paths for match in _expand(path, name)]
    return root, sorted({path for path in paths if path.exists()}, key=str)


def _expand(directory: epath.Path, name: str) -> list[epath.Path]:
    if name == "**":
        below = [path for path in matching(directory, "*") if path.is_dir()]
        return [directory, *(match for path in below for match in _expand(path, name))]
    place = directory / name
    if not WILDCARD.search(name) or place.exists():
        return [place]
    return matching(directory, name)


def directory_name(name: str, default: str = "unnamed") -> str:
    """Return the directory name of a task or checkpoint.

    Letters and digits of any script and `._+=-` are kept, other characters become `_`.
    The result has no path separators, is not hidden, is not a reserved name, and is
    short enough for any file system: a long name ends with a digest.

    Example:
      >>> [directory_name(n) for n in ("a/b c", "../../etc", "..", "report.html")]
      ['a_b_c', 'etc', 'unnamed', 'report.html_']

    Args:
      name: Any text.
      default: The result for a name without any allowed character.
    """
    text = unicodedata.normalize("NFC", name)
    cleaned = re.sub(r"[^\w.+=-]+", "_", text).strip("._-") or default
    if len(cleaned.encode()) > _MAX_NAME_BYTES:
        start = cleaned.encode()[: _MAX_NAME_BYTES - 9].decode(errors="ignore")
        cleaned = f"{start}-{digest(name)[:8]}"
    return f"{cleaned}_" if cleaned.casefold() in _RESERVED else cleaned


def reason(error: Exception) -> str:
    """Return the first line of an error message, shortened in the middle."""
    line = (str(error).strip().splitlines() or [repr(error)])[0]
    # TensorStore, which Orbax writes with, appends all of its settings.
    line = line.partition(" [tensorstore_spec=")[0]
    return line if len(line) < 400 else f"{line[:150]} ... {line[-250:]}"


@contextlib.contextmanager
def writing(path: epath.Path, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of writing `path` into a `StorageError`.

    Args:
      path: A file or directory.
      kinds: Errors other than `OSError` that a library raises for a failed write.

    Raises:
      StorageError: The path cannot be written.
    """
    caught: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except StorageError:
        raise
    except caught as error:
        raise StorageError(
            "A result cannot be written",
            where=str(path),
            found=getattr(error, "strerror", None) or reason(error),
            fix="free disk space or choose another directory with --config.workdir, "
            "then run again; the run resumes",
        ) from error


@contextlib.contextmanager
def writer(name: str) -> Iterator[None]:
    """Add a name to temporary files, for shards that write the same reports.

    Args:
      name: Unique among the runs that may write at the same time.
    """
    token = _writer.set(name)
    try:
        yield
    finally:
        _writer.reset(token)


def write_bytes_atomically(path: epath.Path, data: bytes) -> None:
    """Write `data` so that a reader sees either the old file or the new one.

    The name of the temporary file is derived from `path` and `writer`, so the next
    write replaces the leftover of a killed one.

    Raises:
      StorageError: The file cannot be written; the temporary file is removed.
    """
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}{_writer.get()}.partial"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_text_atomically(path: epath.Path, text: str) -> None:
    """Write UTF-8 `text` as `write_bytes_atomically` does."""
    write_bytes_atomically(path, text.encode("utf-8"))


def digest(*parts: bytes | str) -> str:
    """Return the SHA-256 of the parts, each prefixed by its length, in hexadecimal."""
    sha = hashlib.sha256()
    for part in parts:
        data = (
            part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        )
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def digest_file(path: epath.PathLike) -> str:
    """Return the SHA-256 of the bytes of a file, in hexadecimal."""
    sha = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def matching(directory: epath.Path, pattern: str) -> list[epath.Path]:
    """Return the paths in a directory whose names match a pattern, sorted.

    `epath.Path.glob` would also read the directory's own name as a pattern. Hidden
    names match only a pattern with a dot.
    """
    if not directory.is_dir():
        return []
    hidden = pattern.startswith(".")
    return sorted(
        (
            path
            for path in directory.iterdir()
            if path.name.startswith(".") == hidden
            and fnmatch.fnmatchcase(path.name, pattern)
        ),
        key=str,
    )


def digest_files(directory: epath.Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `directory`, by its relative path."""
    digests: dict[str, str] = {}
    for path in sorted(directory.iterdir(), key=str):
        if path.is_dir():
            below = digest_files(path)
            digests |= {f"{path.name}/{name}": below[name] for name in below}
        else:
            digests[path.name] = digest_file(path)
    return digests


def read_verified(path: epath.Path, checksum: str) -> bytes | None:
    """Return the bytes of a file; log and return None if they cannot be used."""
    if not path.exists():
        _log.warning("%s: file is missing; recomputing", path)
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        _log.warning("%s: unreadable (%s); recomputing", path, reason(error))
        return None
    if hashlib.sha256(data).hexdigest() != checksum:
        _log.warning("%s: checksum does not match; recomputing", path)
        return None
    return data


def verify_checksums(directory: epath.Path, expected: Mapping[str, str]) -> bool:
    """Return whether files match the result of `digest_files`; log a mismatch."""
    return all(
        read_verified(directory / name, checksum) is not None
        for name, checksum in expected.items()
    )
