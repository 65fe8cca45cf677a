"""TensorFlow's checkpoint format V2, read and written without TensorFlow.

    NAME.index                  a table: type, shape, position and checksum of variables
    NAME.data-00000-of-00001    their bytes

Checkpoints are treated as untrusted input. TensorFlow's own reader aborts the process
if an index is inconsistent but has correct checksums, so `check` also precedes
TensorFlow's loader of SavedModels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints.tensorflow_files import protobuf, slices, table
from rankckpt_jax.checkpoints.tensorflow_files.protobuf import (
    BYTES,
    FIXED32,
    VARINT,
    Field,
    FormatError,
)
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files

# An entry takes some ten bytes more than the variable's name.
_MAX_INDEX_BYTES = 256_000_000
_MAX_SHARDS = 100_000

_HEADER = {1: Field("num_shards", VARINT), 2: Field("endianness", VARINT)}
_ENTRY = {
    1: Field("dtype", VARINT),
    2: Field("shape", BYTES),
    3: Field("shard", VARINT),
    4: Field("start", VARINT),
    5: Field("size", VARINT),
    6: Field("checksum", FIXED32),
    7: Field("slices", BYTES, repeated=True),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A variable, or a slice of one, in the index.

    Attributes:
      variable: Shape, type and slices.
      file: Name of the data file. The position is not used if there are slices.
      start: First byte in it.
      size: Number of bytes.
      checksum: Masked CRC32C of the bytes.
    """

    variable: slices.Variable
    file: str
    start: int
    size: int
    checksum: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The variable's dimensions."""
        return self.variable.shape


Index = dict[str, Entry]
"""Entries by the variables' names, and the slices of partitioned variables by keys
that start with a null character."""


def read_index(prefix: str) -> Index:
    """Read the index of a checkpoint and check that its parts agree.

    Args:
      prefix: "DIR/NAME" of DIR/NAME.index.

    Raises:
      InputError: The index is damaged or forged.
    """
    path = epath.Path(f"{prefix}.index")
    try:
        if files.size_and_time(path)[0] > _MAX_INDEX_BYTES:
            raise FormatError("a file too large for an index")
        return _parse_index(epath.Path(prefix).name, path.read_bytes())
    except (FormatError, OSError) as error:
        raise unreadable(str(path), error) from error


def check(prefix: str) -> Index:
    """Read the index and compare it with the sizes of the data files.

    Raises:
      InputError: The index is damaged or forged, or a data file is missing or shorter
        than the index requires.
    """
    index = read_index(prefix)
    ends: dict[str, int] = {}
    for entry in index.values():
        ends[entry.file] = max(ends.get(entry.file, 0), entry.start + entry.size)
    for name, end in sorted(ends.items()):
        path = epath.Path(prefix).with_name(name)
        size = files.size_and_time(path)[0] if path.exists() else None
        if size is None or size < end:
            raise InputError(
                "A checkpoint cannot be read",
                where=str(path),
                expected=f"a file of {end} bytes or more",
                found="no such file" if size is None else f"{size} bytes",
                fix="copy it again; it may be truncated",
            )
    return index


def read(prefix: str, names: list[str]) -> dict[str, np.ndarray]:
    """Read the values of variables in their stored types.

    The data files are memory-mapped, and every variable is compared with its checksum.

    Args:
      prefix: "DIR/NAME" of DIR/NAME.index.
      names: Variables of number types, all of them in the index.

    Raises:
      InputError: The files are damaged or truncated.
    """
    index = check(prefix)
    mapped: dict[str, memoryview] = {}

    def read_entry(name: str, entry: Entry) -> np.ndarray:
        if entry.file not in mapped:
            path = epath.Path(prefix).with_name(entry.file)
            mapped[entry.file] = table.map_file(path)
        data = mapped[entry.file][entry.start : entry.start + entry.size]
        if table.masked_crc32c(data) != entry.checksum:
            raise FormatError(f"the values of {name!r} do not match their checksum")
        dtype = slices.DTYPES[entry.variable.dtype]
        # A copy, which stays when the file is overwritten.
        return np.frombuffer(data, dtype).reshape(entry.shape).copy()

    def read_slice(name: str, extents: slices.Extents) -> np.ndarray:
        return read_entry(name, index[_text(slices.slice_key(name, extents))])

    result = {}
    for name in names:
        variable = index[name].variable
        try:
            if variable.slices:
                result[name] = slices.join(
                    name, variable, functools.partial(read_slice, name)
                )
            else:
                result[name] = read_entry(name, index[name])
        except (FormatError, OSError) as error:
            raise unreadable(prefix, error) from error
    return result


def write(prefix: epath.Path, values: Mapping[str, np.ndarray]) -> None:
    """Write variables as a checkpoint with one data file; the index comes last.

    Raises:
      StorageError: A file cannot be written.
    """
    numbers = {dtype: number for number, dtype in reversed(slices.DTYPES.items())}
    # The version of the format, 1, is the header's third field.
    entries = [(b"", protobuf.field(1, 1) + protobuf.field(3, protobuf.field(1, 1)))]
    index = prefix.with_name(f"{prefix.name}.index")
    start = 0
    with files.writing(prefix):
        prefix.parent.mkdir(parents=True, exist_ok=True)
        index.unlink(missing_ok=True)
        with prefix.with_name(_data_file(prefix.name, 0, 1)).open("wb") as file:
            for name, value in sorted(values.items()):
                data = np.asarray(value, order="C").tobytes()
                file.write(data)
                dims = b"".join(
                    protobuf.field(2, protobuf.field(1, size)) for size in value.shape
                )
                entry = protobuf.field(1, numbers[value.dtype])
                entry += protobuf.field(2, dims)
                entry += protobuf.field(4, start) + protobuf.field(5, len(data))
                checksum = table.masked_crc32c(data).to_bytes(4, "little")
                entry += protobuf.varint(6 << 3 | FIXED32) + checksum
                entries.append((name.encode(), entry))
                start += len(data)
    files.write_bytes_atomically(index, table.write(entries))


def unreadable(where: str, error: Exception) -> InputError:
    """Return the error for files that are damaged."""
    return InputError(
        "A checkpoint cannot be read",
        where=where,
        expected="intact files of a TensorFlow checkpoint",
        found=str(error),
        fix="copy it again; it may be truncated",
    )


def _data_file(name: str, shard: int, num_shards: int) -> str:
    return f"{name}.data-{shard:05d}-of-{num_shards:05d}"


def _text(key: bytes) -> str:
    """Return a key as text: a variable's name, or an encoded slice."""
    return key.decode("latin-1") if key[:1] == b"\0" else key.decode()


def _parse_index(name: str, data: bytes) -> Index:
    rows = table.read(data)
    key, value = next(rows, (b"", memoryview(b"")))
    header = protobuf.parse(value, _HEADER)
    num_shards = header["num_shards"]
    if key or not 1 <= num_shards < _MAX_SHARDS:
        raise FormatError("the header is missing")
    if header["endianness"]:
        raise FormatError("big-endian values")
    index = {}
    for key, value in rows:
        try:
            text = _text(key)
        except UnicodeDecodeError as error:
            raise FormatError(f"{key[:40]!r} is not a name") from error
        message = protobuf.parse(value, _ENTRY)
        if message["shard"] >= num_shards:
            raise FormatError(f"{text!r} is in shard {message['shard']}/{num_shards}")
        index[text] = Entry(
            slices.parse_variable(
                text, message["dtype"], message["shape"], message["slices"]
            ),
            _data_file(name, message["shard"], num_shards),
            message["start"],
            message["size"],
            message["checksum"],
        )
    slice_keys = {text for text in index if text[:1] == "\0"}
    for text, entry in index.items():
        slice_keys -= _check_entry(text, entry, index)
    if slice_keys:
        raise FormatError("a slice of no variable")
    return index


def _check_entry(name: str, entry: Entry, index: Index) -> set[str]:
    """Raise if an entry's size differs from its type and shape.

    Returns:
      The keys of its slices.
    """
    variable = entry.variable
    if entry.start + entry.size > slices.MAX_BYTES:
        raise FormatError(f"{name!r} has {entry.size} bytes from {entry.start}")
    if not variable.slices:
        is_text = variable.dtype == slices.STRING
        expected = variable.size
        if not is_text:
            expected *= slices.DTYPES[variable.dtype].itemsize
        # A string takes at least the byte of its length.
        if entry.size < expected or (entry.size > expected and not is_text):
            raise FormatError(
                f"{name!r} of shape {list(variable.shape)} and type {variable.dtype} "
                f"has {entry.size} bytes"
            )
    keys = set()
    for extents in variable.slices:
        key = _text(slices.slice_key(name, extents))
        keys.add(key)
        part = index.get(key)
        shape = slices.slice_shape(variable.shape, extents)
        if (
            part is None
            or part.variable.slices
            or part.variable.dtype != variable.dtype
            or part.shape != shape
        ):
            raise FormatError(f"a slice of {name!r} is missing or has another shape")
    return keys


def variables(index: Index) -> dict[str, slices.Variable]:
    """Return the variables of an index, without the slices of partitioned ones."""
    return {name: entry.variable for name, entry in index.items() if name[:1] != "\0"}
