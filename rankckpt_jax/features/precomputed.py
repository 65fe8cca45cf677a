"""Features that were made elsewhere: `.npz` files, or the store of an earlier run.

A file NAME.npz holds the arrays of one checkpoint on one task:

    features        float [N, D]
    labels          int [N]; bool [N, L] for several labels per image, or float [N] for
                    one number, which `config.task.target` says
    logits          float [N, V] of the checkpoint's own classifier (optional)
    accuracy        number in [0, 1], measured after fine-tuning (optional)
    num_parameters  number (optional)

Any framework can write it: `np.savez("resnet.npz", features=..., labels=...)`. Files
are untrusted input; pickled objects are refused.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints.fetch import uris
from rankckpt_jax.data import targets
from rankckpt_jax.errors import InputError
from rankckpt_jax.features.feature_set import FeatureSet, from_arrays, from_store
from rankckpt_jax.storage import files, store

_REQUIRED = ("features", "labels")
_OPTIONAL = ("logits", "accuracy", "num_parameters")


def find_features(pattern: str) -> list[tuple[str, epath.Path]]:
    """List the feature files and store directories that a pattern names.

    Args:
      pattern: A `.npz` file, a directory of such files, a `CHECKPOINT/features/SPLIT`
        directory of a store, or a glob. Commas separate several patterns.

    Returns:
      (name of the checkpoint, path) pairs, sorted by name.

    Raises:
      InputError: Nothing was found, or two paths have the same name.
    """
    paths: dict[str, epath.Path] = {}
    for part in uris.split_list(pattern):
        for path in _expand(files.to_path(part)):
            name = path.stem if path.suffix == ".npz" else path.parent.parent.name
            name = files.directory_name(name, "features")
            if paths.get(name, path) != path:
                raise InputError(
                    f"Two sets of features are called {name!r}",
                    where="config.features",
                    expected="one path per name",
                    found=f"{paths[name]} and {path}",
                    fix="rename one of them",
                )
            paths[name] = path
    if not paths:
        raise InputError(
            "No features found",
            where=pattern,
            expected="NAME.npz files with arrays `features` and `labels`, or "
            "directories CHECKPOINT/features/SPLIT of an earlier run",
            found="neither",
            fix="--config.features=DIR_OR_GLOB",
        )
    return sorted(paths.items())


def find_target(path: epath.Path) -> str:
    """Return the kind of the labels at a path, one of `targets.TARGETS`.

    A store names it. A `.npz` file does not, and has classes.
    """
    stored = None if path.suffix == ".npz" else store.read(path)
    return targets.CLASSES if stored is None else from_store(*stored).target


def load_features(path: epath.Path, target: str = targets.CLASSES) -> FeatureSet:
    """Read a path that `find_features` returned.

    Args:
      path: The file or directory.
      target: Kind of the labels of a `.npz` file. A store names its own.

    Raises:
      InputError: The file is damaged, or features or labels are missing.
    """
    if path.suffix == ".npz":
        return _load_npz(path, target)
    stored = store.read(path)
    if stored is None:
        raise InputError(
            "Stored features cannot be read",
            where=str(path),
            expected="a manifest, and arrays that match its checksums",
            found="missing or damaged files, named in the log",
            fix="run the stage `extract` again",
        )
    return from_store(*stored)


def identify(path: epath.Path) -> str:
    """Return a digest that changes with the features at a path of `find_features`."""
    file = path if path.suffix == ".npz" else path / store.MANIFEST
    try:
        return files.digest_file(file)
    except OSError:
        return ""


def _expand(path: epath.Path) -> Iterator[epath.Path]:
    if files.WILDCARD.search(str(path)) and not path.exists():
        for match in files.expand(path)[1]:
            if match.suffix == ".npz" or (match / store.MANIFEST).exists():
                yield match
    elif (path / store.MANIFEST).exists():
        yield path
    elif path.is_dir():
        yield from files.matching(path, "*.npz")
    elif path.exists():
        yield path


def _load_npz(path: epath.Path, target: str) -> FeatureSet:
    known = _REQUIRED + _OPTIONAL
    try:
        data = path.read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in known}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            "Features cannot be read",
            where=str(path),
            expected="an .npz file of plain arrays, without pickled objects",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="write it with np.savez, from arrays of numbers",
        ) from error
    if missing := [name for name in _REQUIRED if name not in arrays]:
        raise InputError(
            f"The file has no array {' and no array '.join(missing)}",
            where=str(path),
            expected=f"{', '.join(_REQUIRED)}; optionally {', '.join(_OPTIONAL)}",
            found=", ".join(arrays) or "none of these",
            fix="np.savez(FILE, features=..., labels=...)",
        )
    return from_arrays(
        **arrays, where=str(path), target=target, checksum=files.digest(data)
    )
