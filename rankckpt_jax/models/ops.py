"""Convolution and pooling with TensorFlow's padding, each stated once in plain `lax`.

All functions take images [B, H, W, C]. With padding "VALID" they raise `InputError` for
images smaller than the window. XLA's CPU backend gets the forms in `cpu` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rankckpt_jax.errors import InputError
from rankckpt_jax.models import cpu

Padding = str | Sequence[tuple[int, int]]
"""TensorFlow's "SAME" or "VALID", or explicit pads ((top, bottom), (left, right))."""


def conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    dtype: Any,
    groups: int = 1,
    precision: Any = jax.lax.Precision.HIGHEST,
) -> jax.Array:
    """Convolve [B, H, W, C] with [h, w, C / groups, D] in `dtype`: [B, H', W', D].

    float32 is computed at full precision unless `precision` is lower. The default of a
    GPU or TPU rounds the inputs to fewer bits.
    """
    _check_size(x, kernel.shape[:2], padding)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    if jnp.dtype(dtype).itemsize < 4:
        precision = jax.lax.Precision.DEFAULT
    if kernel.shape[:2] == (1, 1) and groups == 1 and isinstance(padding, str):
        # A matrix product. On a CPU its gradients are up to 6 times as fast as those of
        # XLA's 1x1 convolution.
        x = x[:, ::stride, ::stride]
        rows = x.reshape(-1, x.shape[-1])
        return jnp.matmul(rows, kernel[0, 0], precision=precision).reshape(
            *x.shape[:3], -1
        )
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=precision,
    )


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    dtype: Any,
    precision: Any = jax.lax.Precision.HIGHEST,
) -> jax.Array:
    """Convolve each channel of [B, H, W, C] with its own kernel in [h, w, C, 1].

    The padding is "SAME".
    """
    if cpu.is_enabled("depthwise_conv"):
        return cpu.depthwise_conv(x.astype(dtype), kernel.astype(dtype), stride)
    kernel = jnp.swapaxes(kernel, 2, 3)
    return conv(x, kernel, stride, "SAME", dtype, x.shape[-1], precision)


def max_pool(x: jax.Array, window: int, stride: int, padding: Padding) -> jax.Array:
    """Return the largest value of each window: [B, H, W, C] to [B, H', W', C]."""
    return _reduce_window(x, -jnp.inf, jax.lax.max, window, stride, padding)


def avg_pool(x: jax.Array, window: int, stride: int, padding: Padding) -> jax.Array:
    """Return the mean of each window's pixels, padding excluded: [B, H', W', C]."""
    ones = jnp.ones((1, *x.shape[1:3], 1), accumulation_dtype(x))
    total, count = (
        _reduce_window(values, 0.0, jax.lax.add, window, stride, padding)
        for values in (x.astype(ones.dtype), ones)
    )
    return (total / count).astype(x.dtype)


def global_pool(x: jax.Array) -> jax.Array:
    """Average [B, H, W, C] over space, in float32: [B, C].

    TF-Slim's Inception networks pool with a window of the last feature map's size at
    the default image size. The results agree up to that image size. For larger images
    TF-Slim would return several vectors.
    """
    return jnp.mean(x, axis=(1, 2), dtype=accumulation_dtype(x))


def accumulation_dtype(x: jax.Array) -> Any:
    """Return the dtype for sums over many pixels of `x`: float32 or wider."""
    return jnp.promote_types(x.dtype, jnp.float32)


def symmetric_padding(window: int) -> Padding:
    """Return equal pads on both sides; "SAME" may put more below and to the right."""
    pads = ((window - 1) // 2, window // 2)
    return "VALID" if window == 1 else (pads, pads)


def _reduce_window(
    x: jax.Array,
    initial: float,
    reduce: Callable[..., jax.Array],
    window: int,
    stride: int,
    padding: Padding,
) -> jax.Array:
    _check_size(x, (window, window), padding)
    size, strides = (1, window, window, 1), (1, stride, stride, 1)
    if not isinstance(padding, str):
        padding = [(0, 0), *padding, (0, 0)]
    return jax.lax.reduce_window(x, initial, reduce, size, strides, padding)


def _check_size(x: jax.Array, window: Sequence[int], padding: Padding) -> None:
    """Raise `InputError` if a window that allows no padding exceeds the feature map."""
    height, width = x.shape[1:3]
    if padding == "VALID" and (height < window[0] or width < window[1]):
        raise InputError(
            "The images are too small for this network",
            expected=f"a feature map of at least {window[0]} x {window[1]} pixels",
            found=f"{height} x {width} pixels",
            fix="use larger images; models.get(name).minimum_image_size is the least",
        )
