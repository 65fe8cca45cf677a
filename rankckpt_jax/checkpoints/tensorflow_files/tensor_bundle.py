"""The index of a TensorFlow checkpoint (format V2), read with distrust.

    NAME.index                  a sorted table: of each variable the type, the shape
                                and where its bytes stand
    NAME.data-00000-of-00001    the bytes

TensorFlow's own reader ends the whole process where an index is wrong but its
checksums are right, as in one that was made to harm. So the index is read here first,
and only one in which everything fits is handed to TensorFlow for the values, whose
checksums it compares.

The table is LevelDB's: a footer of 48 bytes says where the block of blocks is, and
each block has entries (length shared with the key before, length of the rest, length
of the value, both), then the offsets of the entries that share nothing, then how many
these are.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator
from typing import Any

from etils import epath

from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError

_FOOTER = 48
_MAGIC = 0xDB4775248B80FB57
_TRAILER = 5  # After each block: its compression and a checksum.
_REFERENCES = 100  # Numbers of types above are of references.
_MOST_DIMENSIONS = 254  # TensorFlow's shapes have no more.
_MOST_BYTES = 1 << 62
# Of an index: some ten bytes a variable more than the names of all.
_MOST_INDEX = 256_000_000


class _Damaged(Exception):
    """The index says something that cannot be."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the index says of a variable.

    Attributes:
      shape: Its dimensions.
      dtype: TensorFlow's number of its type.
      file: The data file's number.
      start: First byte in it.
      size: Number of bytes.
    """

    shape: tuple[int, ...]
    dtype: int
    file: int
    start: int
    size: int


def read(prefix: str) -> dict[str, Entry]:
    """Reads the whole index and checks that each of its parts fits the others.

    Args:
      prefix: "DIR/NAME" of DIR/NAME.index.

    Returns:
      The variables by name.

    Raises:
      InputError: It is damaged, or was made to do damage.
    """
    path = epath.Path(f"{prefix}.index")
    try:
        if path.stat().length > _MOST_INDEX:
            raise _Damaged("a file too large for an index")
        return _read(path.read_bytes())
    except (_Damaged, OSError) as error:
        raise InputError(
            "A checkpoint cannot be read",
            where=str(path),
            expected="a whole index in TensorFlow's V2 format",
            found=str(error),
            fix="copy it again; it may be truncated",
        ) from error


def check(prefix: str) -> None:
    """Refuses what `read` does, and data files that end before a variable does.

    Raises:
      InputError: It names the file.
    """
    ends: dict[int, int] = {}
    for entry in read(prefix).values():
        ends[entry.file] = max(ends.get(entry.file, 0), entry.start + entry.size)
    files = _shards(prefix)
    for number, end in sorted(ends.items()):
        path = files.get(number)
        size = None if path is None else path.stat().length
        if size is None or size < end:
            raise InputError(
                "A checkpoint cannot be read",
                where=str(path or f"{prefix}.data-{number:05d}-of-*"),
                expected=f"a file of {end} bytes or more",
                found="no such file" if size is None else f"{size} bytes",
                fix="copy it again; it may be truncated",
            )


def _shards(prefix: str) -> dict[int, epath.Path]:
    place = epath.Path(prefix)
    found = {}
    for path in place.parent.glob("*.data-*-of-*"):
        stem, _, rest = path.name.rpartition(".data-")
        number = rest.partition("-")[0]
        if stem == place.name and number.isdigit():
            found[int(number)] = path
    return found


def _read(data: bytes) -> dict[str, Entry]:
    tensorflow()
    from tensorflow.core.protobuf import tensor_bundle_pb2

    rows = _rows(data)
    key, value = next(rows, (b"", b""))
    header = _parsed(tensor_bundle_pb2.BundleHeaderProto, value)
    if key or not 1 <= header.num_shards < 100_000:
        raise _Damaged("no header")
    if header.endianness != tensor_bundle_pb2.BundleHeaderProto.LITTLE:
        raise _Damaged("numbers of another byte order")
    found = {}
    for key, value in rows:
        message = _parsed(tensor_bundle_pb2.BundleEntryProto, value)
        try:
            name = key.decode()
        except UnicodeDecodeError as error:
            raise _Damaged(f"a name that is no text: {key[:40]!r}") from error
        if message.slices:
            raise _Damaged(f"{name!r} is divided into parts, which are not read here")
        found[name] = _entry(name, message, header.num_shards)
    return found


def _entry(name: str, message: Any, num_files: int) -> Entry:
    tf = tensorflow()
    if message.shape.unknown_rank or len(message.shape.dim) > _MOST_DIMENSIONS:
        raise _Damaged(f"{name!r} has no shape")
    shape = tuple(int(dim.size) for dim in message.shape.dim)
    entry = Entry(shape, message.dtype, message.shard_id, message.offset, message.size)
    try:
        dtype = tf.as_dtype(message.dtype)
        # Of text and the like the size follows from the values.
        width = dtype.size if dtype != tf.string and dtype.is_numpy_compatible else 0
    except (TypeError, ValueError) as error:
        raise _Damaged(f"{name!r} is of unknown type {message.dtype}") from error
    if dtype in (tf.resource, tf.variant) or message.dtype > _REFERENCES:
        raise _Damaged(f"{name!r} is of type {dtype.name}")
    if (
        any(size < 0 for size in shape)
        or math.prod(shape) * max(width, 1) > _MOST_BYTES
    ):
        raise _Damaged(f"{name!r} has the shape {list(shape)}")
    if not 0 <= entry.file < num_files:
        raise _Damaged(f"{name!r} is in file {entry.file} of {num_files}")
    if entry.start < 0 or entry.size < 0 or entry.start + entry.size > _MOST_BYTES:
        raise _Damaged(f"{name!r} has {entry.size} bytes from {entry.start} on")
    # A text is at least its length, of one byte.
    count = math.prod(shape)
    if count * width != entry.size if width else count > entry.size:
        raise _Damaged(
            f"{name!r} of shape {list(shape)} and type {dtype.name} has "
            f"{entry.size} bytes"
        )
    return entry


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except Exception as error:  # protobuf's DecodeError differs by implementation.
        raise _Damaged("an entry that cannot be read") from error


# ------------------------------------------------------------------- the table


def _rows(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of the whole table, in rising order of the keys."""
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise _Damaged("no end of such a file")
    footer = data[-_FOOTER:]
    at = 0
    for _ in range(2):  # The first handle is of a block that is not used.
        start, at = _number(footer, at)
        size, at = _number(footer, at)
    before: bytes | None = None
    for last, handle in _block(data, start, size):
        start, at = _number(handle, 0)
        size, at = _number(handle, at)
        for key, value in _block(data, start, size):
            if (before is not None and key <= before) or key > last:
                raise _Damaged("keys that are out of order")
            before = key
            yield key, value
        # A block's name lies between its last key and the next block's first.
        before = last


def _block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each entry of a block."""
    if start + size + _TRAILER > len(data) - _FOOTER:
        raise _Damaged("a block beyond its end")
    kind, checksum = struct.unpack("<BI", data[start + size : start + size + _TRAILER])
    if kind:
        raise _Damaged("a compressed block")
    if _masked(_crc32c(data[start : start + size + 1])) != checksum:
        raise _Damaged("a block that does not match its checksum")
    block = data[start : start + size]
    if size < 4:
        raise _Damaged("a block without an end")
    (count,) = struct.unpack("<I", block[-4:])
    end = size - 4 - 4 * count
    if count < 1 or end < 0:
        raise _Damaged("a block without an end")
    whole = set(struct.unpack(f"<{count}I", block[end:-4]))
    entries: set[int] = set()
    at, key = 0, b""
    while at < end:
        begin = at
        shared, at = _number(block, at)
        more, at = _number(block, at)
        length, at = _number(block, at)
        if shared > len(key) or at + more + length > end:
            raise _Damaged("an entry beyond its block")
        if not shared:
            entries.add(begin)
        key = key[:shared] + block[at : at + more]
        yield key, block[at + more : at + more + length]
        at += more + length
    # TensorFlow starts its search at these.
    if not whole <= entries | ({0} if not end else set()):
        raise _Damaged("a block whose parts do not fit")


def _number(data: bytes, at: int) -> tuple[int, int]:
    """(a number of at most 64 bits in groups of seven, where the next thing is)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _Damaged("a number that is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 63:
                break
            return value, at
    raise _Damaged("a number that is too large")


def _table() -> tuple[int, ...]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        found.append(value)
    return tuple(found)


_CRC = _table()


def _crc32c(data: bytes) -> int:
    """Castagnoli's cyclic redundancy check, which no library at hand has."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _masked(value: int) -> int:
    """As it is stored: LevelDB turns it, so that none is taken over itself."""
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
