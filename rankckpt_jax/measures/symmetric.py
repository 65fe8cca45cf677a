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


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [D], rising, and eigenvectors [D, D] in columns."""
    # NumPy, SciPy and through it JAX each bring an OpenBLAS whose idle threads spin.
    # Where they meet, 10 ms of work became 1.1 s, and 1 s of work (2048 columns) 18 s:
    # one thread is never far from the best.
    with threadpoolctl.threadpool_limits(1):
        return np.linalg.eigh(matrix)


def gram(a: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The product a' diag(weights) a [D, D] of a [N, D], float64; weights 1 if None."""
    weights = np.ones(len(a)) if weights is None else weights
    count = math.ceil(len(a) / _BLOCK)
    padded = np.pad(a, ((0, count * _BLOCK - len(a)), (0, 0)))
    factors = np.pad(weights, (0, len(padded) - len(a))).reshape(count, _BLOCK)
    exact = jax.default_backend() != "tpu"
    with jax.enable_x64(exact or a.dtype == np.float64):
        sums = _sum_products(padded.reshape(count, _BLOCK, -1), factors)
        return np.asarray(sums, np.float64)


@jax.jit
def _sum_products(a: jax.Array, weights: jax.Array) -> jax.Array:
    wide = jnp.zeros(0, float).dtype

    def add(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        block, weight = part
        block = block.astype(wide)
        weighted = block * weight.astype(wide)[:, None]
        return total + blocks.dot(weighted.T, block), None

    start = jnp.zeros((a.shape[2], a.shape[2]), wide)
    return jax.lax.scan(add, start, (a, weights))[0]
