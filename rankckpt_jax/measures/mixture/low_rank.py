"""Gaussians of fewer points than dimensions, by an orthonormal basis of their points.

N points in D dimensions, K components, each of at most W of the points, W < D; D' >= D
counts the columns of zeros that blocks pad to. With the rows of Y [W, D]

    y_i = sqrt(R[k, i] / n_k) (x_i - m_k)        (zeros where there are fewer points)

a covariance is S = Y'Y + ridge I. Neither S nor its factor, D^2 numbers, is made. The
Mahalanobis distance of c = x - m is a least-squares problem (Woodbury's identity),

    c' S^-1 c = min_a (|c - Y'a|^2 + ridge |a|^2) / ridge,

that is, over ridge, the squared length of what remains of (c, 0) in D + W dimensions
after projection on the rows of A = (Y, sqrt(ridge) I) [W, D + W]. With A = L Q, where L
[W, W] is lower triangular and the rows of Q are orthonormal,

    c' S^-1 c = |(c, 0)(I - Q'Q)|^2 / ridge
    log det S = (D - W) log ridge + 2 sum_j log L_jj.

A always has rank W, however the points repeat: its singular values are at least
sqrt(ridge). A row of zeros adds the ridge to the determinant, and nothing else.

Any vectors u with a Gram matrix of at most I that are orthogonal to Q bound a distance
from below, by sum (u'(c, 0))^2 / ridge. `witnesses` are what remains of the last
coordinate vectors: for those, u'(c, 0) / sqrt(ridge) = p'c with p the last columns of
the upper triangular P for which S^-1 = P P'. They point out of the span.

Rounding. |c|^2 - |Q c|^2 would lose all that counts, as the ridge (1e-6) is far below
eps |c|^2. The remainder itself is exact to eps |c|, and to eps of its own length after
a second projection ("twice is enough"): an error of (eps |c|)^2 / ridge nats, 1e-6 for
features of length 14. The rows of A differ in size by |Y| / sqrt(ridge), 1e4, which
`orthonormal` copes with as long as it is below 1 / eps. The ridge of a component is
therefore at least `least_ridge`, (eps |Y|)^2: in float32 1e-6 holds up to |Y| = 8000.

Cost: 3 (4 W^2 (D + W) + W^3) FLOP a component and 8 W (D + W) a distance, in place of
several D^3 and 2 D^2; memory K W (D + W) numbers. All of it is batched products and the
elimination of W columns, as on a CPU so on an accelerator. LAPACK's QR of hundreds of
small matrices is one after the other, each in several threads that wait for each other.
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
    """K components of at most W points each.

    Attributes:
      means: [K, D'].
      basis: [K, W, D' + W], Q.
      ridges: [K].
      normalizer: [K], log of w_k / sqrt(det 2 pi S_k).
    """

    means: jax.Array
    basis: jax.Array
    ridges: jax.Array
    normalizer: jax.Array

    def listed(self, x: jax.Array, components: jax.Array) -> jax.Array:
        """Joint log densities of the pairs of x [N, D'] and components [N, SLOTS].

        Empty slots hold K, and get -inf. Of a component at most W pairs are evaluated.
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
        """Joint log densities [N] of one component and all of x [N, D']."""
        distance = _distances(self.basis[k], x - self.means[k]) / self.ridges[k]
        return self.normalizer[k] - distance / 2

    def witnesses(self, dimensions: jax.Array, number: int) -> jax.Array:
        """Vectors p [number, K, D'] for which the squares of p'(x - m) sum to a bound.

        They sum to at most the Mahalanobis distance, and of all choices of so many
        coordinate vectors nearly always to much more than what a member is distant.
        """
        count, width, size = self.basis.shape
        last = dimensions.astype(jnp.int32) - 1 - jnp.arange(number)
        unit = jax.nn.one_hot(last, size, dtype=self.basis.dtype)
        rest = _remainder(self.basis, jnp.broadcast_to(unit, (count, number, size)))
        # A Gram matrix of at most I, even where coordinates lie in the span; rounding
        # that this magnifies is taken out again, which lengthens nothing.
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
    """The components that responsibilities make.

    Args:
      x: [N, D'], all points.
      components: int32 [N, SLOTS], K where there is none; each at most W times.
      values: [N, SLOTS], the responsibilities.
      like: K and W.
      dimensions: Scalar D.
      ridge: Scalar, added to every variance.
    """
    pairs, valid = _members(components, *like)
    weights = jnp.where(valid, values.reshape(-1)[pairs], 0)
    # What scikit-learn adds, so that an empty component divides by more than nothing;
    # added to others, it would move a mean by more than the ridge has for a length.
    counts = jnp.maximum(jnp.sum(weights, axis=1), 10 * jnp.finfo(x.dtype).eps)
    shares = weights / counts[:, None]
    points = x[pairs // components.shape[1]]
    means = jnp.sum(shares[:, :, None] * points, axis=1)
    rows = jnp.sqrt(shares)[:, :, None] * (points - means[:, None])
    ridges = jnp.maximum(ridge, least_ridge(jnp.sum(rows**2, axis=(1, 2))))
    identity = jnp.eye(like[1], dtype=x.dtype)
    beside = jnp.sqrt(ridges)[:, None, None] * identity
    basis, log_diagonal = orthonormal(jnp.concatenate([rows, beside], axis=2))
    log_det = (dimensions - like[1]) * jnp.log(ridges) + 2 * log_diagonal
    normalizer = log_weighted(counts / jnp.sum(counts), -log_det / 2, dimensions)
    return LowRank(means, basis, ridges, normalizer)


def least_ridge(squares: jax.Array) -> jax.Array:
    """What rounding of the points amounts to, for |Y|^2 = `squares`: no ridge below."""
    return jnp.finfo(squares.dtype).eps ** 2 * squares


def orthonormal(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Q and sum_j log L_jj of A = L Q, for A [K, W, M] of rank W.

    Cholesky QR (Fukaya et al. 2020): L is the Cholesky factor of A A', Q = L^-1 A. In
    A A' singular values below sqrt(eps) |A| drown in rounding; a shift of some eps
    |A|^2 lets the factorization succeed all the same, and leaves an A that spans the
    same rows with singular values within a factor of sqrt(eps) of each other, or 1.
    Two shifted passes cope with what is above eps, and a last one without makes the
    rows orthonormal.
    """
    log_diagonal = jnp.zeros(len(a), a.dtype)
    for shift in (RELATIVE_RIDGE, RELATIVE_RIDGE, 0.0):
        a, more = _orthonormalized(a, shift)
        log_diagonal = log_diagonal + more
    return a, log_diagonal


def _orthonormalized(a: jax.Array, shift: float) -> tuple[jax.Array, jax.Array]:
    """One pass; the shift in units of eps |A|^2. What results has A A' <= I."""
    gram = blocks.dot(a, jnp.swapaxes(a, 1, 2))
    trace = jnp.trace(gram, axis1=1, axis2=2)
    shifts = shift * jnp.finfo(a.dtype).eps * trace
    inverse = inverse_cholesky(
        gram + shifts[:, None, None] * jnp.eye(gram.shape[1], dtype=a.dtype)
    )
    diagonal = jnp.diagonal(inverse, axis1=1, axis2=2)
    return blocks.dot(inverse, a), -jnp.sum(jnp.log(diagonal), axis=1)


def _remainder(basis: jax.Array, vectors: jax.Array) -> jax.Array:
    """Vectors [..., P, D' + W] less their projection on Q [..., W, D' + W], twice."""
    for _ in range(2):
        along = blocks.dot(vectors, jnp.swapaxes(basis, -1, -2))
        vectors = vectors - blocks.dot(along, basis)
    return vectors


def _distances(basis: jax.Array, centered: jax.Array) -> jax.Array:
    """Ridge times the Mahalanobis distances of centered [..., P, D']: [..., P]."""
    beside = jnp.zeros((*centered.shape[:-1], basis.shape[-2]), centered.dtype)
    rest = _remainder(basis, jnp.concatenate([centered, beside], axis=-1))
    return jnp.sum(rest**2, axis=-1)


def _members(
    components: jax.Array, num_components: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Each component's pairs, as places in the flat [N SLOTS], and which are valid."""
    pairs = components.reshape(-1)
    counts = jnp.zeros(num_components, jnp.int32).at[pairs].add(1, mode="drop")
    place = (jnp.cumsum(counts) - counts)[:, None] + jnp.arange(width)
    order = jnp.argsort(pairs).astype(jnp.int32)
    valid = jnp.arange(width) < counts[:, None]
    return order[jnp.minimum(place, len(order) - 1)], valid
