"""The parameters of a mixture, from the moments of its components.

K components in D dimensions; D' >= D counts the columns of zeros that blocks pad to.
Central second moments M of each component's points become covariances with a ridge,
and these become their "precision_cholesky": with S = L L', the upper triangular
P = L^-T for which S^-1 = P P', so that a Mahalanobis distance is |P'(x - m)|^2 and
log det S = -2 sum_j log P_jj.

    full       M, S, P [K, D', D']
    tied       M, S, P [D', D'], one for all components
    diag       M, S, P [K, D'], variances and their 1 / sqrt
    spherical  M, S, P [K]

A padded dimension has variance 1: it adds nothing to a log determinant, and nothing to
a distance, since all points and means are 0 there.

The ridge. scikit-learn adds 1e-6. In float32 a moment of size s is only known to
eps s = 6e-8 s, so that the smallest eigenvalues of a singular M (fewer points than
dimensions) are noise of either sign, and a ridge below the noise does not make them
positive. The ridge of a component is therefore at least RELATIVE_RIDGE eps max_j M_jj;
where the factorization still fails, it is multiplied by ten until it does not. In
float64 that floor lies far below 1e-6 and the result is scikit-learn's.
Of a raised ridge `refine` makes the one that was asked for, as far as it can; EM over
few points for each component needs neither (`low_rank`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.measures.statistics import blocks

TYPES = ("full", "tied", "diag", "spherical")

RELATIVE_RIDGE = 8.0
"""Least ridge of a full or tied covariance over eps times its largest variance."""

_INVERSE_BLOCK = 32
"""Rows that `inverse_cholesky` eliminates at once; half of it for small matrices."""

_MANY_BLOCKS = 4

_CACHED_ELEMENTS = 1 << 20
"""Elements of the matrices that a CPU works on at once: its cache holds the steps'."""


class Parameters(NamedTuple):
    """A mixture of K components in D' padded dimensions, as EM works on it.

    Attributes:
      weights: [K], summing to 1; 0 for a component that is padding.
      means: [K, D'].
      covariances: As the module describes for each type, ridge included.
      precision_cholesky: Likewise.
    """

    weights: Any
    means: Any
    covariances: Any
    precision_cholesky: Any


def parameters(
    covariance_type: str,
    counts: jax.Array,
    total: jax.Array,
    means: jax.Array,
    moments: jax.Array,
    dimensions: jax.Array,
    ridge: jax.Array,
) -> Parameters:
    """Weights, covariances and their factors.

    Args:
      covariance_type: One of TYPES.
      counts: [K], the responsibilities' sums.
      total: Scalar, their sum over all components (of all devices).
      means: [K, D'].
      moments: Central second moments, as the module describes.
      dimensions: Scalar D, the dimensions that are not padding.
      ridge: Scalar, added to every variance.
    """
    real = jnp.arange(means.shape[1]) < dimensions
    if covariance_type in ("full", "tied"):
        covariances, factors = _factorize(moments, real, ridge)
    else:
        covariances = jnp.maximum(moments, 0) + ridge
        if covariance_type == "diag":
            covariances = jnp.where(real, covariances, 1)
        factors = jax.lax.rsqrt(covariances)
    return Parameters(counts / total, means, covariances, factors)


def log_normalizer(
    covariance_type: str, parameters: Parameters, dimensions: jax.Array
) -> jax.Array:
    """The log of w_k / sqrt(det 2 pi S_k), for each component: [K]."""
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
    """The log of w_k / sqrt(det 2 pi S_k) from log sqrt(det S_k^-1): [K]."""
    # A finite stand-in for log 0, which would make 0 times infinity of padding.
    nothing = jnp.finfo(log_det.dtype).min / 1e6
    log_weights = jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1)), 0)
    half_log_2pi = 0.9189385332046727
    normalizer = log_weights + log_det - dimensions * half_log_2pi
    return jnp.where(weights > 0, normalizer, nothing).astype(log_det.dtype)


def _factorize(
    moments: jax.Array, real: jax.Array, ridge: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Covariances [..., D', D'] with their ridge, and their precision_cholesky."""
    if moments.ndim == 3:
        factorize = functools.partial(_factorize_together, real=real, ridge=ridge)
        return _by_chunks(factorize, moments)
    return _factorize_together(moments, real, ridge)


def _by_chunks(function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """`function` of arrays [K, D', D'], a cacheful of them at a time on a CPU."""
    count, size, _ = arrays[0].shape
    together = max(1, _CACHED_ELEMENTS // size**2)
    if jax.default_backend() != "cpu" or count <= together:
        return function(*arrays)

    def chunk(index: jax.Array) -> Any:
        return function(*(array[index] for array in arrays))

    # The last chunk is filled with the last matrix.
    index = np.minimum(np.arange(-(-count // together) * together), count - 1)
    done = jax.lax.map(chunk, index.reshape(-1, together))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], done)


def _factorize_together(
    moments: jax.Array, real: jax.Array, ridge: jax.Array
) -> tuple[jax.Array, jax.Array]:
    eps = jnp.finfo(moments.dtype).eps
    identity = jnp.eye(moments.shape[-1], dtype=moments.dtype)
    largest = jnp.max(jnp.diagonal(moments, axis1=-2, axis2=-1), axis=-1)

    def with_ridge(ridges: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        diagonal = jnp.where(real, ridges[..., None], 1)
        covariances = moments + diagonal[..., None] * identity
        return ridges, covariances, inverse_cholesky(covariances)

    def failed(state: tuple[jax.Array, ...]) -> jax.Array:
        # What broke down is NaN to its last entry.
        ridges, _, factors = state
        return jnp.isnan(factors[..., -1, -1]) & (ridges < enough)

    def raise_ridge(state: Any) -> Any:
        return with_ridge(jnp.where(failed(state), 10 * state[0], state[0]))

    first = jnp.maximum(ridge, RELATIVE_RIDGE * eps * largest)
    enough = jnp.maximum(first, largest)
    start = first / 10, moments, jnp.full_like(moments, jnp.nan)
    _, covariances, factors = jax.lax.while_loop(
        lambda state: jnp.any(failed(state)), raise_ridge, start
    )
    return covariances, jnp.swapaxes(factors, -1, -2)


def refine(
    mixture: Parameters,
    gram: Callable[[jax.Array], jax.Array],
    dimensions: jax.Array,
    ridge: jax.Array,
) -> Parameters:
    """Full covariances with the ridge that was asked for, where rounding raised it.

    Cholesky QR, twice (Fukaya et al. 2020): with P of the raised ridge, the matrix
    G = P' S P = sum_i R[k, i] (P'(x_i - m))(P'(x_i - m))' / n_k + ridge P'P is formed
    from whitened points, not from S. Its eigenvalues are near 1, and where the ridge
    was raised, ridge / raised ridge: it has a Cholesky factor G = L L' in float32 where
    S has none, and P L^-T is as exact as a QR of the points would make it.

    Args:
      mixture: With a ridge that may have been raised.
      gram: Maps P [K, D', D'] to the sum above, [K, D', D'].
      dimensions: Scalar D.
      ridge: Scalar, the one that was asked for.
    """
    p = mixture.precision_cholesky
    real = jnp.arange(p.shape[-1]) < dimensions

    def refined(p: jax.Array, sums: jax.Array) -> jax.Array:
        ridges = jnp.where(real, ridge, 1)[:, None] * p
        product = sums + blocks.dot(jnp.swapaxes(p, 1, 2), ridges)
        inverse = jnp.swapaxes(inverse_cholesky(product), 1, 2)
        # A ratio of ridges below rounding is more than one pass can undo.
        better = blocks.dot(p, inverse)
        return jnp.where(jnp.isnan(better[:, -1:, -1:]), p, better)

    return mixture._replace(precision_cholesky=_by_chunks(refined, p, gram(p)))


def inverse_cholesky(matrices: jax.Array) -> jax.Array:
    """L^-1 of positive definite A = L L', [..., D', D'], NaN where A is not that.

    Elimination by blocks of b rows, for all matrices at once. Each step takes a
    diagonal block to its own L^-1, multiplies its rows with that, and subtracts their
    multiples from the rows below; with the columns done so far holding what elimination
    makes of an identity, two batched matrix products, D^3 FLOP in all. LAPACK goes
    matrix by matrix, in several threads that wait for each other on a busy machine, and
    accelerators have nothing better for hundreds of small matrices.
    """
    shape = matrices.shape
    size = shape[-1]
    # D' is a multiple of the smaller one.
    width = (
        _INVERSE_BLOCK if size > _MANY_BLOCKS * _INVERSE_BLOCK else _INVERSE_BLOCK // 2
    )
    return _eliminate(matrices.reshape(-1, size, size), width).reshape(shape)


def _eliminate(m: jax.Array, width: int) -> jax.Array:
    """`inverse_cholesky` of [K, D', D'] by blocks of `width` rows."""
    size = m.shape[-1]
    rows = []
    for i in range(0, size, width):
        end = min(i + width, size)
        head = m[:, : end - i]
        corner = head[:, :, i:end]
        if width > _INVERSE_BLOCK // 2:
            corner = _eliminate(corner, width // 2)
        else:
            corner = _small_inverse_cholesky(corner)
        before = blocks.dot(corner, head[:, :, :i])
        after = blocks.dot(corner, head[:, :, end:])
        row = jnp.concatenate([before, corner, after], axis=2)
        rows.append(row.at[:, :, end:].set(0))
        below = m[:, end - i :].at[:, :, i:end].set(0)
        m = below - blocks.dot(jnp.swapaxes(after, 1, 2), row)
    return jnp.concatenate(rows, axis=1)


def _small_inverse_cholesky(matrices: jax.Array) -> jax.Array:
    """As `inverse_cholesky` for [K, b, b], a column after the other."""
    a = jnp.transpose(matrices, (1, 2, 0))
    size = len(a)
    place = jnp.arange(size)[:, None, None]
    identity = jnp.broadcast_to(jnp.eye(size, dtype=a.dtype)[:, :, None], a.shape)

    def eliminate(j: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        a, inverse = state
        scale = jax.lax.rsqrt(a[j, j])
        row, inverse_row = a[j] * scale, inverse[j] * scale
        # Row j becomes itself, scaled; those above stay.
        factor = jnp.where(place > j, row[:, None], 0)
        return (
            a - factor * row,
            jnp.where(place == j, inverse_row, inverse - factor * inverse_row),
        )

    _, inverse = jax.lax.fori_loop(0, size, eliminate, (a, identity))
    return jnp.transpose(inverse, (2, 0, 1))


def whiten(factor: jax.Array, centered: jax.Array) -> jax.Array:
    """P'(x - m) of one full covariance: factor [D, D], centered [D, B] -> [D, B]."""
    return blocks.dot(factor.T, centered)
