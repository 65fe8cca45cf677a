"""Names of files, atomic writes and checksums."""

from __future__ import annotations

import contextlib
import contextvars
import fnmatch
import hashlib
import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping

from etils import epath

from rankckpt_jax.errors import StorageError

# Bytes; leaves room for the affixes of temporary files.
_MAX_NAME_BYTES = 120
# Names of files and directories that stand beside those of tasks and checkpoints.
_RESERVED = ("ranking.csv", "ranking.json", "report.html", "converted")

# Bytes of a file that are read at a time.
_CHUNK = 1 << 20

_writer: contextvars.ContextVar[str] = contextvars.ContextVar("writer", default="")

_log = logging.getLogger(__name__)


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

    `epath.Path.glob` would also read the directory's own name as a pattern, so that
    "runs[1]" would become "runs1". Hidden names match only a pattern with a dot.
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
    """Return the bytes of a file; log and return None if its SHA-256 differs."""
    if not path.exists():
        _log.warning("%s: file is missing; recomputing", path)
        return None
    data = path.read_bytes()
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
