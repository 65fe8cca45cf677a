"""Files as memory, mapped if the file system supports it."""

from __future__ import annotations

import io
import mmap

from etils import epath


def map_file(path: epath.Path) -> memoryview:
    """Return the bytes of a file; those on a local disk are read when they are used."""
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, AttributeError, io.UnsupportedOperation):
            # An empty file, or one in a bucket.
            return memoryview(file.read())
    return memoryview(mapped)
