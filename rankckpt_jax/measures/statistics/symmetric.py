"""Products and decompositions of symmetric matrices, in float64.

Eigenvectors turn by the error of a matrix over the gap between its eigenvalues, and
real gaps are small. So products are summed in float64, block by block: no N x D copy in
float64 exists. (A TPU has no float64 worth the name; there blocks are float32 products
of the highest precision.) An accelerator forms them; where there is none, BLAS does, at
1.7 times the rate of XLA's float64. Decompositions are done on the host, in FLOP:

    factor                      D^3 / 3         solves and determinants
    leading, projected          4 D^3 / 3       A = Q T Q', T tridiagonal, whose
                                                eigenvectors are cheap; Q is applied
                                                only to what is asked for
    eigh                        4 D^3           all eigenvectors

NumPy, SciPy and through it JAX each bring an OpenBLAS whose idle threads spin. Where
they meet, 10 ms of work became 1.1 s, and 1 s of work (2048 columns) 18 s: one thread
is never far from the best.
"""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import threadpoolctl

from rankckpt_jax.devices import mapping
from rankckpt_jax.measures.statistics import blocks

_BLOCK = 1024
"""Rows whose product is formed at once."""

_PANELS = 4
"""Panels of columns at least; more would save work and make the products narrow."""


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [D], rising, and eigenvectors [D, D] in columns."""
    with threadpoolctl.threadpool_limits(1):
        return np.linalg.eigh(matrix)


def factor(matrix: np.ndarray, least: float = 0.0) -> np.ndarray | None:
    """L [D, D], lower triangular, with A = L L'.

    Args:
      matrix: A, symmetric, float64 [D, D].
      least: Reciprocal of the condition number that is required, in [0, 1]; LAPACK's
        estimate of it, in the 1-norm, is rarely above three times the true one.

    Returns:
      The factor; None if A is not positive definite, or its condition is too bad.
    """
    lapack = scipy.linalg.lapack
    with threadpoolctl.threadpool_limits(1):
        # A symmetric matrix is its own transpose: no copy for Fortran's order.
        lower, failed = lapack.dpotrf(matrix.T, lower=1, clean=1)
        if failed:
            return None
        if least > 0:
            norm = np.abs(matrix).sum(axis=0).max()
            found, _ = lapack.dpocon(lower, norm, uplo="L")
            if found < least:
                return None
    return lower


def whiten(lower: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """L^-1 b [D, K] of a `factor` L and b [D, K]: its squares sum to b'A^-1 b."""
    with threadpoolctl.threadpool_limits(1):
        return scipy.linalg.solve_triangular(lower, columns, lower=True)


def rank(values: np.ndarray, terms: int) -> int:
    """Number of eigenvalues [D], rising, that are more than rounding error.

    Args:
      values: Of a product a'a.
      terms: The larger of the two sizes of a.
    """
    return int(np.sum(values > values[-1] * terms * np.finfo(np.float64).eps))


def whiten_span(
    values: np.ndarray, vectors: np.ndarray, columns: np.ndarray, count: int
) -> np.ndarray:
    """As `whiten` for a singular A, in the span of its last `count` eigenvectors.

    Args:
      values: Eigenvalues [D], rising, and
      vectors: eigenvectors [D, D] of A.
      columns: b [D, K].
      count: A's rank.

    Returns:
      [count, K], whose squares sum to b'pinv(A) b.
    """
    kept = slice(len(values) - count, None)
    return vectors[:, kept].T @ columns / np.sqrt(values[kept])[:, None]


def log_det(matrix: np.ndarray) -> float:
    """The log determinant of a positive definite matrix [D, D].

    Raises:
      numpy.linalg.LinAlgError: It is not that.
    """
    lower = factor(matrix)
    if lower is None:
        raise np.linalg.LinAlgError("not positive definite")
    return 2 * float(np.sum(np.log(np.diagonal(lower))))


def projected(matrix: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What of some columns lies along each eigenvector.

    Args:
      matrix: A, symmetric, float64 [D, D].
      columns: b, float64 [D, K].

    Returns:
      A's eigenvalues [D], rising, and V'b [D, K], V their eigenvectors.

    Raises:
      numpy.linalg.LinAlgError: The eigenvalues did not converge.
    """
    if len(matrix) < 3:
        values, vectors = eigh(matrix)
        return values, vectors.T @ columns
    with threadpoolctl.threadpool_limits(1):
        reduced = _reduce(matrix)
        values, vectors, failed = scipy.linalg.lapack.dstevd(
            reduced.diagonal, reduced.beside
        )
        if failed:
            raise np.linalg.LinAlgError("the eigenvalues did not converge")
        return values, vectors.T @ reduced.rotate(columns, "T")


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
    with threadpoolctl.threadpool_limits(1):
        reduced = _reduce(matrix)
        values = scipy.linalg.eigvalsh_tridiagonal(reduced.diagonal, reduced.beside)
        count = choose(values)
        _, vectors = scipy.linalg.eigh_tridiagonal(
            reduced.diagonal,
            reduced.beside,
            select="i",
            select_range=(size - count, size - 1),
            lapack_driver="stemr",
        )
        return values, reduced.rotate(vectors, "N")


class _Reduced(NamedTuple):
    """A = Q T Q', T tridiagonal, of size 3 at least.

    Attributes:
      diagonal: Of T, [D].
      beside: Of T, the diagonal beside it, [D - 1].
      reflectors: That make up Q, as LAPACK keeps them, [D, D].
      tau: Their scales, [D - 1].
    """

    diagonal: np.ndarray
    beside: np.ndarray
    reflectors: np.ndarray
    tau: np.ndarray

    def rotate(self, columns: np.ndarray, trans: str) -> np.ndarray:
        """Q b (trans "N") or Q'b ("T") of b [D, K]."""
        lapack: Any = scipy.linalg.lapack
        # The reflectors of rows 1 and on lie as a QR decomposition's would.
        q, rest = self.reflectors[1:, :-1], np.asfortranarray(columns[1:])
        _, work, _ = lapack.dormqr("L", trans, q, self.tau, rest, -1)
        rest, _, _ = lapack.dormqr("L", trans, q, self.tau, rest, int(work[0]))
        return np.concatenate([columns[:1], rest])


def _reduce(matrix: np.ndarray) -> _Reduced:
    lapack = scipy.linalg.lapack
    lwork, _ = lapack.dsytrd_lwork(len(matrix), lower=1)
    # A symmetric matrix is its own transpose: no copy for Fortran's order.
    reflectors, diagonal, beside, tau, _ = lapack.dsytrd(
        matrix.T, lower=1, lwork=int(lwork)
    )
    return _Reduced(diagonal, beside, reflectors, tau)


def gram(a: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The product a' diag(weights) a [D, D] of a [N, D], float64; weights 1 if None.

    Of the symmetric product only panels on and above the diagonal are formed, about
    5/8 of it.
    """
    weights = np.ones(len(a)) if weights is None else weights
    on_host = jax.default_backend() == "cpu"
    panels = _panels_on_host(a, weights) if on_host else _panels_on_device(a, weights)
    product = np.empty((a.shape[1], a.shape[1]))
    for panel in panels:
        start = a.shape[1] - panel.shape[1]
        rows = slice(start, start + len(panel))
        product[rows, start:] = panel
        product[start:, rows] = product[rows, start:].T
    return product


def _panels_on_host(a: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """As `_sum_products`, a thread for each processor, each panel by one of them."""
    threads = mapping.num_cores()
    dimensions = a.shape[1]
    width = math.ceil(dimensions / max(_PANELS, 2 * threads))

    def panel(start: int) -> np.ndarray:
        total = np.zeros((min(width, dimensions - start), dimensions - start))
        for first in range(0, len(a), _BLOCK):
            rows = slice(first, first + _BLOCK)
            block = a[rows, start:].astype(np.float64)
            total += (block[:, :width] * weights[rows, None]).T @ block
        return total

    with (
        threadpoolctl.threadpool_limits(1),
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):
        return list(pool.map(panel, range(0, dimensions, width)))


def _panels_on_device(a: np.ndarray, weights: np.ndarray) -> tuple[jax.Array, ...]:
    count = math.ceil(len(a) / _BLOCK)
    padded = np.pad(a, ((0, count * _BLOCK - len(a)), (0, 0)))
    factors = np.pad(weights, (0, len(padded) - len(a))).reshape(count, _BLOCK)
    exact = jax.default_backend() != "tpu"
    with jax.enable_x64(exact or a.dtype == np.float64):
        return _sum_products(padded.reshape(count, _BLOCK, -1), factors)


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
