"""Products and decompositions of symmetric matrices, in float64.

Eigenvectors turn by the error of a matrix over the gap between its eigenvalues, and
real gaps are small. So products are summed in float64, on the device and block by
block: no N x D copy in float64 exists. (A TPU has no float64 worth the name; there
blocks are float32 products of the highest precision.) Decompositions, O(D^3), are small
beside the products' 2 N D^2 FLOP and are done on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
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


def leading(
    matrix: np.ndarray, choose: Callable[[np.ndarray], int]
) -> tuple[np.ndarray, np.ndarray]:
    """All eigenvalues and the eigenvectors of the greatest.

    The eigenvalues are known once the matrix is tridiagonal, which is the smaller part
    of the work; only the vectors that are asked for are then made.

    Args:
      matrix: Symmetric, float64 [D, D].
      choose: From the eigenvalues [D], rising, how many vectors to make.

    Returns:
      The eigenvalues [D], rising, and the vectors [D, count] in columns, in the same
      order: the last belongs to the greatest.
    """
    size = len(matrix)
    if size < 3:
        values, vectors = eigh(matrix)
        return values, vectors[:, size - choose(values) :]
    lapack = scipy.linalg.lapack
    with threadpoolctl.threadpool_limits(1):
        lwork, _ = lapack.dsytrd_lwork(size, lower=1)
        # A symmetric matrix is its own transpose: no copy for Fortran's order.
        reflectors, diagonal, beside, tau, _ = lapack.dsytrd(
            matrix.T, lower=1, lwork=int(lwork)
        )
        values = scipy.linalg.eigvalsh_tridiagonal(diagonal, beside)
        count = choose(values)
        _, turned = scipy.linalg.eigh_tridiagonal(
            diagonal,
            beside,
            select="i",
            select_range=(size - count, size - 1),
            lapack_driver="stemr",
        )
        # The reflectors of rows 1 and on lie as a QR decomposition's would.
        q, rest = reflectors[1:, :-1], np.asfortranarray(turned[1:])
        _, work, _ = lapack.dormqr("L", "N", q, tau, rest, -1)
        rest, _, _ = lapack.dormqr("L", "N", q, tau, rest, int(work[0]))
    return values, np.concatenate([turned[:1], rest])


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
