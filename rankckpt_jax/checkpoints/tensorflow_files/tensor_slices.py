"""TensorFlow's checkpoint format V1, in which the oldest TF-Slim checkpoints are.

One file, a table. The value of the empty key describes all variables; every other key
is of a slice of a variable, whose value holds the numbers as a protocol buffer.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints.tensorflow_files import protobuf, slices, table
from rankckpt_jax.checkpoints.tensorflow_files.protobuf import (
    BYTES,
    VARINT,
    Field,
    FormatError,
)

# A file has at least one byte for this many values.
_MAX_COMPRESSION = 64

_RECORD = {1: Field("metadata", BYTES), 2: Field("data", BYTES)}
_METADATA = {1: Field("variables", BYTES, repeated=True)}
_VARIABLE = {
    1: Field("name", BYTES),
    2: Field("shape", BYTES),
    3: Field("dtype", VARINT),
    4: Field("slices", BYTES, repeated=True),
}
_SLICE = {1: Field("name", BYTES), 3: Field("tensor", BYTES)}
# TensorProto's fields of packed values, by the type: floating-point numbers, and
# integers as varints. The format has no other types.
_FLOATS = {1: 5, 2: 6, 8: 9, 18: 12}
_INTEGERS = {9: 10, 10: 11}
_SMALL_INTEGERS = 7


def read_index(path: epath.Path) -> dict[str, slices.Variable]:
    """Read names, shapes and types of the variables.

    Raises:
      FormatError: The file is damaged or forged.
      OSError: It cannot be read.
    """
    data = table.map_file(path)
    key, value = next(table.read(data), (b"", memoryview(b"")))
    metadata = protobuf.parse(value, _RECORD)["metadata"]
    if key or not metadata:
        raise FormatError("the description of the variables is missing")
    index = {}
    for item in protobuf.parse(metadata, _METADATA)["variables"]:
        message = protobuf.parse(item, _VARIABLE)
        try:
            name = bytes(message["name"]).decode()
        except UnicodeDecodeError as error:
            raise FormatError("a name is not UTF-8") from error
        index[name] = slices.parse_variable(
            name, message["dtype"], message["shape"], message["slices"]
        )
    count = sum(variable.size for variable in index.values())
    if count > _MAX_COMPRESSION * len(data):
        raise FormatError(f"{count} values in {len(data)} bytes")
    return index


def read(path: epath.Path, names: list[str]) -> dict[str, np.ndarray]:
    """Read the values of variables in their stored types.

    Args:
      path: The file.
      names: Variables of number types, all of them in the index.

    Raises:
      FormatError: The file is damaged or forged.
      OSError: It cannot be read.
    """
    index = read_index(path)
    keys = {
        slices.slice_key(name, extents): (name, extents)
        for name in names
        for extents in index[name].slices
    }
    parts: dict[tuple[str, slices.Extents], np.ndarray] = {}
    for key, value in table.read(table.map_file(path)):
        if key not in keys:
            continue
        name, extents = keys[key]
        size = math.prod(slices.slice_shape(index[name].shape, extents))
        tensor = protobuf.parse(protobuf.parse(value, _RECORD)["data"], _SLICE)
        parts[name, extents] = _values(name, index[name].dtype, tensor["tensor"], size)

    def read_slice(name: str, extents: slices.Extents) -> np.ndarray:
        if (name, extents) not in parts:
            raise FormatError(f"a slice of {name!r} is missing")
        return parts.pop((name, extents))

    return {
        name: slices.join(name, index[name], functools.partial(read_slice, name))
        for name in names
    }


def _values(name: str, dtype: int, tensor: Any, size: int) -> np.ndarray:
    """Decode the `size` values of a TensorProto."""
    kind = slices.DTYPES[dtype]
    number = (_FLOATS | _INTEGERS).get(dtype, _SMALL_INTEGERS)
    # TensorFlow leaves the tensor's own type and shape empty.
    data = protobuf.parse(tensor, {number: Field("values", BYTES)})["values"]
    if dtype in _FLOATS:
        if len(data) != size * kind.itemsize:
            raise FormatError(f"{name!r} has {len(data)} bytes for {size} values")
        return np.frombuffer(data, kind)
    values = _varints(data)
    if len(values) != size:
        raise FormatError(f"{name!r} has {len(values)} values instead of {size}")
    return values.view(np.int64).astype(kind)


def _varints(data: Any) -> np.ndarray:
    """Decode packed integers."""
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    if len(raw) and (not len(ends) or ends[-1] != len(raw) - 1):
        raise FormatError("truncated integer")
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lengths = ends - starts + 1
    if (lengths > 10).any():
        raise FormatError("integer of more than 64 bits")
    values = np.zeros(len(ends), np.uint64)
    for i in range(10):
        rows = np.flatnonzero(lengths > i)
        group = (raw[starts[rows] + i] & 0x7F).astype(np.uint64)
        values[rows] |= group << np.uint64(7 * i)
    return values
