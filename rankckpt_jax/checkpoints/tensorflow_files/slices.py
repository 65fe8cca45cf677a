"""Types, shapes and slices of variables, which both checkpoint formats share.

A partitioned variable is stored as several slices, each under a key that encodes the
variable's name and the slice's extents (`slice_key`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from rankckpt_jax.checkpoints.tensorflow_files import protobuf
from rankckpt_jax.checkpoints.tensorflow_files.protobuf import (
    BYTES,
    VARINT,
    Field,
    FormatError,
)

# TensorFlow's numbers of types, from tensorflow/core/framework/types.proto.
DTYPES: dict[int, np.dtype] = {
    number: np.dtype(kind)
    for number, kind in {
        1: np.float32,
        2: np.float64,
        3: np.int32,
        4: np.uint8,
        5: np.int16,
        6: np.int8,
        8: np.complex64,
        9: np.int64,
        10: np.bool_,
        # Quantized integers are read as the integers that they are stored as.
        11: np.int8,
        12: np.uint8,
        13: np.int32,
        14: ml_dtypes.bfloat16,
        15: np.int16,
        16: np.uint16,
        17: np.uint16,
        18: np.complex128,
        19: np.float16,
        22: np.uint32,
        23: np.uint64,
        24: ml_dtypes.float8_e5m2,
        25: ml_dtypes.float8_e4m3fn,
    }.items()
}
STRING = 7
# TensorFlow's shapes have no more dimensions.
_MAX_RANK = 254
MAX_BYTES = 1 << 62

_SHAPE = {2: Field("dims", BYTES, repeated=True), 3: Field("unknown_rank", VARINT)}
_DIM = {1: Field("size", VARINT), 2: Field("name", BYTES)}
_SLICE = {1: Field("extents", BYTES, repeated=True)}
_EXTENT = {1: Field("start", VARINT), 2: Field("length", VARINT)}

Extents = tuple[tuple[int, int | None], ...]
"""(start, length) of a slice in each dimension; length None for the whole dimension."""


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable as described by a checkpoint's index.

    Attributes:
      shape: Its dimensions.
      dtype: TensorFlow's number of its type.
      slices: The extents of its slices; empty for a variable that is not partitioned.
    """

    shape: tuple[int, ...]
    dtype: int
    slices: tuple[Extents, ...] = ()

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def parse_variable(
    name: str, dtype: int, shape: Any, slices: Sequence[Any]
) -> Variable:
    """Build a `Variable` from its serialized parts and check that they agree.

    Raises:
      FormatError: The type is unknown, the shape invalid, or a slice outside it.
    """
    message = protobuf.parse(shape, _SHAPE)
    dims = tuple(protobuf.parse(dim, _DIM)["size"] for dim in message["dims"])
    if dtype not in DTYPES and dtype != STRING:
        raise FormatError(f"{name!r} has the unknown type {dtype}")
    width = DTYPES[dtype].itemsize if dtype in DTYPES else 1
    if (
        message["unknown_rank"]
        or len(dims) > _MAX_RANK
        or any(dim > MAX_BYTES for dim in dims)
        or math.prod(dims) * width > MAX_BYTES
    ):
        raise FormatError(f"{name!r} has an invalid shape")
    return Variable(dims, dtype, tuple(_extents(name, data, dims) for data in slices))


def _extents(name: str, data: Any, shape: tuple[int, ...]) -> Extents:
    messages = protobuf.parse(data, _SLICE)["extents"]
    parsed = [protobuf.parse(message, _EXTENT) for message in messages]
    result = tuple((extent["start"], extent["length"] or None) for extent in parsed)
    if len(result) != len(shape) or any(
        start + (length or 0) > dim or (length is None and start)
        for (start, length), dim in zip(result, shape, strict=True)
    ):
        raise FormatError(f"{name!r} has a slice outside its shape")
    return result


def slice_shape(shape: Sequence[int], extents: Extents) -> tuple[int, ...]:
    """Return the shape of one slice of a variable."""
    pairs = zip(shape, extents, strict=True)
    return tuple(dim if length is None else length for dim, (_, length) in pairs)


def join(
    name: str, variable: Variable, read_slice: Callable[[Extents], np.ndarray]
) -> np.ndarray:
    """Join the slices of a partitioned variable.

    Args:
      name: For messages.
      variable: Its shape and slices.
      read_slice: Returns the values of one slice.

    Raises:
      FormatError: The slices overlap or leave a gap.
    """
    sizes = [math.prod(slice_shape(variable.shape, e)) for e in variable.slices]
    # Checked before memory is allocated: the slices' bytes exist, a gap's do not.
    if sum(sizes) != variable.size:
        raise FormatError(f"the slices of {name!r} do not cover it exactly once")
    parts = [read_slice(extents) for extents in variable.slices]
    result = np.empty(variable.shape, DTYPES[variable.dtype])
    covered = np.zeros(variable.shape, bool)
    for extents, part in zip(variable.slices, parts, strict=True):
        place = tuple(
            slice(start, None if length is None else start + length)
            for start, length in extents
        )
        result[place] = part.reshape(slice_shape(variable.shape, extents))
        covered[place] = True
    if not covered.all():
        raise FormatError(f"the slices of {name!r} do not cover it exactly once")
    return result


# --------------------------------------------------------------- keys of slices
# Encoded so that keys sort like their parts, after
# tensorflow/core/lib/strings/ordered_code.cc.


def slice_key(name: str, extents: Extents) -> bytes:
    """Return the key under which a slice of a variable is stored."""
    # 0xff would be escaped too, but does not occur in UTF-8.
    text = name.encode().replace(b"\0", b"\0\xff")
    key = b"\0" + text + b"\0\1" + _unsigned(len(extents))
    for start, length in extents:
        key += _signed(start) + _signed(-1 if length is None else length)
    return key


def _unsigned(value: int) -> bytes:
    size = (value.bit_length() + 7) // 8
    return bytes([size]) + value.to_bytes(size, "big")


def _signed(value: int) -> bytes:
    """Encode an integer in groups of 7 bits, the number of bytes in its first bits."""
    magnitude = ~value if value < 0 else value
    size = magnitude.bit_length() // 7 + 1
    if size == 1:
        return bytes([(0x80 ^ value) & 0xFF])
    header = ((1 << size) - 1) << (16 - size)
    data = bytearray(value.to_bytes(10, "big", signed=True)[-size:])
    data[0] ^= header >> 8
    data[1] ^= header & 0xFF
    return bytes(data)
