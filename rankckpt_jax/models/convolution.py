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

from rankckpt_jax.models import fusion, windows

# Pixels and channels of a window that is gathered rather than convolved: 3x3 of RGB.
_FEW = 27

# Of a kernel's gradient on a CPU: pixels of the images that are worked on together.
_PIXELS_AT_ONCE = 4096


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
        x = windows.pad(x, pads)
        height, width = windows.output_size(x, window, stride)
        y = _general(x, kernel, stride, ((0, 1), (0, 1)))
        return y[:, :height, :width]
    return _general(x, kernel, stride, pads)


def _on_cpu_forward(
    x: jax.Array, kernel: jax.Array, stride: int, pads: windows.Pads
) -> tuple[jax.Array, Any]:
    x = fusion.once(x)
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
    return _depthwise(windows.pad(x, pads), kernel, stride)


def _depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves padded [B, H, W, C] with [h, w, 1, C], each channel apart.

    15 to 35 times as fast as XLA's own routine; see `windows.shifted`.
    """
    shifted = windows.shifted(x, kernel.shape[:2], stride, windows.NO_PADS)
    products = (pixels * kernel[row, col, 0] for (row, col), pixels in shifted)
    return functools.reduce(jnp.add, products)


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: int, pads: windows.Pads
) -> tuple[jax.Array, Any]:
    x = fusion.once(windows.pad(x, pads))
    return _depthwise(x, kernel, stride), (x, kernel)


def _depthwise_backward(
    stride: int, pads: windows.Pads, kept: Any, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    window = kernel.shape[:2]
    height, width = (n - sum(ends) for n, ends in zip(x.shape[1:3], pads, strict=True))

    def of_part(x: jax.Array, gradient: jax.Array) -> jax.Array:
        shifted = windows.shifted(x, window, stride, windows.NO_PADS)
        sums = [jnp.sum(pixels * gradient, axis=(0, 1, 2)) for _, pixels in shifted]
        return jnp.stack(sums)

    if stride == 1:
        # Again a convolution, with the kernel turned round.
        padded = windows.pad(gradient, windows.opposite(window, pads))
        d_x = _depthwise(fusion.once(padded), kernel[::-1, ::-1], 1)
    else:
        whole = jax.linear_transpose(lambda x: _depthwise(x, kernel, stride), x)
        (top, _), (left, _) = pads
        d_x = whole(gradient)[0][:, top : top + height, left : left + width]
    d_kernel = _sum_over_parts(of_part, x, gradient).reshape(kernel.shape)
    return fusion.once(d_x), d_kernel


_depthwise_on_cpu.defvjp(_depthwise_forward, _depthwise_backward)


def _kernel_gradient(
    x: jax.Array,
    gradient: jax.Array,
    window: tuple[int, int],
    stride: int,
    pads: windows.Pads,
) -> jax.Array:
    """The gradient [h, w, C, D] of a kernel, some images at a time.

    It is a matrix product over all pixels of all images, whose windows' pixels are put
    side by side as its columns; only those of some images fit into a core's cache.
    """
    channels = x.shape[3]

    def of_part(x: jax.Array, gradient: jax.Array) -> jax.Array:
        images = [image for _, image in windows.shifted(x, window, stride, pads)]
        return _sum_of_products(jnp.concatenate(images, axis=-1)[None], gradient[None])

    total = _sum_over_parts(of_part, x, gradient)
    return total.reshape(*window, channels, gradient.shape[3])


def _sum_of_products(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """Sums the products of each pixel's channels: [n, b, H, W, C], [.., D] to [C, D].

    Those of one of the n parts are one matrix product. XLA's is up to twice as fast
    with the fewer channels as its rows.
    """
    turned = x.shape[-1] > gradient.shape[-1]
    rows, columns = (
        images.reshape(len(x), -1, images.shape[-1])
        for images in ((gradient, x) if turned else (x, gradient))
    )
    precision = windows.precision(x.dtype)
    products = jnp.einsum("npr,npc->nrc", rows, columns, precision=precision)
    total = jnp.sum(products, axis=0, dtype=windows.at_least_float32(x)).astype(x.dtype)
    # Without the barrier XLA turns the product back, to spare the transposition.
    return jax.lax.optimization_barrier(total).T if turned else total


def _sum_over_parts(
    of_part: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    gradient: jax.Array,
) -> jax.Array:
    """Sums `of_part(some images of x, the same of gradient)` over a batch."""
    wide = windows.at_least_float32(x)
    at_once = _images_at_once(gradient)
    if at_once == len(x):
        return of_part(x, gradient)

    def part(index: Any) -> jax.Array:
        # Cut from the batch as it is: a loop over a batch that is divided beforehand
        # copies it.
        some = (
            jax.lax.dynamic_slice_in_dim(images, index * at_once, at_once)
            for images in (x, gradient)
        )
        return of_part(*some).astype(wide)

    shape = jax.eval_shape(part, 0).shape
    total = jax.lax.fori_loop(
        0,
        len(x) // at_once,
        lambda index, total: total + part(index),
        jnp.zeros(shape, wide),
    )
    return total.astype(x.dtype)


def _images_at_once(images: jax.Array) -> int:
    """The largest divisor of a batch of images that a core's cache holds together."""
    batch, height, width, _ = images.shape
    most = max(1, _PIXELS_AT_ONCE // (height * width))
    return max(n for n in range(1, batch + 1) if batch % n == 0 and n <= most)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The matrix product that a convolution is once its windows are rows."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return jnp.einsum("bhwc,cd->bhwd", x, matrix, precision=windows.precision(x.dtype))


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    x = fusion.once(x)
    return _product(x, kernel), (x, kernel)


def _product_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Written out for the order of "cd": as JAX derives it, the product comes out turned
    # and takes up to four times as long on a CPU.
    x, kernel = kept
    matrix = kernel.reshape(-1, kernel.shape[-1])
    precision = windows.precision(x.dtype)
    d_x = jnp.einsum("bhwd,cd->bhwc", gradient, matrix, precision=precision)
    if jax.default_backend() == "cpu":
        at_once = _images_at_once(x)
        d_kernel = _sum_of_products(
            *(a.reshape(-1, at_once, *a.shape[1:]) for a in (x, gradient))
        )
    else:
        d_kernel = jnp.einsum("bhwc,bhwd->cd", x, gradient, precision=precision)
    return d_x, d_kernel.reshape(kernel.shape)


_product.defvjp(_product_forward, _product_backward)
