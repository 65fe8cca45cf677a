"""Gaussians with few points, as orthonormal bases of their points.

N points in D dimensions, G of K components with at most W points each; D' >= D includes
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

Lower bounds of a distance. Some coordinates of what remains of (c, 0) give a part of
its length, so c' S^-1 c >= sum_j (u_j'(I - Q'Q)(c, 0))^2 / ridge for unit vectors u_j.
The last coordinates are used. They are the smallest principal components, in which the
points of a component span the least.

Rounding. |c|^2 - |Q c|^2 would cancel, since the ridge (1e-6) is far below eps |c|^2.
The remainder itself has an error of eps |c|, and of eps times its own length after a
second projection ("twice is enough"). This is an error of (eps |c|)^2 / ridge nats,
1e-6 for features of length 14. The rows of A differ in size by |Y| / sqrt(ridge), about
1e4, which `orthonormal` can handle up to 1 / eps. The ridge of a component is therefore
at least `min_ridge`, (eps |Y|)^2; in float32, 1e-6 is kept up to |Y| = 8000.

W may exceed D: nothing above needs W < D, and only the cost grows. It is
12 W^2 (D + W) FLOP per component and 8 W (D + W) per distance. All of it is batched
products and the elimination of W columns, which suit CPUs and accelerators alike.
LAPACK's QR handles one small matrix at a time, in threads that wait for each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rankckpt_jax.measures.mixture.covariance import (
    RELATIVE_RIDGE,
    inverse_cholesky,
    log_weighted,
    products,
)


class LowRank(NamedTuple):
    """G components with at most W points each.

    Attributes:
      means: [G, D'].
      basis: [G, W, D' + W], Q.
      ridges: [G].
      normalizer: [G], log w_k / sqrt(det 2 pi S_k).
    """

    means: jax.Array
    basis: jax.Array
    ridges: jax.Array
    normalizer: jax.Array

    def log_density(self, x: jax.Array) -> jax.Array:
        """Return joint log densities [G, P] of points x [G, P, D']."""
        return self._density(_remainder(self.basis, self._centered(x)))

    def log_density_and_witnesses(
        self, x: jax.Array, dimensions: jax.Array, number: int
    ) -> tuple[jax.Array, jax.Array]:
        """Return joint log densities as above, and vectors p [G, number, D'].

        sum_p (p'(x - m))^2 is at most the Mahalanobis distance of x. For points outside
        the span it is nearly always far above the distance of the component's points.
        """
        count, width, size = self.basis.shape
        last = dimensions.astype(jnp.int32) - 1 - jnp.arange(number, dtype=jnp.int32)
        unit = jax.nn.one_hot(last, size, dtype=x.dtype)
        unit = jnp.broadcast_to(unit, (count, number, size))
        # One product for both, since each takes a while to compile for a TPU.
        rest = jnp.concatenate([self._centered(x), unit], axis=1)
        rest = _remainder(self.basis, rest)
        witnesses = rest[:, x.shape[1] :, : size - width]
        witnesses = witnesses / jnp.sqrt(self.ridges)[:, None, None]
        return self._density(rest[:, : x.shape[1]]), witnesses

    def _centered(self, x: jax.Array) -> jax.Array:
        """Return (x - m, 0), [G, P, D' + W]."""
        padding = (0, 0), (0, 0), (0, self.basis.shape[1])
        return jnp.pad(x - self.means[:, None], padding)

    def _density(self, rest: jax.Array) -> jax.Array:
        distance = jnp.sum(rest**2, axis=2) / self.ridges[:, None]
        return self.normalizer[:, None] - distance / 2


def fit(
    points: jax.Array,
    values: jax.Array,
    num_rows: jax.Array,
    dimensions: jax.Array,
    ridge: jax.Array,
) -> LowRank:
    """Take an M-step.

    Args:
      points: The points of each component, [G, W, D']; any where `values` is 0.
      values: Their responsibilities, [G, W].
      num_rows: Scalar N, the sum of all responsibilities.
      dimensions: Scalar D.
      ridge: Scalar, added to every variance.
    """
    width = points.shape[1]
    # An empty component must not divide by zero. scikit-learn adds this to all counts,
    # which would move means by more than sqrt(ridge).
    counts = jnp.maximum(jnp.sum(values, axis=1), 10 * jnp.finfo(points.dtype).eps)
    shares = values / counts[:, None]
    means = jnp.sum(shares[:, :, None] * points, axis=1)
    rows = jnp.sqrt(shares)[:, :, None] * (points - means[:, None])
    ridges = jnp.maximum(ridge, min_ridge(jnp.sum(rows**2, axis=(1, 2))))
    identity = jnp.eye(width, dtype=points.dtype)
    tail = jnp.sqrt(ridges)[:, None, None] * identity[None]
    basis, log_diagonal = orthonormal(jnp.concatenate([rows, tail], axis=2))
    log_det = (dimensions - width) * jnp.log(ridges) + 2 * log_diagonal
    normalizer = log_weighted(counts / num_rows, -log_det / 2, dimensions)
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

    def take_pass(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> Any:
        a, log_diagonal = state
        a, more = _orthonormalized(a, jnp.where(i < 2, RELATIVE_RIDGE, 0.0))
        return a, log_diagonal + more

    # A loop, so that one pass is compiled.
    return jax.lax.fori_loop(0, 3, take_pass, (a, jnp.zeros(len(a), a.dtype)))


def _orthonormalized(a: jax.Array, shift: Any) -> tuple[jax.Array, jax.Array]:
    """Take one pass; the shift is in units of eps |A|^2. The result has A A' <= I."""
    gram = products(a, jnp.swapaxes(a, 1, 2))
    trace = jnp.trace(gram, axis1=1, axis2=2)
    shifts = (shift * jnp.finfo(a.dtype).eps * trace).astype(a.dtype)
    inverse = inverse_cholesky(
        gram + shifts[:, None, None] * jnp.eye(gram.shape[1], dtype=a.dtype)[None]
    )
    diagonal = jnp.diagonal(inverse, axis1=1, axis2=2)
    return products(inverse, a), -jnp.sum(jnp.log(diagonal), axis=1)


def _remainder(basis: jax.Array, vectors: jax.Array) -> jax.Array:
    """Subtract the projection of vectors [G, P, D' + W] on the basis, twice."""

    def subtract(_: int, rest: jax.Array) -> jax.Array:
        along = products(rest, jnp.swapaxes(basis, 1, 2))
        return rest - products(along, basis)

    return jax.lax.fori_loop(0, 2, subtract, vectors)
