"""Special forms of some operations for XLA's CPU backend.

A form stays only if one of these networks gains a factor of 1.3 in a whole step. The
table gives the CPU time of a step without the form over that with it (two cores, JAX
0.10, float32, batches of 8 to 32).

| form             | MobileNet v2    | ResNet-50       | Inception v3    |
| ---------------- | --------------- | --------------- | --------------- |
| `depthwise_conv` | extraction 6.6  | not used        | not used        |
| `map_parts`      | extraction 1.43 | extraction 1.00 | extraction 0.96 |

Tried and left out, each as the gain of a training step of Inception v3 (batch 16, large
memory pages): gradients of convolutions as matrix products 1.24, of max pooling as
comparisons with shifted images 1.11, of average pooling 0.97, a global pool as a matrix
product 0.96. All of them and barriers against repeated computation together gave 1.10
for ResNet-50, 1.18 for MobileNet v2 and 1.29 to 1.39 for Inception v3.

To measure a training step again: `python -m tests.benchmarks.train --without=FORM`.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rankckpt_jax.devices import target

FORMS = frozenset({"depthwise_conv", "map_parts"})
"""The forms in use on a CPU; empty for plain `lax`, with which tests compare."""


def is_enabled(form: str) -> bool:
    """Return whether to use a form of this file."""
    return form in FORMS and target.platform() == "cpu"


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve each channel of [B, H, W, C] with its own kernel in [h, w, C, 1].

    A sum of shifted images times weights fuses into one vectorized loop. XLA's own
    routine for grouped convolutions is a scalar loop.
    """
    height, width = kernel.shape[:2]
    strides = (stride, stride)
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (height, width), strides, "SAME")
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    # Side of the slice that one element of the kernel is multiplied with.
    rows, columns = (
        (size - side) // stride * stride + 1
        for size, side in zip(x.shape[1:3], (height, width), strict=True)
    )
    products = (
        x[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j, :, 0]
        for i, j in itertools.product(range(height), range(width))
    )
    return functools.reduce(jnp.add, products)


def map_parts(function: Callable[[jax.Array], Any], images: jax.Array) -> Any:
    """Apply a function of single images to a batch [B, ...], one part at a time.

    A part has about one image per core, so its activations stay in the caches.
    """
    batch = images.shape[0]
    cores = os.cpu_count() or 1
    part = next(size for size in range(min(cores, batch), 0, -1) if batch % size == 0)
    if not is_enabled("map_parts") or part == batch:
        return function(images)
    parts = images.reshape(batch // part, part, *images.shape[1:])
    output = jax.lax.map(function, parts)
    return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), output)
