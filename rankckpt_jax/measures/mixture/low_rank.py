"""Gaussians with fewer points than dimensions, as orthonormal bases of their points.

N points in D dimensions, K components with at most W < D points each; D' >= D includes
the columns of zeros that `blocks` pads. With the rows of Y [W, D]

    y_i = sqrt(R[k, i] / n_k) (x_i - m_k)        (zeros if there are fewer points)

a covariance is S = Y'Y + ridge I. Neither S nor a factor of it (D^2 numbers) is
computed. The Mahalanobis distance of c = x - m is a least-squares problem (Woodbury's
identity),

    c' S^-1 c = min_a (|c - Y'a|^2 + ridge |a|^2) / ridge.

This is the squared length of what remains of (c, 0), in D + W dimensions, after
projection on the rows of A = (Y, sqrt(ridge) I) [W, D + W], divided by the ridge. With
A = L Q, where L [W, W] is lower triangular and the rows of Q are orthonormal,

    c' S^-1 c = |(c, 0)(I - Q'Q)|^2 / ridge
    log det S = (D - W) log ridge + 2 sum_j log L_jj.

A always has rank W, even for repeated points, since its singular values are at least
sqrt(ridge). A row of zeros in Y only adds the ridge to the determinant.

Lower bounds of a distance. Vectors u that are orthogonal to Q and have a Gram matrix of
at most I give c' S^-1 c >= sum (u'(c, 0))^2 / ridge. `LowRank.witnesses` returns such
vectors, computed from the last coordinate vectors. For those, u'(c, 0) / sqrt(ridge) =
p'c, where p are the last columns of the upper triangular P with S^-1 = P P'. They point
out of the span of the points.

Rounding. |c|^2 - |Q c|^2 would cancel, since the ridge (1e-6) is far below eps |c|^2.
The remainder itself has an error of eps |c|, and of eps times its own length after a
second projection ("twice is enough"). This is an error of (eps |c|)^2 / ridge nats,
1e-6 for features of length 14. The rows of A differ in size by |Y| / sqrt(ridge), about
1e4, which `orthonormal` can handle up to 1 / eps. The ridge of a component is therefore
at least `min_ridge`, (eps |Y|)^2; in float32, 1e-6 is kept up to |Y| = 8000.

Cost: 3 (4 W^2 (D + W) + W^3) FLOP per component and 8 W (D + W) per distance, instead
of several D^3 and 2 D^2. Memory: K W (D + W) numbers. All of it is batched products and
the elimination of W columns, which suit CPUs and accelerators alike. LAPACK's QR
handles one small matrix at a time, in threads that wait for each other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rankckpt_jax.measures.mixture.covariance import (
    RELATIVE_RIDGE,
    inverse_cholesky,
    log_weighted,
)
from rankckpt_jax.measures.statistics import blocks


class LowRank(NamedTuple):
    """K components with at most W points each.

    Attributes:
      means: [K, D'].
      basis: [K, W, D' + W], Q.
      ridges: [K].
      normalizer: [K], log w_k / sqrt(det 2 pi S_k).
    """

    means: jax.Array
    basis: jax.Array
    ridges: jax.Array
    normalizer: jax.Array

    def listed(self, x: jax.Array, components: jax.Array) -> jax.Array:
        """Return joint log densities of listed pairs, [N, SLOTS].

        Args:
          x: The points, [N, D'].
          components: int32 [N, SLOTS], each at most W times. Empty slots hold K and
            get -inf.
        """
        count, width, _ = self.basis.shape
        pairs, valid = _members(components, count, width)
        centered = x[pairs // components.shape[1]] - self.means[:, None]
        distance = _distances(self.basis, centered) / self.ridges[:, None]
        value = self.normalizer[:, None] - distance / 2
        joint = jnp.full(components.size, -jnp.inf, x.dtype)
        target = jnp.where(valid, pairs, components.size)
        return joint.at[target].set(value, mode="drop").reshape(components.shape)

    def log_density(self, k: jax.Array, x: jax.Array) -> jax.Array:
        """Return joint log densities [N] of component k and all points x [N, D']."""
        distance = _distances(self.basis[k], x - self.means[k][None]) / self.ridges[k]
        return self.normalizer[k] - distance / 2

    def witnesses(self, dimensions: jax.Array, number: int) -> jax.Array:
        """Return vectors p [number, K, D'] that bound Mahalanobis distances from below.

        sum_p (p'(x - m))^2 is at most the distance of x. For points outside the span it
        is nearly always far above the distance of the component's own points.
        """
        count, width, size = self.basis.shape
        last = dimensions.astype(jnp.int32) - 1 - jnp.arange(number, dtype=jnp.int32)
        unit = jax.nn.one_hot(last, size, dtype=self.basis.dtype)
        rest = _remainder(self.basis, jnp.broadcast_to(unit, (count, number, size)))
        # The Gram matrix is at most I, even if coordinate vectors lie in the span. The
        # second projection removes the rounding errors that this step magnifies.
        rest = _remainder(self.basis, _orthonormalized(rest, RELATIVE_RIDGE)[0])
        scaled = rest[:, :, : size - width] / jnp.sqrt(self.ridges)[:, None, None]
        return jnp.swapaxes(scaled, 0, 1)


def of_lists(
    x: jax.Array,
    components: jax.Array,
    values: jax.Array,
    like: tuple[int, int],
    dimensions: jax.Array,
    ridge: jax.Array,
) -> LowRank:
    """Return the components of given responsibilities.

    Args:
      x: All points, [N, D'].
      components: int32 [N, SLOTS], each at most W times; K in empty slots.
      values: [N, SLOTS], the responsibilities.
      like: K and W.
      dimensions: Scalar D.
      ridge: Scalar, added to every variance.
    """
    pairs, valid = _members(components, *like)
    weights = jnp.where(valid, values.reshape(-1)[pairs], 0)
    # An empty component must not divide by zero. scikit-learn adds this to all counts,
    # which would move means by more than sqrt(ridge).
    counts = jnp.maximum(jnp.sum(weights, axis=1), 10 * jnp.finfo(x.dtype).eps)
    shares = weights / counts[:, None]
    points = x[pairs // components.shape[1]]
    means = jnp.sum(shares[:, :, None] * points, axis=1)
    rows = jnp.sqrt(shares)[:, :, None] * (points - means[:, None])
    ridges = jnp.maximum(ridge, min_ridge(jnp.sum(rows**2, axis=(1, 2))))
    identity = jnp.eye(like[1], dtype=x.dtype)
    tail = jnp.sqrt(ridges)[:, None, None] * identity[None]
    basis, log_diagonal = orthonormal(jnp.concatenate([rows, tail], axis=2))
    log_det = (dimensions - like[1]) * jnp.log(ridges) + 2 * log_diagonal
    normalizer = log_weighted(counts / jnp.sum(counts), -log_det / 2, dimensions)
    return LowRank(means, basis, ridges, normalizer)


def min_ridge(squares: jax.Array) -> jax.Array:
    """Return the ridge that equals the rounding of the points, for |Y|^2 = squares."""
    return jnp.finfo(squares.dtype).eps ** 2 * squares


def orthonormal(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return Q and sum_j log L_jj of A = L Q, for A [K, W, M] of rank W.

    Cholesky QR (Fukaya et al. 2020): L is the Cholesky factor of A A', and Q = L^-1 A.
    Singular values below sqrt(eps) |A| are lost to rounding in A A'. A shift by a few
    eps |A|^2 keeps the factorization from failing. The result spans the same rows, with
    singular values between sqrt(eps) and 1. Two shifted passes handle singular values
    down to eps |A|, and a last pass without a shift makes the rows orthonormal.
    """
    log_diagonal = jnp.zeros(len(a), a.dtype)
    for shift in (RELATIVE_RIDGE, RELATIVE_RIDGE, 0.0):
        a, more = _orthonormalized(a, shift)
        log_diagonal = log_diagonal + more
    return a, log_diagonal


def _orthonormalized(a: jax.Array, shift: float) -> tuple[jax.Array, jax.Array]:
    """Take one pass; the shift is in units of eps |A|^2. The result has A A' <= I."""
    gram = blocks.dot(a, jnp.swapaxes(a, 1, 2))
    trace = jnp.trace(gram, axis1=1, axis2=2)
    shifts = shift * jnp.finfo(a.dtype).eps * trace
    inverse = inverse_cholesky(
        gram + shifts[:, None, None] * jnp.eye(gram.shape[1], dtype=a.dtype)[None]
    )
    diagonal = jnp.diagonal(inverse, axis1=1, axis2=2)
    return blocks.dot(inverse, a), -jnp.sum(jnp.log(diagonal), axis=1)


def _remainder(basis: jax.Array, vectors: jax.Array) -> jax.Array:
    """Subtract the projection of vectors [..., P, D' + W] on the basis, twice."""
    for _ in range(2):
        along = blocks.dot(vectors, jnp.swapaxes(basis, -1, -2))
        vectors = vectors - blocks.dot(along, basis)
    return vectors


def _distances(basis: jax.Array, centered: jax.Array) -> jax.Array:
    """Return ridge times Mahalanobis distances of centered [..., P, D']: [..., P]."""
    zeros = jnp.zeros((*centered.shape[:-1], basis.shape[-2]), centered.dtype)
    rest = _remainder(basis, jnp.concatenate([centered, zeros], axis=-1))
    return jnp.sum(rest**2, axis=-1)


def _members(
    components: jax.Array, num_components: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Return flat indices of each component's pairs [K, W], and which are valid."""
    pairs = components.reshape(-1)
    counts = jnp.zeros(num_components, jnp.int32).at[pairs].add(1, mode="drop")
    within = jnp.arange(width, dtype=jnp.int32)[None]
    place = (jnp.cumsum(counts) - counts)[:, None] + within
    order = jnp.argsort(pairs).astype(jnp.int32)
    valid = within < counts[:, None]
    return order[jnp.minimum(place, len(order) - 1)], valid
