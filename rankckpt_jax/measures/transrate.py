"""TransRate (Huang et al. 2022, ICML): coding rate of all less that of a class.

N images, D dimensions, Z [n, D] some of the centred features,

    R(Z)      = 1/2 log det(I + Z'Z / (n eps))                  (their equation 6)
    TransRate = R(F) - 1/C sum_c R(F_c)                         (their equation 7)

with F_c the features of class c about the mean of all, and eps = 1e-4 as in published
code, which weighs classes alike.

Cost: 2 N D^2 for R(F), shared; for the classes 2 N n D with n images each where n < D
(the determinant of ZZ' is the same), else 2 N D^2. Range: at least 0 for balanced
classes; grows with D. Higher is better.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.measures import blocks
from rankckpt_jax.measures.registry import Result, register
from rankckpt_jax.measures.statistics import Statistics


@register("transrate")
def transrate(
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    statistics: Statistics,
    eps: float = 1e-4,
) -> Result:
    """TransRate of features [N, D] and labels [N]; `eps` is the distortion."""
    del features, labels, num_classes
    count = len(statistics.labels)
    whole = np.sum(np.log1p(statistics.spectrum[0] / (count * eps))) / 2
    counts = statistics.counts.astype(int)
    starts = np.cumsum(counts) - counts
    # A gather pads all classes to the largest: one shape for all.
    offsets = np.arange(counts.max())
    rows = statistics.by_class[np.minimum(starts[:, None] + offsets, count - 1)]
    valid = offsets < counts[:, None]
    exact = jax.default_backend() != "tpu"
    with jax.enable_x64(exact or statistics.centred.dtype == np.float64):
        rates = np.asarray(
            _rates(statistics.centred, statistics.rest, rows, valid, counts * eps)
        )
    rate = whole - float(np.mean(rates))
    return Result(float(rate), {"rate": float(whole)})


@jax.jit
def _rates(
    x: jax.Array, rest: jax.Array, rows: jax.Array, valid: jax.Array, scale: jax.Array
) -> jax.Array:
    """R of each class [C], its rows [C, n] of x [N, D] less `rest` where valid."""
    wide = jnp.zeros(0, float).dtype
    tall = rows.shape[1] > x.shape[1]

    def one(group: tuple[jax.Array, ...]) -> jax.Array:
        rows, valid, scale = group
        z = jnp.where(valid[:, None], x[rows].astype(wide) - rest, 0)
        product = blocks.dot(z.T, z) if tall else blocks.dot(z, z.T)
        matrix = jnp.eye(len(product), dtype=wide) + product / scale
        factor = jnp.linalg.cholesky(matrix)
        return jnp.sum(jnp.log(jnp.diagonal(factor)))

    return jax.lax.map(one, (rows, valid, scale.astype(wide)))
