"""Convolution with TensorFlow's padding, fast on every platform.

All take [B, H, W, C] and all refuse an image that is too small for their window.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rankckpt_jax.models import windows

# Pixels and channels of a window that is gathered rather than convolved: 3x3 of RGB.
_FEW = 27

# Of a kernel's gradient on a CPU: pixels of the images that are worked on together, and
# most channels at which the pixels of a window are first put side by side.
_PIXELS_AT_ONCE = 4096
_FEW_CHANNELS = 64


def conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: windows.Padding, dtype: Any
) -> jax.Array:
    """Convolves [B, H, W, C] with [h, w, C, D] in `dtype`: [B, H', W', D].

    In float32 at full precision, where a GPU or TPU would by default round the inputs
    to fewer bits.
    """
    windows.check(x, kernel.shape[:2], padding)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    window = kernel.shape[:2]
    if window == (1, 1) and isinstance(padding, str):
        return _product(x[:, ::stride, ::stride], kernel)
    if jax.default_backend() != "cpu":
        return _general(x, kernel, stride, padding)
    return _on_cpu(x, kernel, stride, windows.pads(x, window, stride, padding))


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: windows.Padding, dtype: Any
) -> jax.Array:
    """Convolves each channel apart: [B, H, W, C] with [h, w, C, M] to [.., C * M].

    Output channel c * M + m is input channel c under filter m, as in TensorFlow.
    """
    height, width, channels, multiplier = kernel.shape
    windows.check(x, (height, width), padding)
    x = x.astype(dtype)
    kernel = kernel.astype(dtype).reshape(height, width, 1, channels * multiplier)
    if jax.default_backend() == "cpu" and multiplier == 1:
        pads = windows.pads(x, (height, width), stride, padding)
        return _depthwise_on_cpu(x, kernel, stride, pads)
    return _general(x, kernel, stride, padding, groups=channels)


def _general(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: windows.Padding,
    groups: int = 1,
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=windows.precision(x.dtype),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _on_cpu(
    x: jax.Array, kernel: jax.Array, stride: int, pads: windows.Pads
) -> jax.Array:
    """A convolution in the form that is the fastest on a CPU.

    XLA's own routine alone is up to five times slower there: it is made for many
    channels and for padded images, and its gradients go through transposed copies of
    whole batches.
    """
    window, channels = kernel.shape[:2], kernel.shape[2]
    if math.prod(window) * channels <= _FEW:
        pixels = [image for _, image in windows.shifted(x, window, stride, pads)]
        return _product(jnp.concatenate(pixels, axis=-1), kernel)
    if stride > 1 or not any(itertools.chain(*pads)):
        # A row and column of padding more than is used brings XLA's fast routine.
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        height, width = windows.output_size(x, window, stride)
        y = _general(x, kernel, stride, ((0, 1), (0, 1)))
        return y[:, :height, :width]
    return _general(x, kernel, stride, pads)


def _on_cpu_forward(
    x: jax.Array, kernel: jax.Array, stride: int, pads: windows.Pads
) -> tuple[jax.Array, Any]:
    return _on_cpu(x, kernel, stride, pads), (x, kernel)


def _on_cpu_backward(
    stride: int, pads: windows.Pads, kept: Any, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    d_kernel = _kernel_gradient(x, gradient, kernel.shape[:2], stride, pads)
    if stride == 1:
        # Again a convolution, with the kernel turned round and its channels exchanged.
        turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
        opposite = windows.opposite(kernel.shape[:2], pads)
        if min(itertools.chain(*opposite)) >= 0:
            return _on_cpu(gradient, turned, 1, opposite), d_kernel
    (d_x,) = jax.linear_transpose(lambda x: _general(x, kernel, stride, pads), x)(
        gradient
    )
    return d_x, d_kernel


_on_cpu.defvjp(_on_cpu_forward, _on_cpu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_on_cpu(
    x: jax.Array, kernel: jax.Array, stride: int, pads: windows.Pads
) -> jax.Array:
    return _depthwise(x, kernel, stride, pads)


def _depthwise(
    x: jax.Array, kernel: jax.Array, stride: int, pads: windows.Pads
) -> jax.Array:
    """Convolves [B, H, W, C] with [h, w, 1, C], each channel apart.

    15 to 35 times as fast as XLA's own routine; see `windows.shifted`.
    """
    shifted = windows.shifted(x, kernel.shape[:2], stride, pads)
    products = (pixels * kernel[row, col, 0] for (row, col), pixels in shifted)
    return functools.reduce(jnp.add, products)


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: int, pads: windows.Pads
) -> tuple[jax.Array, Any]:
    return _depthwise(x, kernel, stride, pads), (x, kernel)


def _depthwise_backward(
    stride: int, pads: windows.Pads, kept: Any, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept

    def of_image(image: jax.Array) -> jax.Array:
        return _depthwise(image, kernel, stride, pads)

    def of_part(x: jax.Array, gradient: jax.Array) -> jax.Array:
        shifted = windows.shifted(x, kernel.shape[:2], stride, pads)
        sums = [jnp.sum(pixels * gradient, axis=(0, 1, 2)) for _, pixels in shifted]
        return jnp.stack(sums)

    (d_x,) = jax.linear_transpose(of_image, x)(gradient)
    return d_x, _sum_over_parts(of_part, x, gradient).reshape(kernel.shape)


_depthwise_on_cpu.defvjp(_depthwise_forward, _depthwise_backward)


def _kernel_gradient(
    x: jax.Array,
    gradient: jax.Array,
    window: tuple[int, int],
    stride: int,
    pads: windows.Pads,
) -> jax.Array:
    """The gradient [h, w, C, D] of a kernel, some images at a time.

    It is a matrix product for each element of the window, over all pixels of all
    images. The matrices are first transposed, which takes longer than the product
    unless they fit into a core's cache.
    """
    channels, channels_out = x.shape[3], gradient.shape[3]

    def of_part(x: jax.Array, gradient: jax.Array) -> jax.Array:
        images = [image for _, image in windows.shifted(x, window, stride, pads)]
        if channels <= _FEW_CHANNELS:
            images = [jnp.concatenate(images, axis=-1)]
        rows = gradient.reshape(-1, channels_out)
        products = [
            jnp.dot(
                image.reshape(len(rows), -1).T,
                rows,
                precision=windows.precision(x.dtype),
            )
            for image in images
        ]
        return jnp.concatenate(products)

    total = _sum_over_parts(of_part, x, gradient)
    return total.reshape(*window, channels, channels_out)


def _sum_over_parts(
    of_part: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    gradient: jax.Array,
) -> jax.Array:
    """Sums `of_part(some images of x, the same of gradient)` over a batch."""
    batch, height, width, _ = gradient.shape
    wide = windows.at_least_float32(x)
    at_once = max(n for n in range(1, batch + 1) if _fits(n, batch, height * width))
    if at_once == batch:
        return of_part(x, gradient)

    def add(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return total + of_part(*part).astype(wide), None

    parts = tuple(a.reshape(-1, at_once, *a.shape[1:]) for a in (x, gradient))
    shape = jax.eval_shape(of_part, *(part[0] for part in parts))
    total, _ = jax.lax.scan(add, jnp.zeros(shape.shape, wide), parts)
    return total.astype(x.dtype)


def _fits(count: int, batch: int, pixels: int) -> bool:
    """Whether a batch divides into groups of `count` images that a cache holds."""
    return count == 1 or (batch % count == 0 and count * pixels <= _PIXELS_AT_ONCE)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The matrix product that a convolution is once its windows are rows."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return jnp.einsum("bhwc,cd->bhwd", x, matrix, precision=windows.precision(x.dtype))


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _product(x, kernel), (x, kernel)


def _product_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Written out for the order of "cd": as JAX derives it, the product comes out turned
    # and takes up to four times as long on a CPU.
    x, kernel = kept
    matrix = kernel.reshape(-1, kernel.shape[-1])
    precision = windows.precision(x.dtype)
    d_x = jnp.einsum("bhwd,cd->bhwc", gradient, matrix, precision=precision)
    if jax.default_backend() == "cpu":
        d_kernel = _kernel_gradient(x, gradient, (1, 1), 1, ((0, 0), (0, 0)))
    else:
        d_kernel = jnp.einsum("bhwc,bhwd->cd", x, gradient, precision=precision)
    return d_x, d_kernel.reshape(kernel.shape)


_product.defvjp(_product_forward, _product_backward)
