"""Sliding windows over images, with TensorFlow's padding: what layers share.

All take [B, H, W, C].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rankckpt_jax.errors import InputError

Padding = str | Sequence[tuple[int, int]]
"""TensorFlow's "SAME" or "VALID", or pads ((top, bottom), (left, right))."""

Pads = tuple[tuple[int, int], ...]
"""((top, bottom), (left, right))."""

NO_PADS: Pads = ((0, 0), (0, 0))
"""Of images that are padded already, or need no padding."""


def at_least_float32(x: jax.Array) -> Any:
    """The dtype in which sums over many pixels of `x` are taken."""
    return jnp.promote_types(x.dtype, jnp.float32)


def opposite(window: Sequence[int], pads: Pads) -> Pads:
    """With which the windows of a result, at stride 1, are those of its image."""
    return tuple(
        (size - 1 - before, size - 1 - after)
        for size, (before, after) in zip(window, pads, strict=True)
    )


def output_size(x: jax.Array, window: Sequence[int], stride: int) -> tuple[int, int]:
    """(height, width) after sliding a window within an image."""
    height, width = x.shape[1:3]
    return (height - window[0]) // stride + 1, (width - window[1]) // stride + 1


def precision(dtype: Any) -> jax.lax.Precision:
    """Of products: none is lost of float32, which a GPU or TPU would round."""
    full = jnp.dtype(dtype).itemsize >= 4
    return jax.lax.Precision.HIGHEST if full else jax.lax.Precision.DEFAULT


def pads(x: jax.Array, window: Sequence[int], stride: int, padding: Padding) -> Pads:
    """What "SAME" or "VALID" means for images of this size."""
    if not isinstance(padding, str):
        return tuple(padding)
    found = jax.lax.padtype_to_pads(x.shape[1:3], window, (stride, stride), padding)
    return tuple(found)


def pad(x: jax.Array, pads: Pads, fill: float = 0.0) -> jax.Array:
    """Surrounds images with pixels of `fill`: [B, top + H + bottom, .., C]."""
    return jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)


def shifted(
    x: jax.Array,
    window: Sequence[int],
    stride: int,
    padding: Padding,
    fill: float = 0.0,
) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields ((row, column), the pixels that meet this element of the window).

    XLA's CPU backend runs grouped convolutions and window reductions as naive loops;
    a sum or maximum of these shifted images fuses into one vectorized loop.
    """
    x = pad(x, pads(x, window, stride, padding), fill)
    height, width = output_size(x, window, stride)
    for row, column in itertools.product(range(window[0]), range(window[1])):
        rows = slice(row, row + (height - 1) * stride + 1, stride)
        columns = slice(column, column + (width - 1) * stride + 1, stride)
        yield (row, column), x[:, rows, columns]


def check(x: jax.Array, window: Sequence[int], padding: Padding) -> None:
    """Refuses feature maps smaller than a window that must lie within them."""
    height, width = x.shape[1:3]
    if padding == "VALID" and (height < window[0] or width < window[1]):
        raise InputError(
            "The images are too small for this network",
            expected=f"a feature map of at least {window[0]} x {window[1]} pixels",
            found=f"{height} x {width} pixels",
            fix="feed it larger images; models.minimum_image_size(name) tells how "
            "large",
        )
