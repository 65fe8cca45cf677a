"""Parameters of a Gaussian mixture from the moments of its components.

K components in D dimensions; D' >= D includes the columns of zeros that `blocks` pads.
The central second moments M of each component become covariances S with a ridge. With
S = L L', their "precision_cholesky" is the upper triangular P = L^-T. Then
S^-1 = P P', a Mahalanobis distance is |P'(x - m)|^2, and log det S = -2 sum_j log P_jj.

    full       M, S, P [K, D', D']
    tied       M, S, P [D', D'], one for all components
    diag       M, S, P [K, D'], variances and 1 / sqrt(variance)
    spherical  M, S, P [K]

A padded dimension has variance 1. It adds nothing to a log determinant, and nothing to
a distance because all points and means are 0 there.

Ridge. scikit-learn adds 1e-6. In float32, a moment of size s has a rounding error of
eps s = 6e-8 s. The smallest eigenvalues of a singular M (fewer points than dimensions)
are then noise of either sign, and only a ridge above the noise makes them positive. The
ridge of a component is therefore at least RELATIVE_RIDGE eps max_j M_jj, and it is
multiplied by 10 until the factorization succeeds. In float64 this minimum lies far
below 1e-6, and the result equals scikit-learn's. `refine` restores the requested ridge
as far as possible. EM with few points per component needs neither (`low_rank`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from rankckpt_jax.devices import target
from rankckpt_jax.measures.statistics import blocks, symmetric

TYPES = ("full", "tied", "diag", "spherical")

RELATIVE_RIDGE = 8.0
"""Minimum ridge of a full or tied covariance, in units of eps times its largest
variance."""

_BLOCK = 16
"""Rows that `inverse_cholesky` eliminates at once; `blocks` pads D to a multiple."""

_CACHED_ELEMENTS = 1 << 20
"""Elements of the matrices that a CPU processes at once, to fit into its cache."""


class Parameters(NamedTuple):
    """A mixture of K components in D' padded dimensions.

    Attributes:
      weights: [K], summing to 1.
      means: [K, D'].
      covariances: S, including the ridge; for shapes see the module docstring.
      precision_cholesky: P, of the same shape.
    """

    weights: Any
    means: Any
    covariances: Any
    precision_cholesky: Any


def compute_parameters(
    covariance_type: str,
    counts: jax.Array,
    means: jax.Array,
    moments: jax.Array,
    dimensions: jax.Array,
    ridge: jax.Array,
) -> Parameters:
    """Return the mixture with these moments.

    Args:
      covariance_type: One of TYPES.
      counts: [K], sums of the responsibilities.
      means: [K, D'].
      moments: Central second moments M; for shapes see the module docstring.
      dimensions: Scalar D, the dimensions that are not padding.
      ridge: Scalar, added to every variance.
    """
    real = _is_real(means.shape[1], dimensions)
    if covariance_type in ("full", "tied"):
        covariances, factors = _factorize(moments, real, ridge)
    else:
        covariances = jnp.maximum(moments, 0) + ridge
        if covariance_type == "diag":
            covariances = jnp.where(real[None], covariances, 1)
        factors = jax.lax.rsqrt(covariances)
    return Parameters(counts / jnp.sum(counts), means, covariances, factors)


def _is_real(size: int, dimensions: jax.Array) -> jax.Array:
    """Return True for dimensions and False for padding: [D']."""
    return jnp.arange(size, dtype=dimensions.dtype) < dimensions


def log_normalizer(
    covariance_type: str, parameters: Parameters, dimensions: jax.Array
) -> jax.Array:
    """Return log w_k / sqrt(det 2 pi S_k) of each component: [K]."""
    factors = parameters.precision_cholesky
    if covariance_type == "full":
        log_det = jnp.sum(jnp.log(jnp.diagonal(factors, axis1=1, axis2=2)), axis=1)
    elif covariance_type == "tied":
        log_det = jnp.sum(jnp.log(jnp.diagonal(factors)))
    elif covariance_type == "diag":
        log_det = jnp.sum(jnp.log(factors), axis=1)
    else:
        log_det = dimensions * jnp.log(factors)
    return log_weighted(parameters.weights, log_det, dimensions)


def log_weighted(
    weights: jax.Array, log_det: jax.Array, dimensions: jax.Array
) -> jax.Array:
    """Return log w_k / sqrt(det 2 pi S_k) from log sqrt(det S_k^-1) [K]: [K]."""
    half_log_2pi = 0.9189385332046727
    return jnp.log(weights) + log_det - dimensions * half_log_2pi


def _factorize(
    moments: jax.Array, real: jax.Array, ridge: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return covariances [..., D', D'] including the ridge, and their P."""
    if moments.ndim == 3:
        factorize = functools.partial(_factorize_batch, real=real, ridge=ridge)
        return _by_chunks(factorize, moments)
    return _factorize_batch(moments, real, ridge)


def _by_chunks(function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """Apply `function` to arrays [K, D', D'], in chunks that fit a CPU's cache."""
    count, size, _ = arrays[0].shape
    length = max(1, _CACHED_ELEMENTS // size**2)
    if target.platform() != "cpu" or count <= length:
        return function(*arrays)

    def chunk(index: jax.Array) -> Any:
        return function(*(array[index] for array in arrays))

    # The last chunk is padded with copies of the last matrix.
    index = np.minimum(np.arange(-(-count // length) * length), count - 1)
    done = jax.lax.map(chunk, index.reshape(-1, length))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], done)


def _factorize_batch(
    moments: jax.Array, real: jax.Array, ridge: jax.Array
) -> tuple[jax.Array, jax.Array]:
    eps = jnp.finfo(moments.dtype).eps
    batch = tuple(range(moments.ndim - 2))
    identity = jnp.eye(moments.shape[-1], dtype=moments.dtype)
    identity, real = jnp.expand_dims(identity, batch), jnp.expand_dims(real, batch)
    largest = jnp.max(jnp.diagonal(moments, axis1=-2, axis2=-1), axis=-1)

    def with_ridge(ridges: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        diagonal = jnp.where(real, ridges[..., None], 1)
        covariances = moments + diagonal[..., None] * identity
        return ridges, covariances, inverse_cholesky(covariances)

    def failed(state: tuple[jax.Array, ...]) -> jax.Array:
        # A failed factorization is NaN up to its last entry.
        ridges, _, factors = state
        return jnp.isnan(factors[..., -1, -1]) & (ridges < largest_ridge)

    def raise_ridge(state: Any) -> Any:
        return with_ridge(jnp.where(failed(state), 10 * state[0], state[0]))

    first = jnp.maximum(ridge, RELATIVE_RIDGE * eps * largest)
    largest_ridge = jnp.maximum(first, largest)
    start = first / 10, moments, jnp.full_like(moments, jnp.nan)
    _, covariances, factors = jax.lax.while_loop(
        lambda state: jnp.any(failed(state)), raise_ridge, start
    )
    return covariances, jnp.swapaxes(factors, -1, -2)


def from_lists(
    x: np.ndarray, points: np.ndarray, values: np.ndarray, ridge: float
) -> Parameters:
    """Compute full covariances on the host in float64, from few points per component.

    Args:
      x: All points, [N, D].
      points: int [K, W], indices of the points of a component; others are empty slots.
      values: [K, W], their responsibilities.
      ridge: Added to every variance.

    Returns:
      The mixture in the dtype of `x`, without padding.
    """
    count, size = len(points), x.shape[1]
    counts, means = np.zeros(count), np.zeros((count, size))
    covariances, factors = np.zeros((2, count, size, size))
    eps = float(np.finfo(x.dtype).eps)
    with symmetric.one_blas_thread():
        for k in range(count):
            used = values[k] > 0
            shares = values[k, used].astype(np.float64)
            counts[k] = max(shares.sum(), 10 * eps)
            shares /= counts[k]
            members = x[points[k, used]].astype(np.float64)
            means[k] = shares @ members
            rows = np.sqrt(shares)[:, None] * (members - means[k])
            square = np.sum(rows**2)
            least = max(ridge, eps**2 * square, np.finfo(np.float64).eps * square)
            covariances[k] = rows.T @ rows + least * np.eye(size)
            upper = scipy.linalg.cholesky(covariances[k], check_finite=False)
            factors[k], _ = scipy.linalg.lapack.dtrtri(upper)
    mixture = counts / counts.sum(), means, covariances, factors
    return Parameters(*(a.astype(x.dtype) for a in mixture))


def inverse_cholesky(matrices: jax.Array) -> jax.Array:
    """Return L^-1 of A = L L' [..., D', D'], NaN if A is not positive definite.

    Gaussian elimination by blocks of _BLOCK rows, for all matrices at once. A step
    replaces a diagonal block by its own L^-1, multiplies its rows by it, and subtracts
    multiples of these rows from the rows below. Finished columns hold the result of the
    same steps on an identity matrix. All steps have the same shapes, so that they are
    one loop of the compiled program, whose size does not depend on D'.

    Cost: 2 D'^3 FLOP. LAPACK factorizes one matrix at a time, in threads that wait for
    each other, and XLA unrolls its own factorization for accelerators.

    Args:
      matrices: A. D' is a multiple of _BLOCK or at most _BLOCK.
    """
    shape = matrices.shape
    size, width = shape[-1], min(shape[-1], _BLOCK)
    column = jnp.arange(size)[None, None]

    def eliminate(i: jax.Array, m: jax.Array) -> jax.Array:
        start = i * width
        head = jax.lax.dynamic_slice_in_dim(m, start, width, axis=1)
        corner = jax.lax.dynamic_slice_in_dim(head, start, width, axis=2)
        corner = _small_inverse_cholesky(corner)
        row = products(corner, head)
        row = jax.lax.dynamic_update_slice_in_dim(row, corner, start, axis=2)
        after = jnp.where(column >= start + width, row, 0)
        inside = (column >= start) & (column < start + width)
        below = jnp.where(inside, 0, m) - products(jnp.swapaxes(after, 1, 2), row)
        return jax.lax.dynamic_update_slice_in_dim(below, row - after, start, axis=1)

    m = matrices.reshape(-1, size, size)
    return jax.lax.fori_loop(0, size // width, eliminate, m).reshape(shape)


def _small_inverse_cholesky(matrices: jax.Array) -> jax.Array:
    """Compute `inverse_cholesky` of [K, b, b] column by column."""
    a = jnp.transpose(matrices, (1, 2, 0))
    size = len(a)
    place = jnp.arange(size)[:, None, None]
    identity = jnp.broadcast_to(jnp.eye(size, dtype=a.dtype)[:, :, None], a.shape)

    def eliminate(j: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        a, inverse = state
        scale = jax.lax.rsqrt(a[j, j])
        row, inverse_row = (b[j] * scale[None] for b in (a, inverse))
        # Row j is scaled, the rows above it stay.
        factor = jnp.where(place > j, row[:, None], 0)
        return (
            a - factor * row[None],
            jnp.where(
                place == j, inverse_row[None], inverse - factor * inverse_row[None]
            ),
        )

    _, inverse = jax.lax.fori_loop(0, size, eliminate, (a, identity))
    return jnp.transpose(inverse, (2, 0, 1))


def products(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the matrix products of K pairs of matrices."""
    if target.platform() == "tpu":
        # XLA compiles a loop over single products five times as fast as a batch.
        return jax.lax.map(lambda pair: blocks.dot(*pair), (a, b))
    return blocks.dot(a, b)


def whiten(factor: jax.Array, centered: jax.Array) -> jax.Array:
    """Return P'(x - m) for a factor P [D, D] and centered points [D, B]: [D, B]."""
    return blocks.dot(factor.T, centered)
