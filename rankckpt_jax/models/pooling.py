"""Pooling with TensorFlow's padding, fast on every platform.

All take [B, H, W, C] and all refuse an image that is too small for their window. On a
CPU the gradients are written out: those that JAX derives pad every window to the size
of the image.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.models import windows


def max_pool(
    x: jax.Array, window: int, stride: int, padding: windows.Padding
) -> jax.Array:
    """Largest value of each window: [B, H, W, C] to [B, H', W', C]."""
    size = (window, window)
    windows.check(x, size, padding)
    if jax.default_backend() == "cpu":
        return _max_pool_on_cpu(x, size, stride, windows.pads(x, size, stride, padding))
    return _reduce_window(x, -jnp.inf, jax.lax.max, size, stride, padding)


def avg_pool(
    x: jax.Array, window: int, stride: int, padding: windows.Padding
) -> jax.Array:
    """Mean of each window's real pixels, not counting padding: [B, H', W', C]."""
    size = (window, window)
    windows.check(x, size, padding)

    def total(values: jax.Array) -> jax.Array:
        if jax.default_backend() == "cpu":
            pads = windows.pads(values, size, stride, padding)
            return _total_on_cpu(values, size, stride, pads)
        return _reduce_window(values, 0.0, jax.lax.add, size, stride, padding)

    count = total(jnp.ones((1, *x.shape[1:3], 1), jnp.float32))
    return (total(x.astype(windows.at_least_float32(x))) / count).astype(x.dtype)


def global_pool(x: jax.Array) -> jax.Array:
    """Averages [B, H, W, C] over space, in float32: [B, C].

    TF-Slim's Inception networks pool with a window of the size that the last feature
    map has at the default image size, or smaller where the map is. Up to that image
    size this is the same; for larger images theirs would give several vectors.
    """
    x = x.astype(windows.at_least_float32(x))
    if jax.default_backend() == "cpu":
        # As a matrix product, since XLA draws the last layers into a plain mean and
        # then takes longer over that than over any other layer.
        batch, height, width, channels = x.shape
        pixels = x.reshape(batch, height * width, channels)
        share = jnp.full((batch, height * width), 1 / (height * width), x.dtype)
        return jnp.einsum(
            "bnc,bn->bc", pixels, share, precision=windows.precision(x.dtype)
        )
    return jnp.mean(x, axis=(1, 2))


def _reduce_window(
    x: jax.Array,
    start: float,
    join: Callable[..., jax.Array],
    window: Sequence[int],
    stride: int,
    padding: windows.Padding,
) -> jax.Array:
    pads = [(0, 0), *windows.pads(x, window, stride, padding), (0, 0)]
    return jax.lax.reduce_window(
        x, start, join, (1, *window, 1), (1, stride, stride, 1), pads
    )


def _join(
    x: jax.Array,
    window: tuple[int, int],
    stride: int,
    pads: windows.Pads,
    join: Callable[..., jax.Array],
    start: float,
) -> jax.Array:
    shifted = windows.shifted(x, window, stride, pads, fill=start)
    return functools.reduce(join, (pixels for _, pixels in shifted))


_total = functools.partial(_join, join=jnp.add, start=0.0)
_largest = functools.partial(_join, join=jnp.maximum, start=-jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _total_on_cpu(
    x: jax.Array, window: tuple[int, int], stride: int, pads: windows.Pads
) -> jax.Array:
    """Sum of each window."""
    return _total(x, window, stride, pads)


def _total_forward(
    x: jax.Array, window: tuple[int, int], stride: int, pads: windows.Pads
) -> tuple[jax.Array, jax.Array]:
    return _total(x, window, stride, pads), x


def _total_backward(
    window: tuple[int, int],
    stride: int,
    pads: windows.Pads,
    x: jax.Array,
    gradient: jax.Array,
) -> tuple[jax.Array]:
    if stride == 1:
        # Again a sum over windows, of an image that is padded once, not nine times.
        return (_total(gradient, window, 1, windows.opposite(window, pads)),)
    of_image = functools.partial(_total, window=window, stride=stride, pads=pads)
    return tuple(jax.linear_transpose(of_image, x)(gradient))


_total_on_cpu.defvjp(_total_forward, _total_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool_on_cpu(
    x: jax.Array, window: tuple[int, int], stride: int, pads: windows.Pads
) -> jax.Array:
    return _largest(x, window, stride, pads)


def _max_pool_forward(
    x: jax.Array, window: tuple[int, int], stride: int, pads: windows.Pads
) -> tuple[jax.Array, jax.Array]:
    return _largest(x, window, stride, pads), x


def _max_pool_backward(
    window: tuple[int, int],
    stride: int,
    pads: windows.Pads,
    x: jax.Array,
    gradient: jax.Array,
) -> tuple[jax.Array]:
    """Gives each window's gradient to its largest pixel, or in equal parts to several.

    Pixel r of an axis lies in the windows floor(r / stride) - m for small m, whose
    values are compared with it where they are spread out. As JAX derives it, all
    windows' selections are padded to the image's size first, which within a network
    takes three to four times as long.
    """
    if stride == 1:
        _, pull_back = jax.vjp(lambda x: _largest(x, window, stride, pads), x)
        return pull_back(gradient)
    y = _largest(x, window, stride, pads)
    shifted = windows.shifted(x, window, stride, pads, fill=-jnp.inf)
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
