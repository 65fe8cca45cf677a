"""Convolution and pooling with TensorFlow's padding, fast on every platform.

All take [B, H, W, C] and all refuse an image that is too small for their window.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rankckpt_jax.errors import InputError

Padding = str | Sequence[tuple[int, int]]
"""TensorFlow's "SAME" or "VALID", or pads ((top, bottom), (left, right))."""

# Pixels and channels of a window that is gathered rather than convolved: 3x3 of RGB.
_FEW = 27


def conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, dtype: Any
) -> jax.Array:
    """Convolves [B, H, W, C] with [h, w, C, D] in `dtype`: [B, H', W', D].

    In float32 at full precision, where a GPU or TPU would by default round the inputs
    to fewer bits.
    """
    _check(x, kernel.shape[:2], padding)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    window, channels = kernel.shape[:2], kernel.shape[2]
    if window == (1, 1) and isinstance(padding, str):
        return _product(x[:, ::stride, ::stride], kernel)
    if jax.default_backend() != "cpu":
        return _general(x, kernel, stride, padding)
    # What follows is as fast as TensorFlow on a CPU, where XLA's routine alone is up to
    # five times slower: it is made for many channels, and for padded images.
    if math.prod(window) * channels <= _FEW:
        pixels = [image for _, image in _windows(x, window, stride, padding)]
        return _product(jnp.concatenate(pixels, axis=-1), kernel)
    if padding == "VALID":
        height, width = _output_size(x, window, stride)
        y = _general(x, kernel, stride, ((0, 1), (0, 1)))
        return y[:, :height, :width]
    return _general(x, kernel, stride, padding)


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, dtype: Any
) -> jax.Array:
    """Convolves each channel apart: [B, H, W, C] with [h, w, C, M] to [.., C * M].

    Output channel c * M + m is input channel c under filter m, as in TensorFlow.
    """
    height, width, channels, multiplier = kernel.shape
    _check(x, (height, width), padding)
    x = x.astype(dtype)
    kernel = kernel.astype(dtype).reshape(height, width, 1, channels * multiplier)
    if jax.default_backend() == "cpu" and multiplier == 1:
        # 15 to 35 times as fast; see `_windows`.
        shifted = _windows(x, (height, width), stride, padding)
        products = (pixels * kernel[row, col, 0] for (row, col), pixels in shifted)
        return functools.reduce(jnp.add, products)
    return _general(x, kernel, stride, padding, groups=channels)


def max_pool(x: jax.Array, window: int, stride: int, padding: Padding) -> jax.Array:
    """Largest value of each window: [B, H, W, C] to [B, H', W', C]."""
    size = (window, window)
    _check(x, size, padding)
    if jax.default_backend() == "cpu":
        shifted = _windows(x, size, stride, padding, fill=-jnp.inf)
        return functools.reduce(jnp.maximum, (pixels for _, pixels in shifted))
    return _reduce_window(x, -jnp.inf, jax.lax.max, size, stride, padding)


def avg_pool(x: jax.Array, window: int, stride: int, padding: Padding) -> jax.Array:
    """Mean of each window's real pixels, not counting padding: [B, H', W', C]."""
    size = (window, window)
    _check(x, size, padding)

    def total(values: jax.Array) -> jax.Array:
        if jax.default_backend() == "cpu":
            shifted = _windows(values, size, stride, padding)
            return functools.reduce(jnp.add, (pixels for _, pixels in shifted))
        return _reduce_window(values, 0.0, jax.lax.add, size, stride, padding)

    count = total(jnp.ones((1, *x.shape[1:3], 1), jnp.float32))
    return (total(x.astype(jnp.float32)) / count).astype(x.dtype)


def global_pool(x: jax.Array) -> jax.Array:
    """Averages [B, H, W, C] over space, in float32: [B, C].

    TF-Slim's Inception networks pool with a window of the size that the last feature
    map has at the default image size, or smaller where the map is. Up to that image
    size this is the same; for larger images theirs would give several vectors.
    """
    x = x.astype(jnp.float32)
    if jax.default_backend() == "cpu":
        # As a matrix product, since XLA draws the last layers into a plain mean and
        # then takes longer over that than over any other layer.
        batch, height, width, channels = x.shape
        pixels = x.reshape(batch, height * width, channels)
        share = jnp.full((batch, height * width), 1 / (height * width), jnp.float32)
        return jnp.einsum("bnc,bn->bc", pixels, share, precision=_precision(x.dtype))
    return jnp.mean(x, axis=(1, 2))


def _general(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, groups: int = 1
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=_precision(x.dtype),
    )


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The matrix product that a convolution is once its windows are rows."""
    kernel = kernel.reshape(-1, kernel.shape[-1])
    return jnp.einsum("bhwc,cd->bhwd", x, kernel, precision=_precision(x.dtype))


def _output_size(x: jax.Array, window: Sequence[int], stride: int) -> tuple[int, int]:
    """(height, width) after sliding a window within an image."""
    height, width = x.shape[1:3]
    return (height - window[0]) // stride + 1, (width - window[1]) // stride + 1


def _precision(dtype: Any) -> jax.lax.Precision:
    full = jnp.dtype(dtype) == jnp.float32
    return jax.lax.Precision.HIGHEST if full else jax.lax.Precision.DEFAULT


def _pads(
    x: jax.Array, window: Sequence[int], stride: int, padding: Padding
) -> Sequence[tuple[int, int]]:
    if not isinstance(padding, str):
        return padding
    return jax.lax.padtype_to_pads(x.shape[1:3], window, (stride, stride), padding)


def _reduce_window(
    x: jax.Array,
    start: float,
    join: Callable[..., jax.Array],
    window: Sequence[int],
    stride: int,
    padding: Padding,
) -> jax.Array:
    pads = [(0, 0), *_pads(x, window, stride, padding), (0, 0)]
    return jax.lax.reduce_window(
        x, start, join, (1, *window, 1), (1, stride, stride, 1), pads
    )


def _windows(
    x: jax.Array,
    window: Sequence[int],
    stride: int,
    padding: Padding,
    fill: float = 0.0,
) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields ((row, column), the pixels that meet this element of the window).

    XLA's CPU backend runs grouped convolutions and window reductions as naive loops;
    a sum or maximum of these shifted images fuses into one vectorised loop.
    """
    pads = ((0, 0), *_pads(x, window, stride, padding), (0, 0))
    x = jnp.pad(x, pads, constant_values=fill)
    height, width = _output_size(x, window, stride)
    for row, column in itertools.product(range(window[0]), range(window[1])):
        rows = slice(row, row + (height - 1) * stride + 1, stride)
        columns = slice(column, column + (width - 1) * stride + 1, stride)
        yield (row, column), x[:, rows, columns]


def _check(x: jax.Array, window: Sequence[int], padding: Padding) -> None:
    """Refuses feature maps smaller than a window that must lie within them."""
    height, width = x.shape[1:3]
    if padding == "VALID" and (height < window[0] or width < window[1]):
        raise InputError(
            "The images are too small for this network",
            expected=f"a feature map of at least {window[0]} x {window[1]} pixels",
            found=f"{height} x {width} pixels",
            mend="feed it larger images; models.minimum_image_size(name) tells how "
            "large",
        )
