"""Products and decompositions of symmetric matrices, in float64.

Eigenvectors turn by the error of a matrix over the gap between its eigenvalues, and
real gaps are small. So products are summed in float64, on the device and block by
block: no N x D copy in float64 exists. (A TPU has no float64 worth the name; there
blocks are float32 products of the highest precision.) Decompositions, O(D^3), are small
beside the products' 2 N D^2 FLOP and are done on the host.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl

from rankckpt_jax.measures import blocks

_BLOCK = 1024
"""Rows whose product is formed at once."""

_PANELS = 4
"""Panels of columns; more would save work and make the products too narrow."""


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [D], rising, and eigenvectors [D, D] in columns."""
    # NumPy, SciPy and through it JAX each bring an OpenBLAS whose idle threads spin.
    # Where they meet, 10 ms of work became 1.1 s, and 1 s of work (2048 columns) 18 s:
    # one thread is never far from the best.
    with threadpoolctl.threadpool_limits(1):
        return np.linalg.eigh(matrix)


def gram(a: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The product a' diag(weights) a [D, D] of a [N, D], float64; weights 1 if None.

    Of the symmetric product only panels on and above the diagonal are formed, about
    5/8 of it.
    """
    weights = np.ones(len(a)) if weights is None else weights
    count = math.ceil(len(a) / _BLOCK)
    padded = np.pad(a, ((0, count * _BLOCK - len(a)), (0, 0)))
    factors = np.pad(weights, (0, len(padded) - len(a))).reshape(count, _BLOCK)
    exact = jax.default_backend() != "tpu"
    with jax.enable_x64(exact or a.dtype == np.float64):
        panels = _sum_products(padded.reshape(count, _BLOCK, -1), factors)
    product = np.empty((a.shape[1], a.shape[1]))
    for panel in panels:
        start = a.shape[1] - panel.shape[1]
        rows = slice(start, start + len(panel))
        product[rows, start:] = panel
        product[start:, rows] = product[rows, start:].T
    return product


@jax.jit
def _sum_products(a: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
    """Panels of rows [start, stop) and columns [start, D) of the product."""
    wide = jnp.zeros(0, float).dtype
    width, dimensions = math.ceil(a.shape[2] / _PANELS), a.shape[2]
    starts = range(0, dimensions, width)

    def add(
        totals: tuple[jax.Array, ...], part: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, ...], None]:
        block, weight = part
        block = block.astype(wide)
        # Turned once: XLA's product of a transposed float64 matrix runs at half speed.
        turned = jax.lax.optimization_barrier((block * weight.astype(wide)[:, None]).T)
        products = (
            blocks.dot(turned[start : start + width], block[:, start:])
            for start in starts
        )
        return tuple(t + p for t, p in zip(totals, products, strict=True)), None

    zeros = tuple(
        jnp.zeros((min(width, dimensions - start), dimensions - start), wide)
        for start in starts
    )
    return jax.lax.scan(add, zeros, (a, weights))[0]
