"""TensorFlow checkpoint files: their names, shapes, values and identity.

A checkpoint is named by its prefix: "DIR/model.ckpt" stands for DIR/model.ckpt.index
and DIR/model.ckpt.data-00000-of-00001 (format V2), or for the one file DIR/model.ckpt
(format V1, in which the oldest TF-Slim checkpoints were published). Whatever is wrong
with them becomes an `InputError` that names the file.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints.tensorflow_files import tensor_bundle
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError, some
from rankckpt_jax.storage import files

PART = re.compile(r"(?P<prefix>.+)\.(index|data-\d+-of-\d+)", re.DOTALL)
"""Matches the path of a file that belongs to a V2 checkpoint."""

# What TensorFlow raises besides its own errors where a file is cut short or garbled.
_READ_ERRORS = (ValueError, RuntimeError, IndexError)
# Format V1 is compressed, by Snappy, which makes of a byte at most about 21.
_MOST_COMPRESSED = 64


def prefix_of(path: epath.Path | str) -> str:
    """Returns the prefix of the checkpoint that a path points to.

    Args:
      path: The prefix itself, its ".index" file, or a directory with one checkpoint.

    Raises:
      InputError: The directory holds none or several.
    """
    place = epath.Path(path).expanduser()
    if not place.is_dir():
        return str(place).removesuffix(".index")
    found = sorted(str(file) for file in place.glob("*.index"))
    if len(found) != 1:
        raise InputError(
            "Not exactly one checkpoint in a directory",
            where=str(place),
            expected="one NAME.index",
            found=some([epath.Path(file).name for file in found]) or "none",
            fix="name the checkpoint: DIR/NAME",
        )
    return found[0].removesuffix(".index")


def shapes(prefix: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's variables.

    Raises:
      InputError: It is not there, or cannot be read.
    """
    if epath.Path(f"{prefix}.index").exists():
        entries = tensor_bundle.read(prefix)
        return {name: entry.shape for name, entry in entries.items()}
    found = _reader(prefix).get_variable_to_shape_map()
    return {name: tuple(shape) for name, shape in found.items()}


def read(prefix: str, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Values of variables, in float32.

    Raises:
      InputError: The files cannot be read to their end, or a variable is not made of
        finite floating-point numbers.
    """
    values = read_any(prefix, names)
    for name, value in values.items():
        if not np.issubdtype(value.dtype, np.floating):
            raise InputError(
                f"Variable {name!r} has the wrong type",
                where=prefix,
                expected="floating point",
                found=str(value.dtype),
                fix="take a checkpoint that a training run wrote",
            )
        if not np.isfinite(value).all():
            bad = int((~np.isfinite(value)).sum())
            raise InputError(
                f"Variable {name!r} has NaN or infinite values",
                where=prefix,
                expected="finite numbers",
                found=f"{bad} of {value.size} that are not",
                fix="take another step of the training run that wrote it",
            )
        values[name] = value.astype(np.float32)
    return values


def read_any(prefix: str, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Values of variables, in the type they are stored in.

    Raises:
      InputError: The files cannot be read to their end.
    """
    tf = tensorflow()
    reader = _reader(prefix)
    try:
        return {name: reader.get_tensor(name) for name in names}
    except (tf.errors.OpError, *_READ_ERRORS) as error:
        raise _unreadable(prefix, error) from error


def write(prefix: epath.Path | str, values: Mapping[str, np.ndarray]) -> None:
    """Writes variables as a V2 checkpoint; makes its directory.

    Raises:
      StorageError: It cannot be written.
    """
    tf = tensorflow()
    prefix = epath.Path(prefix)
    names = sorted(values)
    with files.writing(prefix, tf.errors.OpError):
        prefix.parent.mkdir(parents=True, exist_ok=True)
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[values[name] for name in names],
        )


def fingerprint(prefix: str) -> str:
    """SHA-256 over the bytes of all of a checkpoint's files, in hexadecimal."""
    path = epath.Path(prefix)
    paths = [
        file for file in path.parent.glob(path.name + ".*") if PART.fullmatch(str(file))
    ]
    digest = hashlib.sha256()
    for file in sorted(paths, key=str) or [path]:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _reader(prefix: str) -> Any:
    """TensorFlow's reader, of files that were looked through first."""
    tf = tensorflow()
    second_format = epath.Path(f"{prefix}.index").exists()
    if second_format:
        tensor_bundle.check(prefix)
    elif not epath.Path(prefix).is_file():
        raise InputError(
            "A checkpoint's index is missing",
            where=prefix + ".index",
            expected="TensorFlow's V2 format: NAME.index beside NAME.data-*",
            found=some(sorted(file.name for file in _beside(prefix))) or "nothing",
            fix="copy the .index file too",
        )
    try:
        reader = tf.train.load_checkpoint(prefix)
        # Names that are no text fail here.
        shapes = reader.get_variable_to_shape_map()
    except (tf.errors.OpError, *_READ_ERRORS) as error:
        raise _unreadable(prefix, error) from error
    if not second_format:
        size = epath.Path(prefix).stat().length
        elements = sum(math.prod(map(abs, shape)) for shape in shapes.values())
        if elements > _MOST_COMPRESSED * size:
            raise _unreadable(prefix, ValueError(f"{elements} values in {size} bytes"))
    return reader


def _beside(prefix: str) -> list[epath.Path]:
    folder = epath.Path(prefix).parent
    return list(folder.iterdir()) if folder.is_dir() else []


def _unreadable(prefix: str, error: Exception) -> InputError:
    lines = str(error).strip().splitlines()
    return InputError(
        "A checkpoint cannot be read",
        where=prefix,
        expected="whole .index and .data-* files in TensorFlow's V2 format",
        found=lines[0] if lines else type(error).__name__,
        fix="copy it again; it may be truncated",
    )
