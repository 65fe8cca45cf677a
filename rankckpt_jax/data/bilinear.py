"""Bilinear interpolation without antialiasing, equal to TensorFlow's to the last bit.

VTAB and TF-Slim resize with TensorFlow. The operations and their order are those of its
kernel `ResizeBilinear`: in float32, first along rows, then along columns.
"""

from __future__ import annotations

import functools
import math
import threading
from typing import Any

import numpy as np

# Every pass reuses its arrays, because new ones of this size take longer to be mapped
# than to be filled.
_arrays = threading.local()


def resize(
    image: np.ndarray, height: int, width: int, *, half_pixel_centers: bool
) -> np.ndarray:
    """Resize an image.

    Args:
      image: uint8 [H, W, 3].
      height: Height of the result in pixels.
      width: Width of the result in pixels.
      half_pixel_centers: Whether a pixel's position is that of its center, as in
        TensorFlow 2. If not, it is that of its corner, as in TensorFlow 1.

    Returns:
      uint8 [height, width, 3], rounded half to even.
    """
    above, below, y = _positions(image.shape[0], height, half_pixel_centers)
    left, right, x = _positions(image.shape[1], width, half_pixel_centers)
    if image.shape[0] > 2 * height:
        # Most rows are not used.
        image = image[np.concatenate([above, below])]
        above, below = np.arange(height), np.arange(height, 2 * height)
    rows, values = len(image), width * 3
    first = _take(image, left, 1, _array("first", (rows, width, 3), np.uint8))
    second = _take(image, right, 1, _array("second", (rows, width, 3), np.uint8))
    first, second = first.reshape(rows, values), second.reshape(rows, values)
    wide = _array("wide", (rows, values), np.float32)
    np.subtract(second, first, out=wide, dtype=np.float32)
    wide *= np.repeat(x, 3)
    wide += first
    top = _take(wide, above, 0, _array("top", (height, values), np.float32))
    result = _take(wide, below, 0, _array("result", (height, values), np.float32))
    result -= top
    result *= y[:, None]
    result += top
    np.rint(result, out=result)
    return result.astype(np.uint8).reshape(height, width, 3)


@functools.lru_cache(maxsize=1024)
def _positions(
    length: int, size: int, half_pixel_centers: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pixels on both sides of each new one, and its weight between them."""
    scale = np.float32(length) / np.float32(size)
    at = np.arange(size, dtype=np.float32)
    half = np.float32(0.5)
    at = (at + half) * scale - half if half_pixel_centers else at * scale
    before = np.floor(at)
    lower = np.maximum(before.astype(np.int64), 0)
    upper = np.minimum(np.ceil(at).astype(np.int64), length - 1)
    return lower, upper, at - before


def _take(array: np.ndarray, at: np.ndarray, axis: int, out: np.ndarray) -> np.ndarray:
    # Indices are valid. By default NumPy would check them, into a copy of `out`.
    return np.take(array, at, axis, out=out, mode="clip")


def _array(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return this thread's array of a name; its values are those of an earlier use."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    held = _arrays.__dict__.get(name)
    if held is None or len(held) < size:
        held = _arrays.__dict__[name] = np.empty(size, np.uint8)
    return held[:size].view(dtype).reshape(shape)
