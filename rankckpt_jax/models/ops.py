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

Sides = int | tuple[int, int]
"""One number for both sides, or (vertical, horizontal)."""


def conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: Sides,
    padding: Padding,
    dtype: Any,
    groups: int = 1,
    precision: Any = jax.lax.Precision.HIGHEST,
    dilation: Sides = 1,
) -> jax.Array:
    """Convolve [B, H, W, C] with [h, w, C / groups, D] in `dtype`: [B, H', W', D].

    float32 is computed at full precision unless `precision` is lower. The default of a
    GPU or TPU rounds the inputs to fewer bits. `dilation` is the distance of the pixels
    that neighboring elements of the kernel are multiplied with.
    """
    strides, dilations = _pair(stride), _pair(dilation)
    _check_size(x, _span(kernel, dilations), padding)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    if jnp.dtype(dtype).itemsize < 4:
        precision = jax.lax.Precision.DEFAULT
    if kernel.shape[:2] == (1, 1) and groups == 1 and isinstance(padding, str):
        # A matrix product. On a CPU its gradients are up to 6 times as fast as those of
        # XLA's 1x1 convolution.
        x = x[:, :: strides[0], :: strides[1]]
        rows = x.reshape(-1, x.shape[-1])
        return jnp.matmul(rows, kernel[0, 0], precision=precision).reshape(
            *x.shape[:3], -1
        )
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=dilations,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=precision,
    )


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: Sides,
    dtype: Any,
    precision: Any = jax.lax.Precision.HIGHEST,
    *,
    padding: Padding = "SAME",
    dilation: Sides = 1,
) -> jax.Array:
    """Convolve each channel of [B, H, W, C] with its own M kernels in [h, w, C, M].

    Native networks, converted TensorFlow graphs and PyTorch modules all use it.

    Returns:
      `dtype` [B, H', W', C * M]. Channel c * M + m is that of input channel c and
      kernel m.
    """
    if cpu.is_enabled("depthwise_conv") and cpu.suits_depthwise_conv(kernel.shape):
        strides, dilations = _pair(stride), _pair(dilation)
        span = _span(kernel, dilations)
        _check_size(x, span, padding)
        if isinstance(padding, str):
            padding = jax.lax.padtype_to_pads(x.shape[1:3], span, strides, padding)
        return cpu.depthwise_conv(
            x.astype(dtype), kernel.astype(dtype), strides, padding, dilations
        )
    kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
    return conv(x, kernel, stride, padding, dtype, x.shape[-1], precision, dilation)


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


def _pair(sides: Sides) -> tuple[int, int]:
    return (sides, sides) if isinstance(sides, int) else sides


def _span(kernel: jax.Array, dilations: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of the pixels under a dilated kernel."""
    height, width = (
        (side - 1) * dilation + 1
        for side, dilation in zip(kernel.shape[:2], dilations, strict=True)
    )
    return height, width


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
