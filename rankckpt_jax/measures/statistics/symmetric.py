"""Products and decompositions of symmetric matrices in float64.

Eigenvectors rotate by the error of a matrix divided by the gap between its eigenvalues,
and gaps of real data are small. Products are therefore summed in float64, block by
block, so that no N x D copy in float64 exists. In float32 the rank of a singular matrix
would be lost too. A GPU computes the products if there is one. Otherwise BLAS does,
also beside a TPU, which only emulates float64; on a CPU it has 1.7 times the rate of
XLA's float64. Decompositions run on the host, with these costs in FLOP:

    factor                      D^3 / 3         for solving and determinants
    decompose                   4 D^3 / 3       A = Q T Q' with T tridiagonal, whose
                                                eigenvectors are cheap; Q is applied
                                                only to the requested vectors
    eigh                        4 D^3           all eigenvectors

Decompositions use one BLAS thread. NumPy and SciPy each bring an OpenBLAS whose idle
threads spin. Where these compete, 10 ms of work took 1.1 s, and 1 s of work (2048
columns) took 18 s. One thread is never far from the best time.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import math
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import threadpoolctl

from rankckpt_jax.devices import mapping, target
from rankckpt_jax.measures.statistics import blocks

_BLOCK = 1024
"""Rows that are multiplied at once on a device."""

_HOST_BLOCK = 4096
"""The same on the host, where threads share the block."""

_PANELS = 4
"""Minimum number of column panels on a device; the host uses twice as many. More panels
save work but make products narrow."""


def one_blas_thread() -> AbstractContextManager[Any]:
    """Return a context in which NumPy's and SciPy's BLAS use one thread."""
    return _blas().limit(limits=1)


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    """Find the loaded libraries once, because the search takes milliseconds."""
    return threadpoolctl.ThreadpoolController()


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues [D], ascending, and eigenvectors [D, D] in columns."""
    with one_blas_thread():
        values, vectors = np.linalg.eigh(matrix)
    return values, vectors


def factor(matrix: np.ndarray, least: float = 0.0) -> np.ndarray | None:
    """Return the Cholesky factor L [D, D] of A = L L'.

    Args:
      matrix: A, symmetric, float64 [D, D].
      least: Minimum reciprocal condition number, in [0, 1]. LAPACK's estimate, in the
        1-norm, is rarely above three times the true value.

    Returns:
      The factor; None if A is not positive definite or is ill-conditioned.
    """
    lapack = scipy.linalg.lapack
    with one_blas_thread():
        # A symmetric matrix is its own transpose: no copy for Fortran's order.
        lower, failed = lapack.dpotrf(matrix.T, lower=1, clean=1)
        if failed:
            return None
        if least > 0:
            norm = np.abs(matrix).sum(axis=0).max()
            reciprocal, _ = lapack.dpocon(lower, norm, uplo="L")
            if reciprocal < least:
                return None
    return lower


def solve(matrix: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return A^-1 b [D, K] for b [D, K] and a positive definite A [D, D].

    `scipy.linalg.solve` takes eight times as long for 2048 columns.

    Raises:
      numpy.linalg.LinAlgError: A is not positive definite.
    """
    lower = factor(matrix)
    if lower is None:
        raise np.linalg.LinAlgError("The matrix is not positive definite")
    with one_blas_thread():
        return scipy.linalg.cho_solve((lower, True), columns)


def whiten(lower: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return L^-1 b [D, K] for b [D, K]; its squares sum to b'A^-1 b."""
    with one_blas_thread():
        return scipy.linalg.solve_triangular(lower, columns, lower=True)


def rank(values: np.ndarray, terms: int) -> int:
    """Return the number of eigenvalues above rounding error.

    Args:
      values: Eigenvalues [D] of a product a'a, ascending.
      terms: The larger of the two sizes of a.
    """
    return int(np.sum(values > values[-1] * terms * np.finfo(np.float64).eps))


def whiten_span(
    values: np.ndarray, vectors: np.ndarray, columns: np.ndarray, count: int
) -> np.ndarray:
    """Whiten columns by a singular A, in the span of its leading eigenvectors.

    Args:
      values: Eigenvalues [D] of A, ascending.
      vectors: Eigenvectors [D, D] of A.
      columns: b [D, K].
      count: Rank of A.

    Returns:
      An array [count, K] whose squares sum to b'pinv(A) b.
    """
    kept = slice(len(values) - count, None)
    return vectors[:, kept].T @ columns / np.sqrt(values[kept])[:, None]


def log_det(matrix: np.ndarray) -> float:
    """Return the log determinant of a positive definite matrix [D, D].

    Raises:
      numpy.linalg.LinAlgError: The matrix is not positive definite.
    """
    lower = factor(matrix)
    if lower is None:
        raise np.linalg.LinAlgError("not positive definite")
    return 2 * float(np.sum(np.log(np.diagonal(lower))))


class Decomposition(NamedTuple):
    """Eigenvalues of A = Q Z diag(l) Z'Q', and its eigenvectors Q Z as a product.

    Attributes:
      values: Eigenvalues l [D], ascending.
      inner: Eigenvectors Z of the tridiagonal matrix T, [D, D].
      reduced: A = Q T Q'; None if A is too small for it, and Q is the identity.
    """

    values: np.ndarray
    inner: np.ndarray
    reduced: _Reduced | None

    def leading(self, count: int) -> np.ndarray:
        """Return the eigenvectors [D, count] of the largest eigenvalues, ascending."""
        vectors = self.inner[:, len(self.inner) - count :]
        if self.reduced is None:
            return vectors
        with one_blas_thread():
            return self.reduced.rotate(vectors, "N")

    def project(self, columns: np.ndarray) -> np.ndarray:
        """Return the projections V'b of b [D, K] on all eigenvectors, [D, K]."""
        with one_blas_thread():
            if self.reduced is not None:
                columns = self.reduced.rotate(columns, "T")
            return self.inner.T @ columns


def decompose(matrix: np.ndarray) -> Decomposition:
    """Decompose A, symmetric, float64 [D, D], without forming its eigenvectors.

    Raises:
      numpy.linalg.LinAlgError: The eigenvalues did not converge.
    """
    if len(matrix) < 3:
        return Decomposition(*eigh(matrix), None)
    with one_blas_thread():
        reduced = _reduce(matrix)
        values, inner, failed = scipy.linalg.lapack.dstevd(
            reduced.diagonal, reduced.off_diagonal
        )
    if failed:
        raise np.linalg.LinAlgError("the eigenvalues did not converge")
    return Decomposition(values, inner, reduced)


class _Reduced(NamedTuple):
    """A = Q T Q' with T tridiagonal, of size at least 3.

    Attributes:
      diagonal: Diagonal of T, [D].
      off_diagonal: Subdiagonal of T, [D - 1].
      reflectors: Householder reflectors of Q in LAPACK's format, [D, D].
      tau: Their scales, [D - 1].
    """

    diagonal: np.ndarray
    off_diagonal: np.ndarray
    reflectors: np.ndarray
    tau: np.ndarray

    def rotate(self, columns: np.ndarray, trans: str) -> np.ndarray:
        """Return Q b (trans "N") or Q'b ("T") for b [D, K]."""
        lapack: Any = scipy.linalg.lapack
        # From row 1 on, the reflectors have the format of a QR decomposition.
        q, rest = self.reflectors[1:, :-1], np.asfortranarray(columns[1:])
        _, work, _ = lapack.dormqr("L", trans, q, self.tau, rest, -1)
        rest, _, _ = lapack.dormqr("L", trans, q, self.tau, rest, int(work[0]))
        return np.concatenate([columns[:1], rest])


def _reduce(matrix: np.ndarray) -> _Reduced:
    lapack = scipy.linalg.lapack
    lwork, _ = lapack.dsytrd_lwork(len(matrix), lower=1)
    # A symmetric matrix is its own transpose: no copy for Fortran's order.
    reflectors, diagonal, off_diagonal, tau, _ = lapack.dsytrd(
        matrix.T, lower=1, lwork=int(lwork)
    )
    return _Reduced(diagonal, off_diagonal, reflectors, tau)


def gram(a: np.ndarray) -> np.ndarray:
    """Return a'a for a [N, D]: float64 [D, D].

    Only panels on and above the diagonal are computed, at most 5/8 of the product.
    """
    on_device = target.platform() == "gpu"
    panels = _panels_on_device(a) if on_device else _panels_on_host(a)
    product = np.empty((a.shape[1], a.shape[1]))
    for panel in panels:
        start = a.shape[1] - panel.shape[1]
        rows = slice(start, start + len(panel))
        product[rows, start:] = panel
        product[start:, rows] = product[rows, start:].T
    return product


def _panels_on_host(a: np.ndarray) -> list[np.ndarray]:
    """Compute the panels of `_sum_products` on the host, one thread per core."""
    threads = mapping.num_cores()
    dimensions = a.shape[1]
    width = math.ceil(dimensions / max(2 * _PANELS, 2 * threads))
    starts = range(0, dimensions, width)
    totals = [np.zeros((min(width, dimensions - s), dimensions - s)) for s in starts]

    def add(start: int, total: np.ndarray, block: np.ndarray) -> None:
        total += block[:, start : start + width].T @ block[:, start:]

    with (
        one_blas_thread(),
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):
        for first in range(0, len(a), _HOST_BLOCK):
            block = a[first : first + _HOST_BLOCK].astype(np.float64)
            # A list, because errors of threads only appear with the results.
            list(pool.map(add, starts, totals, itertools.repeat(block)))
    return totals


def _panels_on_device(a: np.ndarray) -> tuple[jax.Array, ...]:
    count = math.ceil(len(a) / _BLOCK)
    padded = np.pad(a, ((0, count * _BLOCK - len(a)), (0, 0)))
    with jax.enable_x64(True):
        return _sum_products(padded.reshape(count, _BLOCK, -1))


@jax.jit
def _sum_products(a: jax.Array) -> tuple[jax.Array, ...]:
    """Return panels of rows [start, stop) and columns [start, D) of the product."""
    wide = jnp.zeros(0, float).dtype
    width, dimensions = math.ceil(a.shape[2] / _PANELS), a.shape[2]
    starts = range(0, dimensions, width)

    def add(
        totals: tuple[jax.Array, ...], block: jax.Array
    ) -> tuple[tuple[jax.Array, ...], None]:
        block = block.astype(wide)
        # An explicit transpose: XLA multiplies transposed float64 at half speed.
        transposed = jax.lax.optimization_barrier(block.T)
        products = (
            blocks.dot(transposed[start : start + width], block[:, start:])
            for start in starts
        )
        return tuple(t + p for t, p in zip(totals, products, strict=True)), None

    zeros = tuple(
        jnp.zeros((min(width, dimensions - start), dimensions - start), wide)
        for start in starts
    )
    return jax.lax.scan(add, zeros, a)[0]
