"""A run's directory: every result beside a manifest of what made it.

    workdir/TASK/CHECKPOINT/features/SPLIT/   manifest.json and one .npy per array
    workdir/TASK/CHECKPOINT/scores/MEASURE.json
    workdir/TASK/CHECKPOINT/finetune/         result.json; see `finetune.grid`
    workdir/TASK/ranking.csv, report.html

Each result carries its *request*: the inputs that decide its value. A result is
reused when its stored request equals the one at hand and its checksums hold;
otherwise it is made again and the log says which field differed. Files are written
under a temporary name and renamed, and a manifest is written after the arrays it
describes, so a killed run leaves either a whole result or none. Every path is an
`epath.Path`, so a local directory and a `gs://` bucket behave alike.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

MANIFEST = "manifest.json"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the store returned.

    Attributes:
      arrays: The stored arrays by name; empty for a JSON result.
      result: What the producer recorded beside its request: a JSON-able mapping.
    """

    arrays: Mapping[str, np.ndarray]
    result: Mapping[str, Any]


def write_bytes_atomically(path: epath.Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader sees the old file or the new one.

    The temporary name is derived from the final one, so that a write that was
    killed is overwritten by the next instead of being left behind.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.partial"
    temporary.write_bytes(data)
    temporary.replace(path)


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


def save(
    directory: epath.Path,
    request: Mapping[str, Any],
    result: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Stores arrays under `directory`, and last their manifest.

    Args:
      directory: Where; made if it is not there. The old manifest goes first, so
        that no moment shows new arrays under an old manifest.
      request: JSON-able inputs that decide the arrays' values.
      result: JSON-able facts about them (seconds, counts).
      arrays: Arrays of any shape and a plain dtype; written as `.npy`, no pickle.
    """
    directory = epath.Path(directory)
    (directory / MANIFEST).unlink(missing_ok=True)
    described = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        data = buffer.getvalue()
        write_bytes_atomically(directory / f"{name}.npy", data)
        described[name] = {
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    _write_json(
        directory / MANIFEST,
        {"request": dict(request), "result": dict(result), "arrays": described},
    )


def load(directory: epath.Path, request: Mapping[str, Any]) -> Entry | None:
    """Returns what `save` stored for this request, or None where it must be made.

    A difference in the request, a missing or damaged file: each is logged by name.
    """
    directory = epath.Path(directory)
    manifest = _read_matching(directory / MANIFEST, request)
    return None if manifest is None else _read_arrays(directory, manifest)


def read(directory: epath.Path) -> tuple[Mapping[str, Any], Entry] | None:
    """Returns (the request, what `save` stored), whatever the request was.

    None where there is nothing whole; a missing or damaged file is logged by name.
    """
    directory = epath.Path(directory)
    manifest = _read_json(directory / MANIFEST)
    entry = None if manifest is None else _read_arrays(directory, manifest)
    return None if manifest is None or entry is None else (manifest["request"], entry)


def _read_arrays(directory: epath.Path, manifest: Mapping[str, Any]) -> Entry | None:
    arrays = {}
    for name, described in manifest["arrays"].items():
        path = directory / f"{name}.npy"
        if not path.exists():
            _log.warning("%s is missing: making it again", path)
            return None
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != described["sha256"]:
            _log.warning("%s does not match its checksum: making it again", path)
            return None
        arrays[name] = np.load(io.BytesIO(data), allow_pickle=False)
    return Entry(arrays, manifest["result"])


def checksum(directory: epath.Path) -> str | None:
    """Returns one digest of the arrays stored in `directory`; None if there are none.

    Reads the manifest only: this is the identity that later stages record, not a
    check of the files, which `load` makes.
    """
    manifest = _read_json(epath.Path(directory) / MANIFEST)
    if manifest is None:
        return None
    arrays = sorted((k, v["sha256"]) for k, v in manifest["arrays"].items())
    return digest(json.dumps(arrays))


def save_result(
    path: epath.Path, request: Mapping[str, Any], result: Mapping[str, Any]
) -> None:
    """Stores a JSON result and its request in one file."""
    _write_json(path, {"request": dict(request), "result": dict(result)})


def load_result(path: epath.Path, request: Mapping[str, Any]) -> Entry | None:
    """Returns the stored result for this request, or None where it must be made."""
    stored = _read_matching(epath.Path(path), request)
    return None if stored is None else Entry({}, stored["result"])


def _write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=1, sort_keys=True)
    body = {"checksum": digest(text)}
    write_text_atomically(path, json.dumps({**value, **body}, indent=1, sort_keys=True))


def _read_json(path: epath.Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_bytes())
        expected = value.pop("checksum")
    except (ValueError, KeyError, AttributeError):
        _log.warning("%s cannot be read: making it again", path)
        return None
    if digest(json.dumps(value, indent=1, sort_keys=True)) != expected:
        _log.warning("%s does not match its checksum: making it again", path)
        return None
    return value


def _read_matching(
    path: epath.Path, request: Mapping[str, Any]
) -> dict[str, Any] | None:
    stored = _read_json(path)
    if stored is None:
        return None
    # Through JSON, so that a tuple and the list it was stored as compare equal.
    wanted = json.loads(json.dumps(dict(request)))
    differing = sorted(
        key
        for key in wanted.keys() | stored["request"].keys()
        if wanted.get(key) != stored["request"].get(key)
    )
    if differing:
        changes = "; ".join(
            f"{key} was {stored['request'].get(key)!r}, is {wanted.get(key)!r}"
            for key in differing
        )
        _log.info(
            "%s is of another request (%s): making it again", path.parent, changes
        )
        return None
    return stored
