"""A run's directory: every result beside a manifest of what made it.

    workdir/TASK/CHECKPOINT/features/SPLIT/   manifest.json and one .npy per array
    workdir/TASK/CHECKPOINT/scores/MEASURE.json
    workdir/TASK/CHECKPOINT/finetune/         result.json; see `finetune.grid`
    workdir/TASK/ranking.csv, report.html

Each result carries its *request*: the inputs that decide its value. A result is
reused when its stored request equals the one at hand and its checksums hold;
otherwise it is made again and the log says which field differed. Files are written
under a temporary name and renamed, and a manifest is written after the arrays it
describes, so a killed run leaves either a whole result or none. A disk that takes no
more ends the run with one `StorageError` that names the file. Every path is an
`epath.Path`, so a local directory and a `gs://` bucket behave alike.

Several processes use one store, which all of them see. What is in it is decided by
process 0 for all; process 0 alone writes results and manifests; arrays whose rows are
divided among the processes are written as one file for each process. `save`, `load`,
`save_result` and `load_result` are called by all processes, in the same order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.devices import processes
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files

MANIFEST = "manifest.json"

_OWN_NAME = re.compile(r"(?P<machine>[0-9a-f]{12})-(?P<pid>\d+)-[0-9a-f]{32}")
# After so long a file meant for a moment is taken for left behind, whoever made it.
_SECONDS_OF_A_LEFTOVER = 600.0
# Bytes; room is left for what temporary files and claims add.
_LONGEST_NAME = 120
# What stands beside checkpoints, and beside tasks.
_RESERVED = ("ranking.csv", "report.html", "converted")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the store returned.

    Attributes:
      arrays: The stored arrays by name; empty for a JSON result.
      result: What the producer recorded beside its request: a JSON-able mapping.
      checksum: Identity of the arrays, which later stages record; empty without any.
    """

    arrays: Mapping[str, np.ndarray]
    result: Mapping[str, Any]
    checksum: str = ""


def check(directory: epath.Path) -> None:
    """Refuses a directory that cannot be written, or that not all processes see.

    Raises:
      InputError: It is such.
    """
    directory = epath.Path(directory)
    probe = directory / f".probe-{processes.broadcast_from_main(process_token())}"

    def write() -> None:
        if not processes.is_main_process():
            return
        try:
            directory.mkdir(parents=True, exist_ok=True)
            remove_stale(directory)
            # Not empty: a full disk takes a name and no content.
            probe.write_text("written to see whether it can be")
        except OSError as error:
            raise InputError(
                "The work directory cannot be written",
                where=str(directory),
                expected="a directory that this user may write, with room left",
                found=error.strerror or str(error),
                fix="name another with --config.workdir",
            ) from error

    processes.sync_errors(write)
    seen = processes.all_gather(probe.exists())
    if processes.is_main_process():
        probe.unlink(missing_ok=True)
    if not all(seen):
        blind = [str(process) for process, sees in enumerate(seen) if not sees]
        raise InputError(
            "The processes do not see one work directory",
            where=str(directory),
            expected="a bucket (gs://...) or a file system that all hosts share",
            found="another or nothing in process " + ", ".join(blind),
            fix="name another with --config.workdir",
        )


def process_token() -> str:
    """A name for a file of this process, by which others tell whether it still runs."""
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex}"


def is_gone(name: str) -> bool:
    """Whether the process whose `own_name` is in `name` ran here and has ended."""
    found = _OWN_NAME.search(name)
    if found is None or found["machine"] != _machine():
        return False
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def remove_stale(directory: epath.Path) -> None:
    """Removes what killed processes left: hidden files that bear an `own_name`."""
    for path in directory.glob(".*"):
        if _OWN_NAME.search(path.name) is None:
            continue
        # Perhaps removed meanwhile by the one that made it.
        with contextlib.suppress(OSError):
            age = time.time() - path.stat().mtime
            if is_gone(path.name) or age > _SECONDS_OF_A_LEFTOVER:
                path.unlink(missing_ok=True)


def _machine() -> str:
    """Identity of what process numbers are unique in."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            parts = file.read().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        parts = str(uuid.getnode()), ""
    return files.digest(*parts)[:12]


def save(
    directory: epath.Path,
    request: Mapping[str, Any],
    result: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> Entry:
    """Stores arrays under `directory`, and last their manifest.

    With several processes each gives its own rows: process p of n has rows p, p + n,
    p + 2 n and so on of every array.

    Args:
      directory: Where; made if it is not there. The old manifest goes first, so
        that no moment shows new arrays under an old manifest.
      request: JSON-able inputs that decide the arrays' values.
      result: JSON-able facts about them (seconds, counts).
      arrays: Arrays of any shape and a plain dtype; written as `.npy`, no pickle.

    Returns:
      What `load` would: the whole arrays, and process 0's result.
    """
    directory = epath.Path(directory)
    process, count = processes.process_index(), processes.process_count()
    if processes.is_main_process():
        (directory / MANIFEST).unlink(missing_ok=True)
    processes.barrier("a manifest is gone")
    described = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        data = buffer.getvalue()
        file = f"{name}.npy" if count == 1 else f"{name}.{process}-of-{count}.npy"
        files.write_bytes_atomically(directory / file, data)
        described[name] = {
            "file": file,
            "rows": len(array),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    everyone = processes.all_gather(described)
    manifest = {
        "request": dict(request),
        "result": processes.broadcast_from_main(dict(result)),
        "arrays": {name: [part[name] for part in everyone] for name in arrays},
    }
    if processes.is_main_process():
        _write_json(directory / MANIFEST, manifest)
        kept = {part["file"] for parts in manifest["arrays"].values() for part in parts}
        # Of an earlier save, with other arrays or another number of processes, or of
        # one that was killed.
        for path in (*directory.glob("*.npy"), *directory.glob(".*.npy.partial")):
            if path.name not in kept:
                path.unlink(missing_ok=True)
    processes.barrier("a manifest is written")
    if count == 1:
        return Entry(arrays, manifest["result"], _identity(manifest))
    entry = _read_arrays(directory, manifest)
    if entry is None:
        raise OSError(f"{directory} was written by all processes and cannot be read")
    return entry


def load(directory: epath.Path, request: Mapping[str, Any]) -> Entry | None:
    """Returns what `save` stored for this request, or None where it must be made.

    A difference in the request, a missing or damaged file: each is logged by name.
    """
    directory = epath.Path(directory)
    manifest = _agreed(directory / MANIFEST, request)
    entry = None if manifest is None else _read_arrays(directory, manifest)
    return entry if all(processes.all_gather(entry is not None)) else None


def read(directory: epath.Path) -> tuple[Mapping[str, Any], Entry] | None:
    """Returns (the request, what `save` stored), whatever the request was.

    None where there is nothing whole; a missing or damaged file is logged by name.
    """
    directory = epath.Path(directory)
    manifest = _read_json(directory / MANIFEST)
    entry = None if manifest is None else _read_arrays(directory, manifest)
    return None if manifest is None or entry is None else (manifest["request"], entry)


def _read_arrays(directory: epath.Path, manifest: Mapping[str, Any]) -> Entry | None:
    try:
        return _checked_arrays(directory, manifest)
    except (KeyError, TypeError, ValueError) as error:
        # Written by another version, say.
        _log.warning("%s cannot be read (%r): making it again", directory, error)
        return None


def _checked_arrays(directory: epath.Path, manifest: Mapping[str, Any]) -> Entry | None:
    arrays = {}
    for name, parts in manifest["arrays"].items():
        loaded = []
        for part in parts:
            # A manifest is not to lead out of its directory.
            path = directory / part["file"].replace("/", "_")
            if not path.exists():
                _log.warning("%s is missing: making it again", path)
                return None
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != part["sha256"]:
                _log.warning("%s does not match its checksum: making it again", path)
                return None
            loaded.append(np.load(io.BytesIO(data), allow_pickle=False))
        arrays[name] = _interleaved(loaded)
    return Entry(arrays, manifest["result"], _identity(manifest))


def _interleaved(parts: list[np.ndarray]) -> np.ndarray:
    """Row r of the whole is a row of part r % n."""
    if len(parts) == 1:
        return parts[0]
    rows = sum(len(part) for part in parts)
    whole = np.empty((rows, *parts[0].shape[1:]), parts[0].dtype)
    for i, part in enumerate(parts):
        whole[i :: len(parts)] = part
    return whole


def _identity(manifest: Mapping[str, Any]) -> str:
    arrays = sorted(
        (name, *(part["sha256"] for part in parts))
        for name, parts in manifest["arrays"].items()
    )
    return files.digest(json.dumps(arrays))


def save_result(
    path: epath.Path, request: Mapping[str, Any], result: Mapping[str, Any]
) -> None:
    """Stores a JSON result and its request in one file."""
    if processes.is_main_process():
        _write_json(path, {"request": dict(request), "result": dict(result)})


def load_result(path: epath.Path, request: Mapping[str, Any]) -> Entry | None:
    """Returns the stored result for this request, or None where it must be made."""
    stored = _agreed(epath.Path(path), request)
    return None if stored is None else Entry({}, stored["result"])


def _agreed(path: epath.Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    found = _read_matching(path, request) if processes.is_main_process() else None
    return processes.broadcast_from_main(found)


def _write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=1, sort_keys=True)
    body = {"checksum": files.digest(text)}
    files.write_text_atomically(
        path, json.dumps({**value, **body}, indent=1, sort_keys=True)
    )


def _read_json(path: epath.Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_bytes())
        expected = value.pop("checksum")
    except (ValueError, KeyError, AttributeError, TypeError):
        _log.warning("%s cannot be read: making it again", path)
        return None
    if files.digest(json.dumps(value, indent=1, sort_keys=True)) != expected:
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
