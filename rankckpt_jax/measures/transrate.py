"""TransRate (Huang et al. 2022, ICML): coding rate of all less that of a class.

N images, D dimensions, Z [n, D] some of the centered features,

    R(Z)      = 1/2 log det(I + Z'Z / (n eps))                  (their equation 6)
    TransRate = R(F) - 1/C sum_c R(F_c)                         (their equation 7)

with F_c the features of class c about the mean of all, and eps = 1e-4 as in published
code, which weighs classes alike.

Cost: 2 N D^2 for R(F), shared, and D^3 / 3; for the classes 2 N n D with n images each
where n < D (the determinant of ZZ' is the same), else 2 N D^2. Range: at least 0 for
balanced classes; grows with D. Higher is better.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import blocks, symmetric
from rankckpt_jax.measures.statistics.class_statistics import Statistics

_BLOCK = 1024
"""Rows of a class whose products are formed at once."""


@register("transrate", uses_weights=True)
def transrate(inputs: Inputs, eps: float = 1e-4) -> Result:
    """TransRate of features [N, D] and labels [N]; `eps` is the distortion."""
    statistics = inputs.statistics
    scaled = statistics.scatter / (statistics.total * eps)
    scaled.flat[:: len(scaled) + 1] += 1
    whole = symmetric.log_det(scaled) / 2
    exact = jax.default_backend() != "tpu"
    with jax.enable_x64(exact or statistics.centered.dtype == np.float64):
        x = jnp.asarray(statistics.centered)
        found = [
            _rates(x, statistics.rest, rows, weights, eps)
            for rows, weights in _of_one_size(statistics)
        ]
        rates = np.concatenate([np.asarray(rate) for rate in found])
    rate = whole - float(np.mean(rates))
    return Result(float(rate), {"rate": float(whole)})


def _of_one_size(statistics: Statistics) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows [K, n] of K classes of about one size, and their weights, 0 for padding.

    At most an eighth is padding, and few sizes are compiled for: padded to the largest,
    one large class would make all the others as costly.
    """
    sizes: dict[int, list[np.ndarray]] = {}
    for group in statistics.groups:
        step = max(8, 1 << max(len(group).bit_length() - 3, 0))
        sizes.setdefault(-(-len(group) // step) * step, []).append(group)
    for size, groups in sorted(sizes.items()):
        rows = np.zeros((len(groups), size), np.int32)
        weights = np.zeros((len(groups), size))
        for i, group in enumerate(groups):
            rows[i, : len(group)] = group
            weights[i, : len(group)] = statistics.weights[group]
        yield rows, weights


@functools.partial(jax.jit, static_argnames="eps")
def _rates(
    x: jax.Array, rest: jax.Array, rows: jax.Array, weights: jax.Array, eps: float
) -> jax.Array:
    """R of K classes [K], their rows [K, n] of x [N, D] less `rest`."""
    wide, size = jnp.zeros(0, float).dtype, x.shape[1]

    def scaled(chosen: jax.Array, scale: jax.Array) -> jax.Array:
        return (x[chosen].astype(wide) - rest) * scale[:, None]

    def one(group: tuple[jax.Array, jax.Array]) -> jax.Array:
        chosen, weight = group
        scale = jnp.sqrt(weight / (jnp.sum(weight) * eps)).astype(wide)
        if len(chosen) <= size:
            z = scaled(chosen, scale)
            product = blocks.dot(z, z.T)
        else:
            # Block by block: a class may have most of the images.
            padding = -len(chosen) % _BLOCK
            parts = (
                jnp.pad(chosen, (0, padding)).reshape(-1, _BLOCK),
                jnp.pad(scale, (0, padding)).reshape(-1, _BLOCK),
            )

            def add(total: jax.Array, part: tuple) -> tuple[jax.Array, None]:
                z = scaled(*part)
                return total + blocks.dot(z.T, z), None

            product, _ = jax.lax.scan(add, jnp.zeros((size, size), wide), parts)
        matrix = jnp.eye(len(product), dtype=wide) + product
        factor = jnp.linalg.cholesky(matrix)
        return jnp.sum(jnp.log(jnp.diagonal(factor)))

    return jax.lax.map(one, (rows, weights))
