"""Special forms of some operations for XLA's CPU backend.

A form stays only if one of these networks gains a factor of 1.3 in a whole step. The
table gives the CPU time of a step without the form over that with it (two cores, JAX
0.10, float32, batches of 8 to 32).

| form             | MobileNet v2    | ResNet-50       | Inception v3    |
| ---------------- | --------------- | --------------- | --------------- |
| `depthwise_conv` | extraction 6.6  | not used        | not used        |
| `map_parts`      | extraction 1.43 | extraction 1.00 | extraction 0.96 |

`depthwise_conv` also serves converted and PyTorch networks. Images per CPU second at 96
pixels, batch 16, with XLA's form and with ours (`tests/benchmarks/depthwise.py`):

| network                        | extraction | training |
| ------------------------------ | ---------- | -------- |
| MobileNet v2, native           | 64, 284    | 10, 34   |
| MobileNet v2, Keras            | 73, 398    | 7.8, 29  |
| MobileNet v3 small, Keras      | 147, 491   | 26, 94   |
| EfficientNet B0, Keras         | 39, 151    | 14, 17   |
| `mobilenetv3_small_100`, timm  | 89, 250    | 22, 36   |

A training step takes up to 1.6 times as long to compile.

Tried and left out, each as the gain of a training step of Inception v3 (batch 16, large
memory pages): gradients of convolutions as matrix products 1.24, of max pooling as
comparisons with shifted images 1.11, of average pooling 0.97, a global pool as a matrix
product 0.96. All of them and barriers against repeated computation together gave 1.10
for ResNet-50, 1.18 for MobileNet v2 and 1.29 to 1.39 for Inception v3.

To measure a training step again: `python -m tests.benchmarks.train --without=FORM`.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rankckpt_jax.devices import target

FORMS = frozenset({"depthwise_conv", "map_parts"})
"""The forms in use on a CPU; empty for plain `lax`, with which tests compare."""


# Larger kernels keep XLA's form. One layer (batch 8, 28 pixels, 96 channels): CPU time
# of XLA's form over that of the sum, forward and with gradient, and seconds to compile
# the gradient. 7x7: 17, 1.9, 2.4 s. 9x9: 8, 1.6, 3.5 s. 11x11: 10, 1.3, 6.4 s. 13x13:
# 1.5, 0.9, 5.1 s. XLA's gradient takes 0.3 s to compile.
_MOST_PRODUCTS = 81


def is_enabled(form: str) -> bool:
    """Return whether to use a form of this file."""
    return form in FORMS and target.platform() == "cpu"


def suits_depthwise_conv(shape: Sequence[int]) -> bool:
    """Return whether a depthwise kernel [h, w, C, M] is small enough for its form."""
    return math.prod(shape[:2]) <= _MOST_PRODUCTS


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    pads: Sequence[tuple[int, int]],
    dilations: tuple[int, int],
) -> jax.Array:
    """Convolve each channel of [B, H, W, C] with its own kernels in [h, w, C, M].

    A sum of shifted images times weights fuses into one vectorized loop. XLA's own
    routine for grouped convolutions is a scalar loop.
    """
    height, width, _, multiplier = kernel.shape
    if multiplier > 1:
        x = jnp.repeat(x, multiplier, axis=-1)
    weights = kernel.reshape(height, width, -1)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    # Side of the slice that one element of the kernel is multiplied with.
    rows, columns = (
        (size - (side - 1) * dilation - 1) // stride * stride + 1
        for size, side, stride, dilation in zip(
            x.shape[1:3], (height, width), strides, dilations, strict=True
        )
    )
    products = (
        x[:, top : top + rows : strides[0], left : left + columns : strides[1]]
        * weights[i, j]
        for i, top in enumerate(range(0, height * dilations[0], dilations[0]))
        for j, left in enumerate(range(0, width * dilations[1], dilations[1]))
    )
    return functools.reduce(jnp.add, products)


def map_parts(function: Callable[[jax.Array], Any], images: jax.Array) -> Any:
    """Apply a function of single images to a batch [B, ...], one part at a time.

    A part has about one image per core, so its activations stay in the caches. An
    exported program, whose batch size is a symbol, has no parts.
    """
    batch = images.shape[0]
    if not isinstance(batch, int):
        return function(images)
    cores = os.cpu_count() or 1
    part = next(size for size in range(min(cores, batch), 0, -1) if batch % size == 0)
    if not is_enabled("map_parts") or part == batch:
        return function(images)
    parts = images.reshape(batch // part, part, *images.shape[1:])
    output = jax.lax.map(function, parts)
    return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), output)
