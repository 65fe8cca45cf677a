"""Files of a store: names, atomic writes and checksums."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from etils import epath

from rankckpt_jax.errors import StorageError

# Bytes; room is left for what temporary files and claims add.
_LONGEST_NAME = 120
# What stands beside checkpoints, and beside tasks.
_RESERVED = ("ranking.csv", "report.html", "converted")

_log = logging.getLogger(__name__)


def directory_name(name: str, otherwise: str = "unnamed") -> str:
    """What a task or checkpoint of any name is called in the store.

    Letters and digits of any script and `._+=-` stay, other characters become `_`. The
    name leads nowhere, is not hidden, is none of the files that stand beside it, and is
    short enough for any file system; the end of a long one is told by its digest.

    Example:
      >>> [directory_name(n) for n in ("a/b c", "../../etc", "..", "report.html")]
      ['a_b_c', 'etc', 'unnamed', 'report.html_']

    Args:
      name: As the user or a file gave it.
      otherwise: For a name of which nothing is left.
    """
    text = unicodedata.normalize("NFC", name)
    kept = re.sub(r"[^\w.+=-]+", "_", text).strip("._-") or otherwise
    if len(kept.encode()) > _LONGEST_NAME:
        start = kept.encode()[: _LONGEST_NAME - 9].decode(errors="ignore")
        kept = f"{start}-{digest(name)[:8]}"
    return f"{kept}_" if kept.casefold() in _RESERVED else kept


def reason(error: Exception) -> str:
    """What a library says; of thousands of letters the beginning and the end."""
    line = (str(error).strip().splitlines() or [repr(error)])[0]
    # TensorStore, which writes states of training, ends with all of its settings.
    line = line.partition(" [tensorstore_spec=")[0]
    return line if len(line) < 400 else f"{line[:150]} ... {line[-250:]}"


@contextlib.contextmanager
def writing(path: epath.Path, *kinds: type[Exception]) -> Iterator[None]:
    """Turns what goes wrong in writing `path` into one `StorageError`.

    Args:
      path: A file or directory.
      kinds: Errors beside `OSError` by which a library says so.

    Raises:
      StorageError: It cannot be written.
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
            fix="make room, or name another directory with --config.workdir; started "
            "again, the run goes on where it was",
        ) from error


def write_bytes_atomically(path: epath.Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader sees the old file or the new one.

    The temporary name is derived from the final one, so that a write that was
    killed is overwritten by the next instead of being left behind.

    Raises:
      StorageError: It cannot be written; nothing is left of the attempt.
    """
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.partial"
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
    """Writes UTF-8 `text` as `write_bytes_atomically` does."""
    write_bytes_atomically(path, text.encode("utf-8"))


def digest(*parts: bytes | str) -> str:
    """Returns the SHA-256 of the parts, each length-prefixed, in hexadecimal."""
    sha = hashlib.sha256()
    for part in parts:
        data = (
            part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        )
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def digest_arrays(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of the arrays' shapes, types and values, in their order."""
    parts: list[bytes | str] = []
    for array in map(np.asarray, arrays):
        parts += [str((array.shape, array.dtype)), array.tobytes()]
    return digest(*parts)


def digest_files(directory: epath.Path) -> dict[str, str]:
    """SHA-256 of every file below `directory`, by its path relative to that."""
    found: dict[str, str] = {}
    for path in sorted(directory.iterdir(), key=str):
        if path.is_dir():
            below = digest_files(path)
            found |= {f"{path.name}/{name}": below[name] for name in below}
        else:
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def verify_checksums(directory: epath.Path, expected: Mapping[str, str]) -> bool:
    """Whether files are as `digest_files` found them; one that is not is logged."""
    for name, checksum in expected.items():
        path = directory / name
        if not path.exists():
            _log.warning("%s is missing: making it again", path)
            return False
        if hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            _log.warning("%s does not match its checksum: making it again", path)
            return False
    return True
