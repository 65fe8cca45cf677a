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

# Where Winograd's algorithm is the fastest on a CPU: least input channels, and least
# pixels of a side. With fewer channels its sums outweigh its products, and on smaller
# maps XLA's routine keeps the cores as busy.
_WINOGRAD_CHANNELS = 32
_WINOGRAD_SIDE = 24


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
    if (
        window == (3, 3)
        and stride == 1
        and channels >= _WINOGRAD_CHANNELS
        and min(x.shape[1:3]) >= _WINOGRAD_SIDE
    ):
        return _winograd(x, kernel, tuple(_pads(x, window, stride, padding)))
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
    return (total(x.astype(at_least_float32(x))) / count).astype(x.dtype)


def global_pool(x: jax.Array) -> jax.Array:
    """Averages [B, H, W, C] over space, in float32: [B, C].

    TF-Slim's Inception networks pool with a window of the size that the last feature
    map has at the default image size, or smaller where the map is. Up to that image
    size this is the same; for larger images theirs would give several vectors.
    """
    x = x.astype(at_least_float32(x))
    if jax.default_backend() == "cpu":
        # As a matrix product, since XLA draws the last layers into a plain mean and
        # then takes longer over that than over any other layer.
        batch, height, width, channels = x.shape
        pixels = x.reshape(batch, height * width, channels)
        share = jnp.full((batch, height * width), 1 / (height * width), x.dtype)
        return jnp.einsum("bnc,bn->bc", pixels, share, precision=_precision(x.dtype))
    return jnp.mean(x, axis=(1, 2))


def at_least_float32(x: jax.Array) -> Any:
    """The dtype in which sums over many pixels of `x` are taken."""
    return jnp.promote_types(x.dtype, jnp.float32)


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


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _winograd(
    x: jax.Array, kernel: jax.Array, pads: tuple[tuple[int, int], ...]
) -> jax.Array:
    """A 3x3 convolution of stride 1 by F(2x2, 3x3) (Lavin and Gray, CVPR 2016).

    Each 2x2 tile of the output takes 16 products of a 4x4 tile of the input where the
    plain sum takes 36: Y = A' [(G k G') * (B' d B)] A, the product * over channels a
    matrix product for each of the 16 places. All coefficients are 0, 1/2 and 1; in
    float32 the result is within 2e-6 of the plain sum, relative to its largest value.
    """
    (top, bottom), (left, right) = pads
    batch, width = len(x), kernel.shape[3]
    rows = x.shape[1] + top + bottom - 2
    columns = x.shape[2] + left + right - 2
    tiles = math.ceil(rows / 2), math.ceil(columns / 2)
    # One row and column more where a last tile is half outside.
    more = [(top, bottom + rows % 2), (left, right + columns % 2)]
    x = jnp.pad(x, ((0, 0), *more, (0, 0)))
    g = jnp.asarray([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], x.dtype) / 2
    weights = jnp.einsum(
        "ir,js,rscd->ijcd", g, g, kernel, precision=_precision(x.dtype)
    )

    def transform(x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
        """B' along an axis: four arrays, of every second pixel each."""
        count = 2 * tiles[axis - 1]
        a, b, c, d = (
            jax.lax.slice_in_dim(x, i, i + count - 1, 2, axis) for i in range(4)
        )
        return a - c, b + c, c - b, b - d

    products = [
        [_product(d, weights[i, j]) for j, d in enumerate(transform(row, 2))]
        for i, row in enumerate(transform(x, 1))
    ]
    by_column = [(a + b + c, b - c - d) for a, b, c, d in products]
    by_row = [(a + b + c, b - c - d) for a, b, c, d in zip(*by_column, strict=True)]
    y = jnp.stack([jnp.stack(pixels, axis=2) for pixels in by_row], axis=4)
    y = y.reshape(batch, 2 * tiles[0], 2 * tiles[1], width)
    return y[:, :rows, :columns]


@_winograd.defjvp
def _winograd_jvp(
    pads: tuple[tuple[int, int], ...],
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    # XLA transposes a convolution better than the slices above.
    (x, kernel), (dx, dkernel) = primals, tangents
    change = _general(dx, kernel, 1, pads) + _general(x, dkernel, 1, pads)
    return _winograd(x, kernel, pads), change


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The matrix product that a convolution is once its windows are rows."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return jnp.einsum("bhwc,cd->bhwd", x, matrix, precision=_precision(x.dtype))


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _product(x, kernel), (x, kernel)


def _product_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Written out for the order of "cd": as JAX derives it, the product comes out turned
    # and takes up to four times as long on a CPU.
    x, kernel = kept
    matrix = kernel.reshape(-1, kernel.shape[-1])
    precision = _precision(x.dtype)
    d_x = jnp.einsum("bhwd,cd->bhwc", gradient, matrix, precision=precision)
    d_matrix = jnp.einsum("bhwc,bhwd->cd", x, gradient, precision=precision)
    return d_x, d_matrix.reshape(kernel.shape)


_product.defvjp(_product_forward, _product_backward)


def _output_size(x: jax.Array, window: Sequence[int], stride: int) -> tuple[int, int]:
    """(height, width) after sliding a window within an image."""
    height, width = x.shape[1:3]
    return (height - window[0]) // stride + 1, (width - window[1]) // stride + 1


def _precision(dtype: Any) -> jax.lax.Precision:
    full = jnp.dtype(dtype).itemsize >= 4
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
