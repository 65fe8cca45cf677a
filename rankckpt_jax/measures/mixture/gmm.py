"""Gaussian mixtures by expectation-maximization on the device.

N points x_i in D dimensions, K components with weights w_k, means m_k and covariances
S_k. As in scikit-learn's GaussianMixture, one iteration is

    E   R[i, k] = w_k N(x_i; m_k, S_k) / p(x_i),   bound = 1/N sum_i log p(x_i)
    M   n_k = sum_i R[i, k],  w_k = n_k / N,  m_k = sum_i R[i, k] x_i / n_k,
        S_k = sum_i R[i, k] (x_i - m_k)(x_i - m_k)' / n_k + ridge I

EM starts from hard assignments, stops when the bound changes by less than `tol`, and
ends with an E-step.

This file defines the mixture and its queries. `fitting` chooses between two programs:
`em` iterates over all pairs of points and components, and `covariance` computes its
parameters from moments. With fewer points per component than dimensions, `sparse_em`
iterates over pairs with a responsibility above 0, and `low_rank` replaces [D, D]
matrices by bases of the points; the covariances below are then computed at the end.

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

from rankckpt_jax.devices import mapping
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
        including the ridge.
      precision_cholesky: Same shape: upper triangular P with S^-1 = P P' (full, tied),
        or 1 / sqrt(variance) (diag, spherical).
      lower_bounds: [iterations + 1], mean log likelihood of each E-step; the last one
        belongs to this mixture.
      converged: bool scalar; whether the bound changed by less than `tol`.
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
        """Number of EM iterations."""
        return len(self.lower_bounds) - 1


@mapping.allow_transfers
def fit(
    x: Any,
    num_components: int,
    covariance_type: str = "full",
    init_labels: Any = None,
    reg_covar: float = 1e-6,
    tol: float = 1e-3,
    max_iter: int = 100,
    seed: int = 0,
) -> GMM:
    """Fit a mixture by EM from hard assignments of the points.

    Args:
      x: float [N, D], NumPy or JAX, equal on every process. Computed in float32, except
        float64 where JAX has it enabled.
      num_components: K, at most N.
      covariance_type: "full", "tied", "diag" or "spherical".
      init_labels: int [N] in 0 ... K-1, the initial component of each point; from
        k-means if None. An empty component starts at the mean of all points
        (scikit-learn starts it at the origin).
      reg_covar: Ridge added to every variance. In float32, the ridge of full and tied
        covariances is raised to the rounding error if it is lower, see `covariance`.
      tol: EM stops when the mean log likelihood changes by less.
      max_iter: Maximum number of iterations, at least 1.
      seed: Seed of k-means.

    Returns:
      The mixture, in NumPy arrays.

    Raises:
      InputError: There are more components than points, values are not finite, labels
        lie outside 0 ... K-1, or the covariance type does not exist.
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
    )
    return from_fitted(fitted)


def from_fitted(fitted: fitting.Fitted) -> GMM:
    """Convert to a mixture of the original points, which are not centered or padded."""
    weights, means, covariances, factors = fitted.parameters()
    return GMM(
        weights=weights,
        means=means + fitted.center,
        covariances=covariances,
        precision_cholesky=factors,
        lower_bounds=fitted.lower_bounds,
        converged=np.asarray(fitted.converged),
        covariance_type=fitted.setting.covariance_type,
    )


@mapping.allow_transfers
def log_prob(gmm: GMM, x: Any) -> jax.Array:
    """Return the log density of each point of x [N, D], in nats: [N]."""
    return jax.nn.logsumexp(_log_joint(gmm, jnp.asarray(x)), axis=1)


@mapping.allow_transfers
def responsibilities(gmm: GMM, x: Any) -> jax.Array:
    """Return the posterior of each component for x [N, D]: [N, K], rows sum to 1."""
    return jax.nn.softmax(_log_joint(gmm, jnp.asarray(x)), axis=1)


@jax.jit
def _log_joint(gmm: GMM, x: jax.Array) -> jax.Array:
    """Return log w_k N(x_i; m_k, S_k): [N, K]."""
    dtype = jnp.asarray(gmm.means).dtype
    x = x.astype(dtype)
    count, size = gmm.means.shape
    factors = gmm.precision_cholesky
    mixture = covariance.Parameters(gmm.weights, gmm.means, gmm.covariances, factors)
    dimensions = jnp.asarray(size, dtype)
    normalizer = covariance.log_normalizer(gmm.covariance_type, mixture, dimensions)
    if gmm.covariance_type == "tied":
        factors = jnp.broadcast_to(factors, (count, size, size))

    def log_joint(component: tuple[jax.Array, ...]) -> jax.Array:
        mean, factor, normalizer = component
        centered = (x - mean[None]).T
        if factor.ndim == 2:
            whitened = covariance.whiten(factor, centered)
        else:
            whitened = factor.reshape(-1, 1) * centered
        return normalizer - jnp.sum(whitened**2, axis=0) / 2

    return jax.lax.map(log_joint, (gmm.means, factors, normalizer)).T
