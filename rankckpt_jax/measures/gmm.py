"""Gaussian mixtures by expectation-maximisation, on the device.

N points x_i in D dimensions, K components with weights w_k, means m_k and covariances
S_k. One iteration, as in scikit-learn's GaussianMixture:

    E   R[i, k] = w_k N(x_i; m_k, S_k) / p(x_i),   bound = 1/N sum_i log p(x_i)
    M   n_k = sum_i R[i, k],  w_k = n_k / N,  m_k = sum_i R[i, k] x_i / n_k,
        S_k = sum_i R[i, k] (x_i - m_k)(x_i - m_k)' / n_k + ridge I

until the bound changes by less than `tol`. With S_k = L L' and P = L^-T, the
"precision_cholesky",

    log N(x; m, S) = -1/2 (D log 2 pi + |(x - m)' P|^2) + sum_j log P_jj

What makes it hold in float32: the points are centred once; second moments are taken
about each component's own mean, never as a difference of large numbers; and a full
covariance is never factorised as a matrix that rounding has already made indefinite
(with fewer points than dimensions it is singular but for a ridge of 1e-6), but through
its square root, the scaled points themselves; see `_factorise`.

Cost of an iteration: about 12 N K D^2 FLOP (full), 4 N K D (diag). Memory beyond the
result: [N, K] responsibilities, and one [N, D] block for each component at hand.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import kmeans

COVARIANCE_TYPES = ("full", "diag")

# Each pass of `_factorise` lowers the condition number by about 1 / (D epsilon).
_MAX_PASSES = 8

_HIGHEST = jax.lax.Precision.HIGHEST


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights", "means", "covariances", "precisions_cholesky"]
    + ["lower_bounds", "num_iterations", "converged"],
    meta_fields=["covariance_type"],
)
@dataclasses.dataclass(frozen=True)
class GMM:
    """A fitted mixture; a pytree.

    Attributes:
      weights: [K], summing to 1.
      means: [K, D].
      covariances: [K, D, D] (full) or [K, D] (diag), ridge included.
      precisions_cholesky: [K, D, D] upper triangular P with S^-1 = P P' (full), or
        [K, D], 1 / sqrt(variance) (diag).
      lower_bounds: [max_iter]; the bound of each E-step, NaN for those not taken.
      num_iterations: int scalar.
      converged: bool scalar; whether the bound's change fell below `tol`.
      covariance_type: "full" or "diag".
    """

    weights: jax.Array
    means: jax.Array
    covariances: jax.Array
    precisions_cholesky: jax.Array
    lower_bounds: jax.Array
    num_iterations: jax.Array
    converged: jax.Array
    covariance_type: str


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
    """Fits a mixture by EM from a hard assignment of the points.

    Args:
      x: float [N, D], NumPy or JAX; computed in its own dtype.
      num_components: K, at most N.
      covariance_type: "full" or "diag".
      init_labels: int [N], each point's component at the start; k-means if None.
      reg_covar: Ridge added to every variance.
      tol: Least change of the mean log likelihood that is worth going on for.
      max_iter: Most iterations.
      seed: Decides k-means's start.

    Raises:
      InputError: More components than points, or an unknown covariance type.
    """
    x = jnp.asarray(x)
    if covariance_type not in COVARIANCE_TYPES:
        raise InputError(
            f"Unknown covariance type {covariance_type!r}",
            expected=" or ".join(COVARIANCE_TYPES),
        )
    if len(x) < num_components:
        raise InputError(
            "More mixture components than points",
            expected=f"at least {num_components} points",
            found=f"{len(x)}",
        )
    if init_labels is None:
        init_labels = kmeans.fit(x, num_components, seed).assignments
    init_labels = jnp.asarray(np.asarray(init_labels), jnp.int32)
    centre = jnp.mean(x, axis=0)
    numbers = jnp.asarray([reg_covar, tol], x.dtype)
    gmm = _fit(
        x - centre, init_labels, numbers, num_components, covariance_type, max_iter
    )
    return dataclasses.replace(gmm, means=gmm.means + centre)


def log_prob(gmm: GMM, x: jax.Array) -> jax.Array:
    """Log density of each point: [N, D] -> [N], in nats."""
    return jax.nn.logsumexp(_weighted_log_prob(gmm, jnp.asarray(x)), axis=1)


def responsibilities(gmm: GMM, x: Any) -> jax.Array:
    """Posterior of each component for each point: [N, D] -> [N, K], rows sum to 1."""
    return jax.nn.softmax(_weighted_log_prob(gmm, jnp.asarray(x)), axis=1)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _fit(
    x: jax.Array,
    init_labels: jax.Array,
    numbers: jax.Array,
    num_components: int,
    covariance_type: str,
    max_iter: int,
) -> GMM:
    reg_covar, tol = numbers

    def going_on(gmm: GMM) -> jax.Array:
        return ~gmm.converged & (gmm.num_iterations < max_iter)

    def iterate(gmm: GMM) -> GMM:
        step = gmm.num_iterations
        joint = _weighted_log_prob(gmm, x)
        evidence = jax.nn.logsumexp(joint, axis=1)
        bound = jnp.mean(evidence)
        previous = jnp.where(step > 0, gmm.lower_bounds[step - 1], -jnp.inf)
        resp = jnp.exp(joint - evidence[:, None])
        return dataclasses.replace(
            gmm,
            **_m_step(x, resp, reg_covar, covariance_type),
            lower_bounds=gmm.lower_bounds.at[step].set(bound),
            num_iterations=step + 1,
            converged=jnp.abs(bound - previous) < tol,
        )

    one_hot = jax.nn.one_hot(init_labels, num_components, dtype=x.dtype)
    start = GMM(
        **_m_step(x, one_hot, reg_covar, covariance_type),
        lower_bounds=jnp.full(max_iter, jnp.nan, x.dtype),
        num_iterations=jnp.asarray(0),
        converged=jnp.asarray(False),
        covariance_type=covariance_type,
    )
    return jax.lax.while_loop(going_on, iterate, start)


def _m_step(
    x: jax.Array, resp: jax.Array, reg_covar: jax.Array, covariance_type: str
) -> dict[str, Any]:
    """The mixture's parameters, given responsibilities [N, K]."""
    counts = jnp.sum(resp, axis=0) + 10 * jnp.finfo(x.dtype).eps
    means = jnp.dot(resp.T, x, precision=_HIGHEST) / counts[:, None]

    weights = counts / jnp.sum(counts)

    def scaled(component: tuple[jax.Array, ...]) -> jax.Array:
        weight, mean, count = component
        return jnp.sqrt(weight / count)[:, None] * (x - mean)

    components = (resp.T, means, counts)
    if covariance_type == "diag":
        variances = jax.lax.map(
            lambda c: jnp.sum(scaled(c) ** 2, axis=0) + reg_covar, components
        )
        precisions_cholesky = jax.lax.rsqrt(variances)
        covariances = variances
    else:
        covariances, precisions_cholesky = jax.lax.map(
            lambda c: _factorise(scaled(c), reg_covar), components
        )
    return {
        "weights": weights,
        "means": means,
        "covariances": covariances,
        "precisions_cholesky": precisions_cholesky,
    }


def _factorise(a: jax.Array, ridge: jax.Array) -> tuple[jax.Array, jax.Array]:
    """S = a'a + ridge I [D, D], and upper triangular P [D, D] with S^-1 = P P'.

    By shifted Cholesky QR (Fukaya et al. 2020): with P' S P = G, starting at P = I, and
    G + shift I = R'R, P becomes P R^-1 and G comes closer to I. The shift keeps the
    factorisation from breaking down where G's smallest eigenvalue drowns in rounding;
    once G is near I none is needed, and P is as exact as a QR of [a; sqrt(ridge) I].
    """
    dimensions = a.shape[1]
    identity = jnp.eye(dimensions, dtype=a.dtype)

    def gram(p: jax.Array) -> jax.Array:
        whitened = jnp.dot(a, p, precision=_HIGHEST)
        product = jnp.dot(whitened.T, whitened, precision=_HIGHEST)
        return product + ridge * jnp.dot(p.T, p, precision=_HIGHEST)

    def going_on(state: Any) -> jax.Array:
        _, _, near, steps = state
        return ~near & (steps < _MAX_PASSES)

    def improve(state: Any) -> Any:
        p, g, _, steps = state
        near = jnp.linalg.norm(g - identity) < 0.5
        rounding = dimensions * jnp.finfo(a.dtype).eps * jnp.trace(g)
        cholesky = jnp.linalg.cholesky(g + jnp.where(near, 0, rounding) * identity)
        inverse = jax.scipy.linalg.solve_triangular(cholesky, identity, lower=True).T
        p = jnp.dot(p, inverse, precision=_HIGHEST)
        return p, gram(p), near, steps + 1

    covariance = gram(identity)
    start = (identity, covariance, jnp.asarray(False), jnp.asarray(0))
    p, *_ = jax.lax.while_loop(going_on, improve, start)
    return covariance, p


def _weighted_log_prob(gmm: GMM, x: jax.Array) -> jax.Array:
    """Log w_k + log N(x_i; m_k, S_k): [N, K]."""

    def mahalanobis(component: tuple[jax.Array, jax.Array]) -> jax.Array:
        mean, precision_cholesky = component
        centred = x - mean
        if gmm.covariance_type == "diag":
            whitened = centred * precision_cholesky
        else:
            whitened = jnp.dot(centred, precision_cholesky, precision=_HIGHEST)
        return jnp.sum(whitened**2, axis=1)

    distances = jax.lax.map(mahalanobis, (gmm.means, gmm.precisions_cholesky)).T
    diagonal = gmm.precisions_cholesky
    if gmm.covariance_type == "full":
        diagonal = jnp.diagonal(diagonal, axis1=1, axis2=2)
    log_det = jnp.sum(jnp.log(diagonal), axis=1)
    constant = x.shape[1] * jnp.log(2 * jnp.pi).astype(x.dtype)
    return jnp.log(gmm.weights) + log_det - 0.5 * (constant + distances)
