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
import numpy as np

from rankckpt_jax.errors import InputError

Padding = str | Sequence[tuple[int, int]]
"""TensorFlow's "SAME" or "VALID", or pads ((top, bottom), (left, right))."""

Pads = tuple[tuple[int, int], ...]
"""((top, bottom), (left, right))."""

# Pixels and channels of a window that is gathered rather than convolved: 3x3 of RGB.
_FEW = 27

# Where Winograd's algorithm is the fastest on a CPU: least input channels, and least
# pixels of a side. With fewer channels its sums outweigh its products, and on smaller
# maps XLA's routine keeps the cores as busy.
_WINOGRAD_CHANNELS = 32
_WINOGRAD_SIDE = 24

# Of a kernel's gradient on a CPU: pixels of the images that are worked on together, and
# most channels at which the pixels of a window are first put side by side.
_PIXELS_AT_ONCE = 4096
_FEW_CHANNELS = 64


def conv(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, dtype: Any
) -> jax.Array:
    """Convolves [B, H, W, C] with [h, w, C, D] in `dtype`: [B, H', W', D].

    In float32 at full precision, where a GPU or TPU would by default round the inputs
    to fewer bits.
    """
    _check(x, kernel.shape[:2], padding)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    window = kernel.shape[:2]
    if window == (1, 1) and isinstance(padding, str):
        return _product(x[:, ::stride, ::stride], kernel)
    if jax.default_backend() != "cpu":
        return _general(x, kernel, stride, padding)
    return _on_cpu(x, kernel, stride, tuple(_pads(x, window, stride, padding)))


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
        pads = tuple(_pads(x, (height, width), stride, padding))
        return _depthwise_on_cpu(x, kernel, stride, pads)
    return _general(x, kernel, stride, padding, groups=channels)


def max_pool(x: jax.Array, window: int, stride: int, padding: Padding) -> jax.Array:
    """Largest value of each window: [B, H, W, C] to [B, H', W', C]."""
    size = (window, window)
    _check(x, size, padding)
    if jax.default_backend() == "cpu":
        return _max_pool_on_cpu(x, size, stride, tuple(_pads(x, size, stride, padding)))
    return _reduce_window(x, -jnp.inf, jax.lax.max, size, stride, padding)


def avg_pool(x: jax.Array, window: int, stride: int, padding: Padding) -> jax.Array:
    """Mean of each window's real pixels, not counting padding: [B, H', W', C]."""
    size = (window, window)
    _check(x, size, padding)

    def total(values: jax.Array) -> jax.Array:
        if jax.default_backend() == "cpu":
            pads = tuple(_pads(values, size, stride, padding))
            return _total_on_cpu(values, size, stride, pads)
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _on_cpu(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """A convolution as fast as TensorFlow's on a CPU.

    XLA's own routine alone is up to five times slower there: it is made for many
    channels and for padded images, and its gradients go through transposed copies of
    whole batches.
    """
    window, channels = kernel.shape[:2], kernel.shape[2]
    if math.prod(window) * channels <= _FEW:
        pixels = [image for _, image in _windows(x, window, stride, pads)]
        return _product(jnp.concatenate(pixels, axis=-1), kernel)
    if (
        window == (3, 3)
        and stride == 1
        and channels >= _WINOGRAD_CHANNELS
        and min(x.shape[1:3]) >= _WINOGRAD_SIDE
    ):
        return _winograd(x, kernel, pads)
    if not any(itertools.chain(*pads)):
        height, width = _output_size(x, window, stride)
        y = _general(x, kernel, stride, ((0, 1), (0, 1)))
        return y[:, :height, :width]
    return _general(x, kernel, stride, pads)


def _on_cpu_forward(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> tuple[jax.Array, Any]:
    return _on_cpu(x, kernel, stride, pads), (x, kernel)


def _on_cpu_backward(
    stride: int, pads: Pads, kept: Any, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    d_kernel = _kernel_gradient(x, gradient, kernel.shape[:2], stride, pads)
    if stride == 1:
        # Again a convolution, with the kernel turned round and its channels exchanged.
        turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
        opposite = _opposite(kernel.shape[:2], pads)
        if min(itertools.chain(*opposite)) >= 0:
            return _on_cpu(gradient, turned, 1, opposite), d_kernel
    (d_x,) = jax.linear_transpose(lambda x: _general(x, kernel, stride, pads), x)(
        gradient
    )
    return d_x, d_kernel


_on_cpu.defvjp(_on_cpu_forward, _on_cpu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_on_cpu(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> jax.Array:
    return _depthwise(x, kernel, stride, pads)


def _depthwise(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Convolves [B, H, W, C] with [h, w, 1, C], each channel apart.

    15 to 35 times as fast as XLA's own routine; see `_windows`.
    """
    shifted = _windows(x, kernel.shape[:2], stride, pads)
    products = (pixels * kernel[row, col, 0] for (row, col), pixels in shifted)
    return functools.reduce(jnp.add, products)


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> tuple[jax.Array, Any]:
    return _depthwise(x, kernel, stride, pads), (x, kernel)


def _depthwise_backward(
    stride: int, pads: Pads, kept: Any, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept

    def of_image(image: jax.Array) -> jax.Array:
        return _depthwise(image, kernel, stride, pads)

    def of_part(x: jax.Array, gradient: jax.Array) -> jax.Array:
        shifted = _windows(x, kernel.shape[:2], stride, pads)
        sums = [jnp.sum(pixels * gradient, axis=(0, 1, 2)) for _, pixels in shifted]
        return jnp.stack(sums)

    (d_x,) = jax.linear_transpose(of_image, x)(gradient)
    return d_x, _sum_over_parts(of_part, x, gradient).reshape(kernel.shape)


_depthwise_on_cpu.defvjp(_depthwise_forward, _depthwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _total_on_cpu(
    x: jax.Array, window: tuple[int, int], stride: int, pads: Pads
) -> jax.Array:
    """Sum of each window."""
    return _total(x, window, stride, pads)


def _total(x: jax.Array, window: tuple[int, int], stride: int, pads: Pads) -> jax.Array:
    shifted = _windows(x, window, stride, pads)
    return functools.reduce(jnp.add, (pixels for _, pixels in shifted))


def _total_forward(
    x: jax.Array, window: tuple[int, int], stride: int, pads: Pads
) -> tuple[jax.Array, jax.Array]:
    return _total(x, window, stride, pads), x


def _total_backward(
    window: tuple[int, int], stride: int, pads: Pads, x: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    if stride == 1:
        # Again a sum over windows, of an image that is padded once, not nine times.
        return (_total(gradient, window, 1, _opposite(window, pads)),)
    of_image = functools.partial(_total, window=window, stride=stride, pads=pads)
    return tuple(jax.linear_transpose(of_image, x)(gradient))


_total_on_cpu.defvjp(_total_forward, _total_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool_on_cpu(
    x: jax.Array, window: tuple[int, int], stride: int, pads: Pads
) -> jax.Array:
    return _largest(x, window, stride, pads)


def _largest(
    x: jax.Array, window: tuple[int, int], stride: int, pads: Pads
) -> jax.Array:
    shifted = _windows(x, window, stride, pads, fill=-jnp.inf)
    return functools.reduce(jnp.maximum, (pixels for _, pixels in shifted))


def _max_pool_forward(
    x: jax.Array, window: tuple[int, int], stride: int, pads: Pads
) -> tuple[jax.Array, jax.Array]:
    return _largest(x, window, stride, pads), x


def _max_pool_backward(
    window: tuple[int, int], stride: int, pads: Pads, x: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    """Gives each window's gradient to its largest pixel, or in equal parts to several.

    Pixel r of an axis lies in the windows floor(r / stride) - m for small m, whose
    values are compared with it where they are spread out. As JAX derives it, all
    windows' selections are padded to the image's size first: four times as slow.
    """
    if stride == 1:
        _, pull_back = jax.vjp(lambda x: _largest(x, window, stride, pads), x)
        return pull_back(gradient)
    y = _largest(x, window, stride, pads)
    shifted = _windows(x, window, stride, pads, fill=-jnp.inf)
    shares = functools.reduce(
        jnp.add, ((pixels == y).astype(x.dtype) for _, pixels in shifted)
    )
    gradient = gradient / shares
    starts = [before for before, _ in pads]
    # Of each pixel's row, or column: which of its windows' elements it is.
    place = [
        np.arange(start, start + n) % stride
        for start, n in zip(starts, x.shape[1:3], strict=True)
    ]

    def spread(values: jax.Array, later: Sequence[int], fill: float) -> jax.Array:
        """The value of each pixel's window, counted back from the last it is in."""
        edges = [(0, 0, 0)] * 4
        for axis, (start, back) in enumerate(zip(starts, later, strict=True), start=1):
            needed = -(-(start + x.shape[axis]) // stride)
            edges[axis] = (back, needed - values.shape[axis] - back, 0)
        values = jax.lax.pad(values, jnp.asarray(fill, values.dtype), edges)
        for axis in (1, 2):
            values = jnp.repeat(values, stride, axis)
        return jax.lax.dynamic_slice(
            values, (0, *starts, 0), (*x.shape[:3], values.shape[3])
        )

    total = jnp.zeros_like(x)
    for later in itertools.product(*(range(-(-size // stride)) for size in window)):
        rows, columns = (
            at + stride * back < size
            for at, back, size in zip(place, later, window, strict=True)
        )
        hit = x == spread(y, later, jnp.inf)
        if not (rows.all() and columns.all()):
            hit &= (rows[:, None] & columns)[None, :, :, None]
        total += jnp.where(hit, spread(gradient, later, 0.0), 0)
    return (total,)


_max_pool_on_cpu.defvjp(_max_pool_forward, _max_pool_backward)


def _kernel_gradient(
    x: jax.Array,
    gradient: jax.Array,
    window: tuple[int, int],
    stride: int,
    pads: Pads,
) -> jax.Array:
    """The gradient [h, w, C, D] of a kernel, some images at a time.

    It is a matrix product for each element of the window, over all pixels of all
    images. The matrices are first transposed, which takes longer than the product
    unless they fit into a core's cache.
    """
    channels, channels_out = x.shape[3], gradient.shape[3]

    def of_part(x: jax.Array, gradient: jax.Array) -> jax.Array:
        images = [image for _, image in _windows(x, window, stride, pads)]
        if channels <= _FEW_CHANNELS:
            images = [jnp.concatenate(images, axis=-1)]
        rows = gradient.reshape(-1, channels_out)
        products = [
            jnp.dot(image.reshape(len(rows), -1).T, rows, precision=_precision(x.dtype))
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
    at_once = max(n for n in range(1, batch + 1) if _fits(n, batch, height * width))
    if at_once == batch:
        return of_part(x, gradient)

    def add(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return total + of_part(*part), None

    parts = tuple(a.reshape(-1, at_once, *a.shape[1:]) for a in (x, gradient))
    shape = jax.eval_shape(of_part, *(part[0] for part in parts))
    total, _ = jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), parts)
    return total


def _fits(count: int, batch: int, pixels: int) -> bool:
    """Whether a batch divides into groups of `count` images that a cache holds."""
    return count == 1 or (batch % count == 0 and count * pixels <= _PIXELS_AT_ONCE)


def _winograd(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
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
    d_kernel = _kernel_gradient(x, gradient, (1, 1), 1, ((0, 0), (0, 0)))
    return d_x, d_kernel.reshape(kernel.shape)


_product.defvjp(_product_forward, _product_backward)


def _opposite(window: Sequence[int], pads: Pads) -> Pads:
    """With which the windows of a result, at stride 1, are those of its image."""
    return tuple(
        (size - 1 - before, size - 1 - after)
        for size, (before, after) in zip(window, pads, strict=True)
    )


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
