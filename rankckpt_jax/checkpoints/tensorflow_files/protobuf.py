"""Protocol buffers' wire format: the few messages in checkpoint files, read strictly.

TensorFlow's generated classes would do the same, after seconds of importing
TensorFlow. This reader refuses everything that a serializer does not write (repeated
scalars, fields of another wire type), so that no two readers can disagree on a message.

Reference: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class FormatError(Exception):
    """The bytes are damaged, or were forged."""


class Field(NamedTuple):
    """One field of a message.

    Attributes:
      name: The key of its value in the result of `parse`.
      wire_type: VARINT, FIXED64, BYTES or FIXED32.
      repeated: Whether it may occur several times; its value is then a list.
    """

    name: str
    wire_type: int
    repeated: bool = False


def parse(data: Any, fields: Mapping[int, Field]) -> dict[str, Any]:
    """Return the fields of a message; those that are not in `fields` are skipped.

    Args:
      data: The serialized message, bytes or a memoryview.
      fields: The fields to read, by field number.

    Returns:
      One value per entry of `fields`. Numbers are unsigned integers (0 if absent);
      BYTES are slices of `data` (empty if absent).

    Raises:
      FormatError: The message is truncated, or a field has another wire type or
        occurs more often than declared.
    """
    result: dict[str, Any] = {
        field.name: [] if field.repeated else b"" if field.wire_type == BYTES else 0
        for field in fields.values()
    }
    seen = set()
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        value: Any
        if wire_type == VARINT:
            value, position = read_varint(data, position)
        else:
            if wire_type == BYTES:
                size, position = read_varint(data, position)
            elif wire_type in (FIXED32, FIXED64):
                size = 4 if wire_type == FIXED32 else 8
            else:
                raise FormatError(f"unknown wire type {wire_type}")
            if position + size > len(data):
                raise FormatError("truncated message")
            value = data[position : position + size]
            position += size
            if wire_type != BYTES:
                value = int.from_bytes(value, "little")
        field = fields.get(number)
        if field is None:
            continue
        if wire_type != field.wire_type:
            raise FormatError(f"field {field.name!r} has wire type {wire_type}")
        if field.repeated:
            result[field.name].append(value)
        elif number in seen:
            raise FormatError(f"field {field.name!r} occurs twice")
        else:
            result[field.name] = value
        seen.add(number)
    return result


def read_varint(data: Any, position: int) -> tuple[int, int]:
    """Return (an unsigned integer of at most 64 bits, the position after it)."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise FormatError("truncated integer")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, position
    raise FormatError("integer of more than 64 bits")


def varint(value: int) -> bytes:
    """Encode an unsigned integer."""
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])


def field(number: int, value: int | bytes) -> bytes:
    """Encode one field: an integer as VARINT, bytes as BYTES."""
    if isinstance(value, int):
        return varint(number << 3 | VARINT) + varint(value)
    return varint(number << 3 | BYTES) + varint(len(value)) + value
