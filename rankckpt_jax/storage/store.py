"""Cached results of a run, each beside a manifest of what made it.

    workdir/TASK/CHECKPOINT/features/SPLIT/      `save`: one .npy file per array
    workdir/TASK/CHECKPOINT/scores/MEASURE.json  `save_result`: JSON in one file
    workdir/TASK/CHECKPOINT/finetune/            `save_result`; `save_variables` while
                                                 training, see `finetune.saves`
    workdir/converted/CHECKPOINT/                `save_variables`: weights, by Orbax

A manifest (`manifest.json`, or the JSON file itself) holds the *key* of a result: all
inputs that decide its value. It also holds small results and the checksums of files. A
cached result is used if its key equals the requested one and its checksums match.
Otherwise it is recomputed, and the log names the field that differs or the damaged
file.

A file is written under a temporary name and renamed, and the manifest is written last.
A killed run therefore leaves either an intact result or none. If a file cannot be
written, the run ends with a `StorageError` that names it. Every path is an
`epath.Path`, so local directories and buckets (gs://) behave alike.

All processes of a run see the same store. The functions `save`, `load` and `load_*` are
collectives: all processes call them in the same order, and process 0 decides. The other
`save_*` functions write on process 0 only and may be called from a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.devices import processes
from rankckpt_jax.errors import InputError, StorageError
from rankckpt_jax.storage import files

MANIFEST = "manifest.json"

# Field of a manifest that holds the key.
_KEY = "request"
_VARIABLES = "variables"
# Between the parts of a variable's path, which may contain any other character.
_SEPARATOR = "\n"
# Seconds after which a probe of `check` was left by a killed process.
_STALE_AFTER = 600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A stored result.

    Attributes:
      arrays: Arrays by name; empty for a JSON result.
      result: JSON-able values that were stored beside the key.
      checksum: Digest of the arrays, which later stages record; empty without arrays.
    """

    arrays: Mapping[str, np.ndarray]
    result: Mapping[str, Any]
    checksum: str = ""


def check(directory: epath.Path) -> None:
    """Check that a directory can be written and that all processes see it.

    Raises:
      InputError: It cannot be written, or some processes see another directory.
    """
    directory = epath.Path(directory)
    probe = directory / f".probe-{processes.broadcast_from_main(uuid.uuid4().hex)}"

    def write() -> None:
        if not processes.is_main_process():
            return
        try:
            directory.mkdir(parents=True, exist_ok=True)
            remove_stale(directory)
            # Some content, because a full disk still accepts an empty file.
            probe.write_text("written to check that the directory is writable")
        except OSError as error:
            raise InputError(
                "The work directory cannot be written",
                where=str(directory),
                expected="a directory that this user may write, with free space",
                found=error.strerror or str(error),
                fix="choose another directory with --config.workdir",
            ) from error

    processes.sync_errors(write)
    visible = processes.all_gather(probe.exists())
    if processes.is_main_process():
        probe.unlink(missing_ok=True)
    if not all(visible):
        blind = [str(process) for process, sees in enumerate(visible) if not sees]
        raise InputError(
            "The processes do not share a work directory",
            where=str(directory),
            expected="a bucket (gs://...) or a file system that all hosts share",
            found="another directory, or none, in process " + ", ".join(blind),
            fix="choose another directory with --config.workdir",
        )


def remove_stale(directory: epath.Path) -> None:
    """Remove the probes of killed runs."""
    for path in files.matching(directory, ".probe-*"):
        # A run that is still alive may remove its own probe first.
        with contextlib.suppress(OSError):
            if time.time() - files.size_and_time(path)[1] > _STALE_AFTER:
                path.unlink(missing_ok=True)


def save(
    directory: epath.Path,
    key: Mapping[str, Any],
    result: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> Entry:
    """Store arrays, one `.npy` file each.

    With n processes each passes its own rows: process p has the rows p, p + n, p + 2 n
    and so on of every array, and writes them to files of its own.

    Args:
      directory: Created if it does not exist. The old manifest is removed first, so
        that new arrays never stand beside an old manifest.
      key: JSON-able inputs that decide the arrays' values.
      result: JSON-able facts about the arrays, such as seconds and counts.
      arrays: Arrays of any shape and a dtype that `.npy` supports without pickle.

    Returns:
      The entry that `load` would return: complete arrays, and process 0's result.

    Raises:
      StorageError: A file cannot be written.
    """
    directory = epath.Path(directory)
    process, count = processes.process_index(), processes.process_count()
    if processes.is_main_process():
        with files.writing(directory):
            (directory / MANIFEST).unlink(missing_ok=True)
    processes.barrier("old manifest removed")
    described = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        data = buffer.getvalue()
        file = f"{name}.npy" if count == 1 else f"{name}.{process}-of-{count}.npy"
        files.write_bytes_atomically(directory / file, data)
        described[name] = {"file": file, "sha256": hashlib.sha256(data).hexdigest()}
    parts = processes.all_gather(described)
    manifest = {
        _KEY: dict(key),
        "result": processes.broadcast_from_main(dict(result)),
        "arrays": {name: [part[name] for part in parts] for name in arrays},
    }
    if processes.is_main_process():
        _write_json(directory / MANIFEST, manifest)
        current = {p["file"] for ps in manifest["arrays"].values() for p in ps}
        # An earlier save may have had other arrays or another number of processes.
        for pattern in ("*.npy", ".*.npy.partial"):
            for path in files.matching(directory, pattern):
                if path.name not in current:
                    path.unlink(missing_ok=True)
    processes.barrier("new manifest written")
    if count == 1:
        return Entry(arrays, manifest["result"], _identity(manifest))
    entry = _read_arrays(directory, manifest)
    if entry is None:
        raise StorageError(
            "Stored arrays cannot be read back",
            where=str(directory),
            expected="a file system on which all hosts see a written file at once",
            fix="choose another directory with --config.workdir",
        )
    return entry


def load(directory: epath.Path, key: Mapping[str, Any]) -> Entry | None:
    """Return the arrays stored by `save`, or None if they must be computed."""
    directory = epath.Path(directory)
    manifest = _load_json(directory / MANIFEST, key)
    entry = None if manifest is None else _read_arrays(directory, manifest)
    return entry if all(processes.all_gather(entry is not None)) else None


def read(directory: epath.Path) -> tuple[Mapping[str, Any], Entry] | None:
    """Return (key, entry) of stored arrays whatever their key, or None if damaged.

    Not a collective.
    """
    directory = epath.Path(directory)
    manifest = _read_json(directory / MANIFEST)
    entry = None if manifest is None else _read_arrays(directory, manifest)
    return None if manifest is None or entry is None else (manifest[_KEY], entry)


def _read_arrays(directory: epath.Path, manifest: Mapping[str, Any]) -> Entry | None:
    arrays = {}
    try:
        for name, parts in manifest["arrays"].items():
            loaded = []
            for part in parts:
                # A manifest cannot refer to files outside its directory.
                path = directory / part["file"].replace("/", "_")
                data = files.read_verified(path, part["sha256"])
                if data is None:
                    return None
                loaded.append(np.load(io.BytesIO(data), allow_pickle=False))
            arrays[name] = _interleave(loaded)
        return Entry(arrays, manifest["result"], _identity(manifest))
    except (KeyError, TypeError, ValueError) as error:
        _log.warning("%s: unknown format (%r); recomputing", directory, error)
        return None


def _interleave(parts: list[np.ndarray]) -> np.ndarray:
    """Return the array whose rows p, p + n, ... are those of part p of n."""
    if len(parts) == 1:
        return parts[0]
    array = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for i, part in enumerate(parts):
        array[i :: len(parts)] = part
    return array


def _identity(manifest: Mapping[str, Any]) -> str:
    arrays = sorted(
        (name, *(part["sha256"] for part in parts))
        for name, parts in manifest["arrays"].items()
    )
    return files.digest(json.dumps(arrays))


def save_files(
    directory: epath.Path,
    key: Mapping[str, Any],
    result: Mapping[str, Any],
    **described: Any,
) -> None:
    """Store the manifest of a directory whose files another library has written.

    Args:
      directory: Every file in it becomes part of the entry.
      key: JSON-able inputs that decide the files' contents.
      result: JSON-able facts about the files.
      described: More JSON-able fields of the manifest.
    """
    if processes.is_main_process():
        directory = epath.Path(directory)
        (directory / MANIFEST).unlink(missing_ok=True)
        checksums = files.digest_files(directory)
        manifest = {_KEY: dict(key), "result": dict(result), "files": checksums}
        _write_json(directory / MANIFEST, {**manifest, **described})


def load_files(directory: epath.Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of `save_files` if all files are intact, otherwise None."""
    directory = epath.Path(directory)
    manifest = _load_json(directory / MANIFEST, key)
    intact = manifest is not None and files.verify_checksums(
        directory, manifest["files"]
    )
    return manifest if all(processes.all_gather(intact)) else None


def save_variables(
    directory: epath.Path,
    key: Mapping[str, Any],
    result: Mapping[str, Any],
    variables: Mapping[str, Any],
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Store weights, and files that belong to them.

    Args:
      directory: A directory of its own. Its old content is replaced.
      key: JSON-able inputs that decide the weights.
      result: JSON-able facts about them.
      variables: Nested dictionaries of arrays.
      extra_files: Contents of further files by name.

    Raises:
      StorageError: A file cannot be written.
    """
    if not processes.is_main_process():
        return
    directory = epath.Path(directory)
    flat = _flatten(variables)
    paths = sorted(flat)
    # Orbax receives a list, because it would turn the paths into directories.
    values = [np.asarray(flat[path]) for path in paths]
    with files.writing(directory, ValueError, RuntimeError):
        if directory.exists():
            # The manifest first: no moment shows other weights beside it.
            (directory / MANIFEST).unlink(missing_ok=True)
            directory.rmtree()
        directory.mkdir(parents=True)
        with _checkpointer() as checkpointer:
            checkpointer.save(files.literal(directory / _VARIABLES), values)
        for name, data in (extra_files or {}).items():
            files.write_bytes_atomically(directory / name, data)
        described = {
            "paths": [_SEPARATOR.join(path) for path in paths],
            "shapes": [list(value.shape) for value in values],
            "dtypes": [str(value.dtype) for value in values],
        }
        save_files(directory, key, result, variables=described)


def load_variables(
    directory: epath.Path, key: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return (variables, result) of `save_variables`, or None if they must be computed.

    The checksums of the extra files have been verified; read them from `directory`.
    """
    directory = epath.Path(directory)
    manifest = load_files(directory, key)
    if manifest is None:
        return None
    variables = None
    try:
        described = manifest[_VARIABLES]
        shapes = zip(described["shapes"], described["dtypes"], strict=True)
        target = [np.empty(shape, dtype) for shape, dtype in shapes]
        with _checkpointer() as checkpointer:
            place = files.literal(directory / _VARIABLES)
            values = map(np.asarray, checkpointer.restore(place, target))
        paths = [tuple(path.split(_SEPARATOR)) for path in described["paths"]]
        variables = _unflatten(dict(zip(paths, values, strict=True)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s: unreadable (%s); recomputing", directory, files.reason(error))
    if not all(processes.all_gather(variables is not None)) or variables is None:
        return None
    return variables, manifest["result"]


def _checkpointer() -> Any:
    """Return an Orbax checkpointer that does not wait for other processes."""
    # Late, for start-up time.
    import orbax.checkpoint as ocp

    own = processes.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own,
        active_processes={own},
        barrier_sync_key_prefix=f"rankckpt{own}",
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _flatten(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {(name, *path): leaf for path, leaf in _flatten(value).items()}
        else:
            flat[(name,)] = value
    return flat


def _unflatten(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for (*parents, name), value in flat.items():
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return tree


def save_result(
    path: epath.Path, key: Mapping[str, Any], result: Mapping[str, Any]
) -> None:
    """Store a JSON-able result and its key in one file."""
    if processes.is_main_process():
        _write_json(path, {_KEY: dict(key), "result": dict(result)})


def load_result(path: epath.Path, key: Mapping[str, Any]) -> Entry | None:
    """Return the result stored by `save_result`, or None if it must be computed."""
    manifest = _load_json(epath.Path(path), key)
    return None if manifest is None else Entry({}, manifest["result"])


def read_result(path: epath.Path, key: Mapping[str, Any]) -> Entry | None:
    """Return what `load_result` returns, in this process only: not a collective."""
    manifest = _read_matching(epath.Path(path), key)
    return None if manifest is None else Entry({}, manifest["result"])


def _load_json(path: epath.Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the manifest that process 0 reads, on every process."""
    manifest = _read_matching(path, key) if processes.is_main_process() else None
    return processes.broadcast_from_main(manifest)


def _write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=1, sort_keys=True)
    body = {**value, "checksum": files.digest(text)}
    files.write_text_atomically(path, json.dumps(body, indent=1, sort_keys=True))


def _read_json(path: epath.Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_bytes())
        checksum = value.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        _log.warning("%s: unreadable (%s); recomputing", path, files.reason(error))
        return None
    if files.digest(json.dumps(value, indent=1, sort_keys=True)) != checksum:
        _log.warning("%s: checksum does not match; recomputing", path)
        return None
    return value


def _read_matching(path: epath.Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    if path.name == MANIFEST and not path.exists() and path.parent.exists():
        # A killed run left it, or an earlier version stored it in another format.
        _log.info("%s: no manifest; recomputing", path.parent)
        return None
    manifest = _read_json(path)
    if manifest is None:
        return None
    # Through JSON, because a tuple is stored as a list.
    key = json.loads(json.dumps(dict(key)))
    stored = manifest[_KEY]
    changes = ", ".join(
        f"{field} {stored.get(field)!r} -> {key.get(field)!r}"
        for field in sorted(key.keys() | stored.keys())
        if key.get(field) != stored.get(field)
    )
    if changes:
        place = path.parent if path.name == MANIFEST else path
        _log.info("%s: Cached result does not match (%s); recomputing", place, changes)
        return None
    return manifest
