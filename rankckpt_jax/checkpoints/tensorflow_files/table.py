"""LevelDB's sorted table: the container of both formats of TensorFlow checkpoints.

    block | 1 byte compression | 4 bytes masked CRC32C      repeated
    footer of 48 bytes: handles (start, size) of two blocks, 8 bytes magic number

The second handle of the footer is of the index block; its values are the handles of
the data blocks. A block holds entries (length of the prefix shared with the previous
key, length of the rest of the key, length of the value; the rest, the value), then the
offsets of entries that share no prefix, then their number.

Reference: https://github.com/google/leveldb/blob/main/doc/table_format.md
"""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import google_crc32c
import numpy as np
from etils import epath

from rankckpt_jax.checkpoints.tensorflow_files.protobuf import (
    FormatError,
    read_varint,
    varint,
)

FOOTER_SIZE = 48
MAGIC = 0xDB4775248B80FB57
_TRAILER = struct.Struct("<BI")
_SNAPPY = 1
# A copy of 64 bytes takes 3 bytes in Snappy's format.
_MAX_COMPRESSION = 22


def read(data: Any) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (key, value) of each entry of a table, sorted by key.

    Args:
      data: The whole file, bytes or a memoryview.

    Raises:
      FormatError: A checksum, a length or the order of the keys is wrong.
    """
    size = len(data)
    if size < FOOTER_SIZE or struct.unpack("<Q", data[size - 8 :])[0] != MAGIC:
        raise FormatError("the end of the file is missing")
    index = _handles(data[size - FOOTER_SIZE :], count=2)[1]
    previous: bytes | None = None
    for last_key, handle in _block(data, *index):
        for key, value in _block(data, *_handles(handle, count=1)[0]):
            if (previous is not None and key <= previous) or key > last_key:
                raise FormatError("keys out of order")
            previous = key
            yield key, value
        # The key of a block lies between its own last key and the next block's first.
        previous = last_key


def map_file(path: epath.Path) -> memoryview:
    """Return the bytes of a file; those on a local disk are read when they are used."""
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, AttributeError, io.UnsupportedOperation):
            # An empty file, or one in a bucket.
            return memoryview(file.read())
    return memoryview(mapped)


def is_table(path: epath.Path) -> bool:
    """Return whether a file ends with the magic number of a table."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 8, 0))
        return file.read() == struct.pack("<Q", MAGIC)


def write(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a table of one uncompressed block.

    Args:
      entries: (key, value) in rising order of the keys.
    """
    entries = list(entries)
    block = _encode_block(entries)
    start, size = varint(0), varint(len(block) - _TRAILER.size)
    index = _encode_block([(entries[-1][0], start + size)])
    # The first handle is of a block of filters, which TensorFlow does not read.
    footer = start + size + varint(len(block)) + varint(len(index) - _TRAILER.size)
    footer = footer.ljust(FOOTER_SIZE - 8, b"\0") + struct.pack("<Q", MAGIC)
    return block + index + footer


def masked_crc32c(data: Any) -> int:
    """Return the checksum of bytes as TensorFlow stores it.

    LevelDB rotates a CRC and adds a constant, so that the CRC of data that contain a
    CRC stays meaningful.
    """
    # The library takes arrays and bytes, but no memoryview.
    value = google_crc32c.value(np.frombuffer(data, np.uint8)) if len(data) else 0
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _handles(data: Any, count: int) -> list[tuple[int, int]]:
    """Decode (start, size) of `count` blocks."""
    result, position = [], 0
    for _ in range(count):
        start, position = read_varint(data, position)
        size, position = read_varint(data, position)
        result.append((start, size))
    return result


def _block(data: Any, start: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (key, value) of each entry of a block."""
    end = start + size
    if end + _TRAILER.size > len(data) - FOOTER_SIZE:
        raise FormatError("a block extends beyond the end of the file")
    compression, checksum = _TRAILER.unpack(data[end : end + _TRAILER.size])
    if masked_crc32c(data[start : end + 1]) != checksum:
        raise FormatError("a block does not match its checksum")
    if compression not in (0, _SNAPPY):
        raise FormatError(f"a block has the unknown compression {compression}")
    stored = data[start:end]
    block = memoryview(decompress_snappy(stored) if compression else stored)
    if len(block) < 4:
        raise FormatError("a block without restart points")
    (count,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 - 4 * count
    if count < 1 or end < 0:
        raise FormatError("a block without restart points")
    restarts = set(struct.unpack(f"<{count}I", block[end:-4]))
    unshared: set[int] = set()
    position, key = 0, b""
    while position < end:
        entry = position
        shared, position = read_varint(block, position)
        rest, position = read_varint(block, position)
        length, position = read_varint(block, position)
        if shared > len(key) or position + rest + length > end:
            raise FormatError("an entry extends beyond its block")
        if not shared:
            unshared.add(entry)
        key = key[:shared] + bytes(block[position : position + rest])
        position += rest
        yield key, block[position : position + length]
        position += length
    # TensorFlow starts a search at a restart point, without further checks.
    if not restarts <= unshared | ({0} if not end else set()):
        raise FormatError("a restart point is not the start of an entry")


def _encode_block(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    body, restarts = bytearray(), []
    for key, value in entries:
        restarts.append(len(body))
        body += varint(0) + varint(len(key)) + varint(len(value)) + key + value
    body += struct.pack(f"<{len(restarts) + 1}IB", *restarts, len(restarts), 0)
    return bytes(body) + struct.pack("<I", masked_crc32c(bytes(body)))


def decompress_snappy(data: Any) -> bytes:
    """Decompress a block in Snappy's raw format.

    Reference: https://github.com/google/snappy/blob/main/format_description.txt

    Raises:
      FormatError: The data are damaged.
    """
    size, position = read_varint(data, 0)
    if size > _MAX_COMPRESSION * len(data):
        raise FormatError(f"{len(data)} compressed bytes cannot hold {size}")
    result = bytearray()
    while position < len(data):
        tag = data[position]
        kind, length = tag & 3, (tag >> 2) + 1
        position += 1
        if kind == 0:  # A literal, whose length may follow in 1 to 4 bytes.
            extra = max(length - 60, 0)
            if extra:
                length = _little_endian(data, position, extra) + 1
                position += extra
            if position + length > len(data):
                raise FormatError("truncated Snappy data")
            result += data[position : position + length]
            position += length
        else:  # A copy of earlier output.
            extra = (1, 2, 4)[kind - 1]
            offset = _little_endian(data, position, extra)
            if kind == 1:
                length = (tag >> 2 & 7) + 4
                offset |= (tag >> 5) << 8
            position += extra
            if not 0 < offset <= len(result):
                raise FormatError("damaged Snappy data")
            begin = len(result) - offset
            source = result[begin : begin + length]
            # A copy that overlaps its own output repeats it.
            result += (source * (length // len(source) + 1))[:length]
        if len(result) > size:
            raise FormatError("damaged Snappy data")
    if len(result) != size:
        raise FormatError("truncated Snappy data")
    return bytes(result)


def _little_endian(data: Any, position: int, count: int) -> int:
    if position + count > len(data):
        raise FormatError("truncated Snappy data")
    return int.from_bytes(data[position : position + count], "little")
