"""Gaussian mixtures by expectation-maximisation, on the device.

N points x_i in D dimensions, K components with weights w_k, means m_k and covariances
S_k. One iteration, as in scikit-learn's GaussianMixture:

    E   R[i, k] = w_k N(x_i; m_k, S_k) / p(x_i),   bound = 1/N sum_i log p(x_i)
    M   n_k = sum_i R[i, k],  w_k = n_k / N,  m_k = sum_i R[i, k] x_i / n_k,
        S_k = sum_i R[i, k] (x_i - m_k)(x_i - m_k)' / n_k + ridge I

from a hard assignment until the bound changes by less than `tol`; then a last E-step.

This file is the mixture and what can be asked of it. Others share the work: `fitting`
divides the points among the devices, `covariance` makes mixtures of moments, `em`
iterates over all pairs of points and components, and `sparse_em` over those pairs alone
whose responsibility is not exactly zero; with fewer points to a component than D / 2 it
keeps bases of those points in place of matrices [D, D] (`low_rank`), and the matrices
below are made once, at the end.

    >>> import numpy as np
    >>> from rankckpt_jax.measures import gmm
    >>> points = np.concatenate([np.arange(8.0), 100 + np.arange(8.0)])[:, None]
    >>> mixture = gmm.fit(points, num_components=2, init_labels=[0] * 8 + [1] * 8)
    >>> print(mixture.weights, mixture.means[:, 0].round(2))
    [0.5 0.5] [  3.5 103.5]
    >>> print(gmm.responsibilities(mixture, [[50.0], [60.0]]).round())
    [[1. 0.]
     [0. 1.]]
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.measures.mixture import covariance, fitting


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights", "means", "covariances", "precision_cholesky"]
    + ["lower_bounds", "converged"],
    meta_fields=["covariance_type"],
)
@dataclasses.dataclass(frozen=True)
class GMM:
    """A fitted mixture; a pytree.

    Attributes:
      weights: [K], summing to 1.
      means: [K, D].
      covariances: [K, D, D] (full), [D, D] (tied), [K, D] (diag) or [K] (spherical),
        ridge included.
      precision_cholesky: Of the same shape: upper triangular P with S^-1 = P P' (full,
        tied), or 1 / sqrt(variance).
      lower_bounds: [iterations + 1], the mean log likelihood found by each E-step; the
        last is that of this mixture.
      converged: bool scalar; whether the bound's change fell below `tol`.
      covariance_type: "full", "tied", "diag" or "spherical".
    """

    weights: Any
    means: Any
    covariances: Any
    precision_cholesky: Any
    lower_bounds: Any
    converged: Any
    covariance_type: str = "full"

    @property
    def num_iterations(self) -> int:
        """Iterations of EM that were done."""
        return len(self.lower_bounds) - 1

    def log_prob(self, x: Any) -> jax.Array:
        """Log density of each point, in nats: [N, D] -> [N]."""
        return log_prob(self, x)

    def responsibilities(self, x: Any) -> jax.Array:
        """Posterior of each component: [N, D] -> [N, K], rows summing to 1."""
        return responsibilities(self, x)

    def sample(self, key: jax.Array, num_samples: int) -> tuple[jax.Array, jax.Array]:
        """Draws points [num_samples, D] and the components [num_samples] they are of.

        A point is m + P^-T z with z standard normal, since (P^-T)(P^-T)' = S.
        """
        which, noise = jax.random.split(key)
        log_weights = jnp.log(jnp.asarray(self.weights))
        drawn = jax.random.categorical(which, log_weights, shape=(num_samples,))
        means = jnp.asarray(self.means)[drawn]
        z = jax.random.normal(noise, means.shape, means.dtype)
        factor = jnp.asarray(self.precision_cholesky)
        if self.covariance_type == "full":
            z = jax.vmap(_unwhiten)(factor[drawn], z)
        elif self.covariance_type == "tied":
            z = jax.vmap(functools.partial(_unwhiten, factor))(z)
        elif self.covariance_type == "diag":
            z = z / factor[drawn]
        else:
            z = z / factor[drawn][:, None]
        return means + z, drawn


def fit(
    x: Any,
    num_components: int,
    covariance_type: str = "full",
    init_labels: Any = None,
    reg_covar: float = 1e-6,
    tol: float = 1e-3,
    max_iter: int = 100,
    seed: int = 0,
    shard: str = "rows",
) -> GMM:
    """Fits a mixture by EM from a hard assignment of the points.

    Args:
      x: float [N, D], NumPy or JAX, the same on every process; computed in float32, or
        in float64 where it is so and JAX has it enabled.
      num_components: K, at most N.
      covariance_type: "full", "tied", "diag" or "spherical".
      init_labels: int [N] in 0 ... K-1, each point's component at the start; k-means if
        None. A component without a point starts at the points' mean (scikit-learn puts
        it at the origin).
      reg_covar: Ridge added to every variance. In float32 that of a full or tied
        covariance is at least what rounding demands, see `covariance`.
      tol: Least change of the mean log likelihood that is worth going on for.
      max_iter: Most iterations, at least 1.
      seed: Decides k-means's start.
      shard: What is divided among the devices: "rows", or "components" where K D^2
        numbers are too many for one device (dense EM only).

    Returns:
      The mixture, in NumPy arrays.

    Raises:
      InputError: More components than points, values that are not finite, labels
        outside 0 ... K-1, or an unknown covariance type.
    """
    fitted = fitting.fit(
        x,
        num_components,
        covariance_type=covariance_type,
        init_labels=init_labels,
        reg_covar=reg_covar,
        tol=tol,
        max_iter=max_iter,
        seed=seed,
        shard=shard,
    )
    return of_fitted(fitted)


def of_fitted(fitted: fitting.Fitted) -> GMM:
    """The mixture of the points as they were given: not centered, nor padded."""
    covariance_type = fitted.setting.covariance_type
    weights, means, covariances, factors = map(np.asarray, fitted.parameters)
    size = len(fitted.center)
    axes = {"full": (1, 2), "tied": (0, 1), "diag": (1,), "spherical": ()}
    cut: list[slice] = [slice(None)] * covariances.ndim
    for axis in axes[covariance_type]:
        cut[axis] = slice(size)
    return GMM(
        weights=weights,
        means=means[:, :size] + fitted.center,
        covariances=covariances[tuple(cut)],
        precision_cholesky=factors[tuple(cut)],
        lower_bounds=fitted.lower_bounds,
        converged=np.asarray(fitted.state.converged),
        covariance_type=covariance_type,
    )


def log_prob(gmm: GMM, x: Any) -> jax.Array:
    """Log density of each point, in nats: [N, D] -> [N]."""
    return jax.nn.logsumexp(_joint(gmm, jnp.asarray(x)), axis=1)


def responsibilities(gmm: GMM, x: Any) -> jax.Array:
    """Posterior of each component for each point: [N, D] -> [N, K], rows sum to 1."""
    return jax.nn.softmax(_joint(gmm, jnp.asarray(x)), axis=1)


@jax.jit
def _joint(gmm: GMM, x: jax.Array) -> jax.Array:
    """The log of w_k N(x_i; m_k, S_k): [N, K]."""
    dtype = jnp.asarray(gmm.means).dtype
    x = x.astype(dtype)
    count, size = gmm.means.shape
    factors = gmm.precision_cholesky
    mixture = covariance.Parameters(gmm.weights, gmm.means, gmm.covariances, factors)
    dimensions = jnp.asarray(size, dtype)
    normalizer = covariance.log_normalizer(gmm.covariance_type, mixture, dimensions)
    if gmm.covariance_type == "tied":
        factors = jnp.broadcast_to(factors, (count, size, size))

    def one(component: tuple[jax.Array, ...]) -> jax.Array:
        mean, factor, normalizer = component
        centered = (x - mean).T
        if factor.ndim == 2:
            whitened = covariance.whiten(factor, centered)
        else:
            whitened = (factor * centered.T).T
        return normalizer - jnp.sum(whitened**2, axis=0) / 2

    return jax.lax.map(one, (gmm.means, factors, normalizer)).T


def _unwhiten(factor: jax.Array, z: jax.Array) -> jax.Array:
    return jax.scipy.linalg.solve_triangular(factor, z, trans="T")
