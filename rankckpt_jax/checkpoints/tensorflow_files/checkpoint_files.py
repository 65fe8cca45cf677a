"""TensorFlow checkpoints: names, shapes, values and fingerprint, without TensorFlow.

A checkpoint is named by its prefix: "DIR/model.ckpt" stands for DIR/model.ckpt.index
and DIR/model.ckpt.data-00000-of-00001 (format V2), or for the one file DIR/model.ckpt
(format V1). Unreadable files raise an `InputError` that names them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints.tensorflow_files import (
    slices,
    tensor_bundle,
    tensor_slices,
)
from rankckpt_jax.checkpoints.tensorflow_files.protobuf import FormatError
from rankckpt_jax.errors import InputError, some
from rankckpt_jax.storage import files

PART = re.compile(r"(?P<prefix>.+)\.(index|data-\d+-of-\d+)", re.DOTALL)
"""Matches the path of a file that belongs to a V2 checkpoint."""


def prefix_of(path: epath.Path | str) -> str:
    """Return the prefix of the checkpoint that a path points to.

    Args:
      path: The prefix itself, its ".index" file, or a directory with one checkpoint.

    Raises:
      InputError: The directory has no checkpoint or several.
    """
    place = files.to_path(path)
    if not place.is_dir():
        return str(place).removesuffix(".index")
    indices = [str(file) for file in files.matching(place, "*.index")]
    if len(indices) != 1:
        raise InputError(
            "Not exactly one checkpoint in a directory",
            where=str(place),
            expected="one NAME.index",
            found=some([epath.Path(file).name for file in indices]) or "none",
            fix="name the checkpoint: DIR/NAME",
        )
    return indices[0].removesuffix(".index")


def shapes(prefix: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's variables by name.

    Raises:
      InputError: The checkpoint does not exist or cannot be read.
    """
    return {name: variable.shape for name, variable in _variables(prefix).items()}


def read(prefix: str, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Read the values of variables in their stored types.

    Args:
      prefix: See `prefix_of`.
      names: The variables; by default all that are numbers.

    Returns:
      The arrays by name. bfloat16 and float8 are the types of `ml_dtypes`.

    Raises:
      InputError: The files are damaged, or a variable does not exist or has values
        that are not numbers.
    """
    variables = _variables(prefix)
    numeric = [name for name, v in variables.items() if v.dtype in slices.DTYPES]
    names = numeric if names is None else list(names)
    for name in names:
        if name not in variables:
            raise InputError(
                f"The checkpoint has no variable {name!r}",
                where=prefix,
                found=some(sorted(variables)),
            )
        if variables[name].dtype not in slices.DTYPES:
            raise InputError(
                f"Variable {name!r} has the wrong type",
                where=prefix,
                expected="numbers",
                found="text",
            )
    if _is_v2(prefix):
        return tensor_bundle.read(prefix, names)
    try:
        return tensor_slices.read(epath.Path(prefix), names)
    except (FormatError, OSError) as error:
        raise tensor_bundle.unreadable(prefix, error) from error


def write(prefix: epath.Path | str, values: Mapping[str, np.ndarray]) -> None:
    """Write variables as a V2 checkpoint, and create its directory.

    Raises:
      StorageError: A file cannot be written.
    """
    tensor_bundle.write(epath.Path(prefix), values)


def fingerprint(prefix: str) -> str:
    """Return the SHA-256 of the bytes of all files of a checkpoint, in hexadecimal."""
    path = epath.Path(prefix)
    paths = [
        file
        for file in path.parent.iterdir()
        if (match := PART.fullmatch(file.name)) and match["prefix"] == path.name
    ]
    return files.digest(*map(files.digest_file, sorted(paths, key=str) or [path]))


def _is_v2(prefix: str) -> bool:
    return epath.Path(f"{prefix}.index").exists()


def _variables(prefix: str) -> dict[str, slices.Variable]:
    if _is_v2(prefix):
        return tensor_bundle.variables(tensor_bundle.read_index(prefix))
    path = epath.Path(prefix)
    if not path.is_file():
        folder = path.parent
        paths = [file.name for file in folder.iterdir()] if folder.is_dir() else []
        raise InputError(
            "The checkpoint's index is missing",
            where=f"{prefix}.index",
            expected="NAME.index beside NAME.data-*, as TensorFlow writes them",
            found=some(sorted(paths)) or "nothing",
            fix="copy the .index file too",
        )
    try:
        return tensor_slices.read_index(path)
    except (FormatError, OSError) as error:
        raise tensor_bundle.unreadable(prefix, error) from error
