"""Decoded and resized images on disk, in memory-mapped files.

    DIRECTORY/SIZEpx-KEY.images    the images of one split at one size
    DIRECTORY/.SIZEpx-KEY.partial  a file that is being written
    DIRECTORY/.lock                locked by the process that writes

The name and the header of a file hold its *key*: the contents of the images, the
preprocessing, the decoder's version and the size. A file therefore serves all
checkpoints of that size, all stages and runs, and all processes of a host. Pages of a
mapped file are not memory of the process; the system drops and reads them as needed.

Images are kept as `preprocess.resize` returns them. The default limit is a share of the
memory, because reading a larger file from the disk in each pass can take longer than
decoding (`python -m tests.benchmarks.image_cache`).

A file is written under a temporary name, and renamed when it is complete. A header of
4096 bytes is followed by the images, uint8 [N, S, S, 3], and the labels in
little-endian order: int32 [N], or as the key states. A checksum is verified when a
process opens the file. If a file cannot be kept, images are decoded in each pass.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import pathlib
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import filelock
import numpy as np

from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data import stream
from rankckpt_jax.data.splits import Split
from rankckpt_jax.devices import memory, processes, progress, signals
from rankckpt_jax.errors import InputError, Interrupted
from rankckpt_jax.storage import files

OFF = "off"
"""The value of `config.image_cache` for no cache."""

# Raise it with every change of the file format.
_FORMAT = 2
# A multiple of the page size, so that the images are aligned.
_HEADER_BYTES = 4096
_CLASS = np.dtype("<i4")
_SUFFIX, _PARTIAL = ".images", ".partial"
# Images decoded at a time.
_BATCH_SIZE = 64
# Bytes of a file that are read at a time.
_CHUNK = 1 << 23
# Share of the memory that files may take by default.
_MEMORY_SHARE = 0.75
# Bytes that stay free on the disk.
_RESERVE = 10**9
# Seconds between two looks at the lock, and until a process decodes for itself.
_POLL, _PATIENCE = 1.0, 1800.0

_log = logging.getLogger(__name__)

Images = tuple[np.ndarray, np.ndarray]
"""(images uint8 [N, S, S, 3], labels [N] or [N, L]; see `Split.labels`)."""


class _Unusable(Exception):
    """A file cannot be kept, for the reason in the message."""


class ImageCache:
    """The decoded images of splits, kept in the files of a directory."""

    def __init__(self, directory: pathlib.Path | None, limit: float = math.inf):
        """Initialize the cache; the directory is created on first use.

        Args:
          directory: A local directory; None to keep nothing.
          limit: Largest size of all files together in bytes. The least recently used
            files are deleted to stay below it.
        """
        self._directory = directory
        self._limit = limit
        self._held: dict[str, Images] = {}
        self._refused: set[str] = set()

    def get(
        self,
        split: Split,
        size: int,
        preprocess: str,
        process: int = 0,
        count: int = 1,
    ) -> Images | None:
        """Return the decoded images of a split, or None if they cannot be kept.

        The first call decodes the images, or waits while another process does.

        Args:
          split: The split.
          size: Side of the square images in pixels, S.
          preprocess: See `preprocess.resize`.
          process: First example to return.
          count: Every `count`-th example from `process` on is returned.

        Returns:
          Read-only views of a mapped file; see `Images`.

        Raises:
          UnreadableImage: An image cannot be decoded.
          Interrupted: The run was asked to stop.
        """
        rows = len(range(process, split.num_examples, count))
        if self._directory is None or not rows:
            return None
        if count > 1:
            complete = self._find(_make_key(split, size, preprocess, 0, 1))
            if complete is not None:
                images, labels = complete
                return images[process::count], labels[process::count]
        key = _make_key(split, size, preprocess, process, count)
        name = _file_name(key)
        if name in self._refused:
            return None
        try:
            return self._find(key) or self._create(key, split)
        except (OSError, NotImplementedError, _Unusable) as error:
            # A file system without locks raises NotImplementedError.
            self._refused.add(name)
            _log.warning(
                "Image cache %s: %s. %s images of %d px are decoded in each pass. To "
                "keep them, set config.image_cache to a local directory with %s free.",
                *(self._directory, getattr(error, "strerror", None) or error),
                *(f"{rows:,}", size, _describe_bytes(_file_bytes(key))),
            )
            return None

    def _find(self, key: Mapping[str, Any]) -> Images | None:
        """Return the images of a file that is complete and intact."""
        assert self._directory is not None
        name = _file_name(key)
        if name not in self._held:
            path = self._directory / name
            with progress.step("image cache", f"verifying {path}", announce=False):
                found = _read(path, key)
            if found is None:
                return None
            self._held[name] = found
            with contextlib.suppress(OSError):
                os.utime(path)  # The time of the last use.
        return self._held[name]

    def _create(self, key: Mapping[str, Any], split: Split) -> Images:
        assert self._directory is not None
        self._directory.mkdir(parents=True, exist_ok=True)
        with _exclusive(self._directory / ".lock"):
            # Another process may have written it in the meantime.
            found = self._find(key)
            if found is not None:
                return found
            # Only the holder of the lock writes, so these are of killed processes.
            for stale in self._directory.glob(f".*{_PARTIAL}"):
                stale.unlink()
            self._make_room(_file_bytes(key))
            name = _file_name(key)
            self._held[name] = _write(self._directory / name, key, split)
            return self._held[name]

    def _make_room(self, needed: int) -> None:
        """Delete the least recently used files if a new one would not fit."""
        assert self._directory is not None
        sizes = {}
        for path in self._directory.glob(f"*{_SUFFIX}"):
            size, changed = files.size_and_time(path)
            sizes[path] = changed, size
        free = shutil.disk_usage(self._directory).free
        used = sum(size for _, size in sizes.values())
        excess = max(used + needed - self._limit, needed + _RESERVE - free)
        unused = {path for path in sizes if path.name not in self._held}
        removable = sum(sizes[path][1] for path in unused)
        if excess > removable:
            raise _Unusable(
                f"{_describe_bytes(needed)} are needed, {_describe_bytes(free)} are "
                f"free, and files in use take {_describe_bytes(used - removable)} of "
                f"{_describe_bytes(self._limit)} (config.image_cache_gigabytes)"
            )
        for path in sorted(unused, key=lambda path: sizes[path]):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= sizes[path][1]
            _log.info("Image cache: deleted %s, the least recently used file", path)


def open_cache(directory: str = "", gigabytes: float | None = None) -> ImageCache:
    """Return the cache that a config describes.

    Args:
      directory: A local directory, or "off" to keep nothing. By default the variable
        RANKCKPT_IMAGES, or ~/.cache/rankckpt_jax/images.
      gigabytes: Largest size of all files together, in 1e9 bytes. By default three
        quarters of the memory.

    Raises:
      InputError: The directory is not local, or there is no home directory.
    """
    directory = directory or os.environ.get("RANKCKPT_IMAGES", "")
    if directory == OFF:
        return ImageCache(None)
    if "://" in directory:
        raise InputError(
            "Decoded images need a local directory",
            where="config.image_cache",
            expected=f"a local path, or {OFF!r}",
            found=directory,
            fix="leave it empty to use ~/.cache/rankckpt_jax/images",
        )
    try:
        place = files.to_path(directory or "~/.cache/rankckpt_jax/images")
    except InputError:
        if directory:
            raise
        _log.warning(
            "Image cache: there is no home directory, so images are decoded in each "
            "pass. Set config.image_cache to a local directory."
        )
        return ImageCache(None)
    limit = (
        _MEMORY_SHARE * memory.of_machine() if gigabytes is None else gigabytes * 1e9
    )
    return ImageCache(pathlib.Path(place), limit)


def _make_key(
    split: Split, size: int, preprocess: str, process: int, count: int
) -> dict[str, Any]:
    """Return everything that determines the bytes of a file."""
    labels = {}
    if split.target != "classes":
        empty = split.label_array([])
        labels = {"labels": [empty.dtype.newbyteorder("<").str, *empty.shape[1:]]}
    return {
        "format": _FORMAT,
        "images": split.fingerprint,
        "orientation": split.orientation,
        "first_row": process,
        "row_step": count,
        "num_rows": len(range(process, split.num_examples, count)),
        "size": size,
        **preprocess_lib.key(preprocess),
        **labels,
    }


def _file_name(key: Mapping[str, Any]) -> str:
    digest = files.digest(json.dumps(key, sort_keys=True))
    return f"{key['size']}px-{digest[:32]}{_SUFFIX}"


def _image_bytes(key: Mapping[str, Any]) -> int:
    return key["num_rows"] * key["size"] ** 2 * 3 * preprocess_lib.DTYPE.itemsize


def _file_bytes(key: Mapping[str, Any]) -> int:
    dtype, shape = _label_layout(key)
    return _HEADER_BYTES + _image_bytes(key) + math.prod(shape) * dtype.itemsize


def _label_layout(key: Mapping[str, Any]) -> tuple[np.dtype, tuple[int, ...]]:
    """Return the dtype and the shape of the labels in a file."""
    dtype, *width = key.get("labels", [_CLASS.str])
    return np.dtype(dtype), (key["num_rows"], *width)


def _describe_bytes(count: float) -> str:
    if not math.isfinite(count):
        return "any number of bytes"
    if count >= 1e9:
        return f"{count / 1e9:,.1f} GB"
    return f"{max(count, 0) / 1e6:.{0 if count >= 1e7 else 1}f} MB"


def _read(path: pathlib.Path, key: Mapping[str, Any]) -> Images | None:
    """Map a file; log and return None if it does not exist or is damaged."""
    try:
        with path.open("rb") as file:
            header = _read_header(file)
            expected = {"key": dict(key), "checksum": _checksum(file)}
            size = os.fstat(file.fileno()).st_size
            if header == expected and size == _file_bytes(key):
                return _map(file, key)
    except FileNotFoundError:
        return None
    _log.warning("%s: damaged; decoding the images again", path)
    return None


def _read_header(file: BinaryIO) -> Any:
    try:
        return json.loads(file.read(_HEADER_BYTES))
    except ValueError:
        return None


def _checksum(file: BinaryIO) -> int:
    """Return the CRC-32 of the rest of a file.

    It is read, not mapped, because an error of the disk would end the process.
    """
    checksum = 0
    while chunk := file.read(_CHUNK):
        checksum = zlib.crc32(chunk, checksum)
    return checksum


def _map(file: BinaryIO, key: Mapping[str, Any]) -> Images:
    rows, size = key["num_rows"], key["size"]
    pixels = (rows, size, size, 3)
    images = np.memmap(file, preprocess_lib.DTYPE, "r", _HEADER_BYTES, pixels)
    dtype, shape = _label_layout(key)
    start, size = _HEADER_BYTES + _image_bytes(key), math.prod(shape) * dtype.itemsize
    values = np.asarray(np.memmap(file, np.uint8, "r", start, size))
    # Not aligned to 4 bytes for some odd sizes, which NumPy allows.
    return np.asarray(images), values.view(dtype).reshape(shape)


def _write(path: pathlib.Path, key: Mapping[str, Any], split: Split) -> Images:
    """Decode images into a file, which gets its name when it is complete.

    It is not flushed to the disk, which would take longer than decoding. The checksum
    detects what a crash of the machine loses.
    """
    partial = path.with_name(f".{path.stem}{_PARTIAL}")
    start, rows = time.monotonic(), key["num_rows"]
    described = f"{rows:,} images to {key['size']} px"
    size = _describe_bytes(_file_bytes(key))
    _log.info("%s: decoding %s (%s)", split.name, described, size)
    try:
        with partial.open("w+b") as file:
            file.write(bytes(_HEADER_BYTES))
            file.flush()
            # Some file systems cannot be mapped; this finds out before the work.
            np.memmap(file, np.uint8, "r", 0, (_HEADER_BYTES,))
            checksum = 0
            for data in _decode(split, key):
                file.write(data)
                checksum = zlib.crc32(data, checksum)
            file.seek(0)
            header = json.dumps({"key": key, "checksum": checksum})
            file.write(header.encode().ljust(_HEADER_BYTES))
            file.flush()
            images = _map(file, key)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    seconds = time.monotonic() - start
    _log.info("%s: decoded %s (%.1f s)", split.name, described, seconds)
    return images


def _decode(split: Split, key: Mapping[str, Any]) -> Iterator[memoryview]:
    """Yield the contents of a file: images in batches, then all labels."""
    process, count, size = key["first_row"], key["row_step"], key["size"]
    examples = split.examples(None, process, count, 0)
    batches = stream.batches(
        split, size, key["preprocess"], batch_size=_BATCH_SIZE, examples=examples
    )
    labels: list[Any] = []
    with progress.bar(f"{split.name}: decoding", key["num_rows"], "image") as bar:
        for batch in batches:
            first = len(labels)
            labels.extend(batch.labels)
            rows = range(first, len(labels))
            if any(batch.index != [process + count * row for row in rows]):
                raise _Unusable(f"the images of {split.name} are not in a fixed order")
            yield batch.images.data
            bar.update(len(rows))
            _check_stop()
    if len(labels) != key["num_rows"]:
        raise _Unusable(
            f"{split.name} has {len(labels)} images instead of {key['num_rows']}"
        )
    yield np.ascontiguousarray(split.label_array(labels), _label_layout(key)[0]).data


@contextlib.contextmanager
def _exclusive(path: pathlib.Path) -> Iterator[None]:
    """Hold the lock of a directory; wait for a process that holds it."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=_POLL)
    except filelock.Timeout:
        event = "waiting for another process, which decodes images"
        with progress.step("image cache", event):
            _wait(lock)
    try:
        yield
    finally:
        lock.release()


def _wait(lock: filelock.BaseFileLock) -> None:
    start = time.monotonic()
    while not lock.is_locked:
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=_POLL)
            return
        if time.monotonic() - start > _PATIENCE:
            minutes = _PATIENCE / 60
            raise _Unusable(f"another process has locked it for {minutes:.0f} minutes")
        _check_stop()


def _check_stop() -> None:
    # Several processes must agree on the step at which they stop. They decode
    # different numbers of images.
    if processes.process_count() == 1 and signals.should_stop():
        raise Interrupted("decoding images: stopped on request")
