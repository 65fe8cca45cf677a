"""TransRate (Huang et al. 2022, ICML): coding rate of the features less of each class.

N images, D dimensions, Z [n, D] a subset of the centered features,

    R(Z)      = 1/2 log det(I + Z'Z / (n eps))                  (their equation 6)
    TransRate = R(F) - 1/C sum_c R(F_c)                         (their equation 7)

where F_c are the features of class c about the mean of all features, and eps = 1e-4. As
in published code, classes have equal weights. If the mean variance of a dimension is
below eps, both rates are about 0, and a warning says so.

Cost: 2 N D^2 FLOP for R(F), shared, and D^3 / 3. Classes of n images cost 2 N n D if
n < D (since Z Z' has the same determinant), else 2 N D^2. Range: at least 0 for
balanced classes; grows with D. Higher is better.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.devices import target
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import blocks, scaling, symmetric
from rankckpt_jax.measures.statistics.class_statistics import Statistics

_BLOCK = 1024
"""Rows of a class that are multiplied at once."""


@register(
    "transrate",
    cost="N D^2 + D^3",
    uses_weights=True,
    regimes=(regimes.FEW_IMAGES, regimes.SINGLE_IMAGES),
)
def transrate(inputs: Inputs, eps: float = 1e-4) -> Result:
    """Return TransRate of features [N, D] and labels [N] with distortion `eps`."""
    statistics = inputs.statistics
    scaled = statistics.scatter / (statistics.total * eps)
    warning = scaling.warn_if(
        bool(np.trace(scaled) < len(scaled)), f"the distortion eps = {eps:g}"
    )
    scaled.flat[:: len(scaled) + 1] += 1
    rate = symmetric.log_det(scaled) / 2
    exact = target.platform() != "tpu"
    with jax.enable_x64(exact or statistics.centered.dtype == np.float64):
        x = jnp.asarray(statistics.centered)
        class_rates = np.concatenate(
            [
                np.asarray(_rates(x, statistics.rest, rows, weights, eps))
                for rows, weights in _group_by_size(statistics)
            ]
        )
    score = rate - float(np.mean(class_rates))
    return Result(float(score), {"rate": float(rate)}, warning)


def _group_by_size(statistics: Statistics) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows [K, n] of K classes of similar size and weights, 0 for padding.

    At most an eighth is padding, and few sizes need a compilation. Padding all classes
    to the largest one would make each of them as expensive.
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
    """Return R of K classes [K], from their rows [K, n] of x [N, D] - rest."""
    wide, size = jnp.zeros(0, float).dtype, x.shape[1]

    def scaled(members: jax.Array, scale: jax.Array) -> jax.Array:
        return (x[members].astype(wide) - rest[None]) * scale[:, None]

    def class_rate(group: tuple[jax.Array, jax.Array]) -> jax.Array:
        members, weight = group
        scale = jnp.sqrt(weight / (jnp.sum(weight) * eps)).astype(wide)
        if len(members) <= size:
            z = scaled(members, scale)
            product = blocks.dot(z, z.T)
        else:
            # In blocks, since a class can have most of the images.
            padding = -len(members) % _BLOCK
            parts = (
                jnp.pad(members, (0, padding)).reshape(-1, _BLOCK),
                jnp.pad(scale, (0, padding)).reshape(-1, _BLOCK),
            )

            def add(total: jax.Array, part: tuple) -> tuple[jax.Array, None]:
                z = scaled(*part)
                return total + blocks.dot(z.T, z), None

            product, _ = jax.lax.scan(add, jnp.zeros((size, size), wide), parts)
        matrix = jnp.eye(len(product), dtype=wide) + product
        factor = jnp.linalg.cholesky(matrix)
        return jnp.sum(jnp.log(jnp.diagonal(factor)))

    return jax.lax.map(class_rate, (rows, weights))
