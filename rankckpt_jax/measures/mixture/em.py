"""Dense expectation-maximization: every component for every point.

N points in D dimensions, K components. A Gaussian is an exponential family with the
sufficient statistics T(x),

    full       T(x) = (1, x, x_i x_j for i <= j)      F = 1 + D + D (D + 1) / 2
    diag       T(x) = (1, x, x_j^2)                   F = 1 + 2 D
    spherical  T(x) = (1, x, |x|^2)                   F = 2 + D
    tied       T(x) = (1, x)                          F = 1 + D

Its log density is linear in T, and its moments are means of T. For a block of B points,
with T [F, B], both steps of EM are therefore one matrix product each:

    E   log w_k N(x; m_k, S_k) = C T with C [K, F]; R [K, B] = softmax over k
    M   sum_i R[k, i] T(x_i)   = R T' [K, F]

Cost: 4 N K F FLOP per iteration. For full covariances, where F is D^2 / 2, that is
2 N K D^2, half of the cost of whitening each point for each component. Memory: T and R
of one block, and sums [K, F]. `sufficient` defines the layout of T.

Few components. If K D <= F, computing T takes longer than using it. The points are then
whitened for all components in one product [K D, D] [D, B], and the moments are one
product [K D, B] [B, D]: 4 N K D^2 FLOP and K D numbers per point instead of F.

Rounding. C T sums terms of size |x|^2 |S_k^-1|, so its error is up to eps |x|^2
|S_k^-1|. A component for which this exceeds _TOLERANCE is called sharp. Sharp
components are evaluated one by one as |P'(x - m)|^2, and their moments are accumulated
about their previous mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rankckpt_jax.devices import mapping
from rankckpt_jax.measures.mixture import sufficient
from rankckpt_jax.measures.mixture.covariance import (
    Parameters,
    compute_parameters,
    log_normalizer,
    whiten,
)
from rankckpt_jax.measures.statistics import blocks

_TOLERANCE = {"float32": 2e-3, "float64": 1e-9}
"""Largest acceptable error of a log density from the linear form, in nats."""


class Setting(NamedTuple):
    """Static settings of EM.

    Attributes:
      covariance_type: One of `covariance.TYPES`.
      max_iter: Maximum number of iterations.
    """

    covariance_type: str
    max_iter: int


class Data(NamedTuple):
    """The points of one device in blocks, and scalars.

    Attributes:
      x: [blocks, B, D'], centered; D' >= D includes padding.
      mask: [blocks, B], 1 for a point and 0 for padding.
      dimensions: Scalar D.
      num_rows: Scalar N, over all devices.
      ridge: Scalar, added to every variance.
      tol: Scalar; EM stops when the lower bound changes by less.
    """

    x: Any
    mask: Any
    dimensions: Any
    num_rows: Any
    ridge: Any
    tol: Any


class State(NamedTuple):
    """The state of EM.

    Attributes:
      parameters: The mixture, `covariance.Parameters`.
      lower_bounds: [max_iter + 1], mean log likelihood of each E-step, infinite for
        those that were not taken.
      step: int32 scalar, number of finished iterations.
      converged: bool scalar.
    """

    parameters: Any
    lower_bounds: jax.Array
    step: jax.Array
    converged: jax.Array


def init_state(parameters: Parameters, max_iter: int) -> State:
    """Return the state before the first iteration."""
    bounds = jnp.full(max_iter + 1, jnp.inf, parameters.means.dtype)
    return State(parameters, bounds, jnp.int32(0), jnp.asarray(False))


def init_from_labels(
    setting: Setting, data: Data, labels: jax.Array, num_components: int
) -> State:
    """Return the state before the first iteration, from hard assignments.

    Full covariances are not supported, because `sparse_em.m_step` computes them faster.

    Args:
      setting: Covariance type and number of iterations.
      data: The points of this device.
      labels: int32 [blocks, B]; padding has a label of at least K.
      num_components: K.
    """
    kind = setting.covariance_type
    blockwise = data.x, jax.nn.one_hot(labels, num_components, dtype=data.x.dtype)

    def add_points(sums: Any, block: Any) -> Any:
        x, members = block
        counts, points = sums
        points = points + blocks.dot(members.T, x)
        return (counts + jnp.sum(members, axis=0), points), None

    size = data.x.shape[2]
    zeros = jnp.zeros((num_components, size), data.x.dtype)
    sums, _ = jax.lax.scan(add_points, (zeros[:, 0], zeros), blockwise)
    counts, points = blocks.sum_over_devices(sums)
    counts = counts + 10 * jnp.finfo(zeros.dtype).eps
    total = jnp.sum(counts)
    means = points / counts[:, None]

    def add_products(sums: Any, block: Any) -> Any:
        x, members = block
        centered = x - blocks.dot(members, means)
        if kind == "tied":
            weighted = jnp.sum(members, axis=1)[:, None] * centered
            return sums + blocks.dot(weighted.T, centered), None
        return sums + blocks.dot(members.T, centered**2), None

    square = jnp.zeros((size, size), zeros.dtype) if kind == "tied" else zeros
    products, _ = jax.lax.scan(add_products, square, blockwise)
    moments = blocks.sum_over_devices(products)
    if kind == "tied":
        moments = moments / total
    elif kind == "diag":
        moments = moments / counts[:, None]
    else:
        moments = jnp.sum(moments, axis=1) / counts / data.dimensions
    mixture = compute_parameters(
        kind, counts, means, moments, data.dimensions, data.ridge
    )
    return init_state(mixture, setting.max_iter)


def run(setting: Setting, data: Data, state: State) -> State:
    """Iterate until the lower bound changes by less than tol, then take an E-step."""
    scatter = None
    if setting.covariance_type == "tied":
        # The scatter of all points is constant; only the part between means changes.
        scatter = jnp.einsum("nbi,nbj->ij", data.x, data.x)
        scatter = blocks.sum_over_devices(scatter)

    def is_running(state: State) -> jax.Array:
        return ~state.converged & (state.step < setting.max_iter)

    def iterate(state: State) -> State:
        expect = Expectation(setting, data, state.parameters)

        def add(sums: Any, block: jax.Array, mask: jax.Array) -> Any:
            bound, moments = sums
            evidence, resp, statistics = expect(block)
            moments = moments + expect.moments(block, resp * mask[None], statistics)
            return bound + jnp.sum(evidence * mask), moments

        start = jnp.zeros((), data.x.dtype), jnp.zeros_like(expect.coefficients)
        bound, moments = blocks.sum_over_devices(_fold(data, add, start))
        bound = bound / data.num_rows
        step, bounds = state.step, state.lower_bounds
        before = jnp.where(step > 0, bounds[step - 1], -jnp.inf)
        return State(
            _m_step(setting, data, moments, expect.anchors, scatter),
            bounds.at[step].set(bound),
            step + 1,
            jnp.abs(bound - before) < data.tol,
        )

    state = jax.lax.while_loop(is_running, iterate, state)
    expect = Expectation(setting, data, state.parameters)

    def add_bound(bound: jax.Array, block: jax.Array, mask: jax.Array) -> jax.Array:
        return bound + jnp.sum(expect(block)[0] * mask)

    bound = _fold(data, add_bound, jnp.zeros((), data.x.dtype))
    bound = blocks.sum_over_devices(bound) / data.num_rows
    return state._replace(lower_bounds=state.lower_bounds.at[state.step].set(bound))


def _fold(data: Data, add: Callable[..., Any], start: Any) -> Any:
    """Apply `add(sums, x [D', B], mask [B])` to each block of this device."""

    def step(sums: Any, block: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        return add(sums, block[0].T, block[1]), None

    return jax.lax.scan(step, start, (data.x, data.mask))[0]


class Expectation:
    """The E-step under one mixture; call it with a block of points.

    Attributes:
      coefficients: C [K, F] of the module docstring.
      anchors: [K, D'], the point about which the moments of each component are taken:
        its mean if it is sharp, else 0.
    """

    def __init__(self, setting: Setting, data: Data, parameters: Parameters):
        """Compute what all blocks share."""
        self._kind = setting.covariance_type
        self._parameters = parameters
        self._normalizer = log_normalizer(self._kind, parameters, data.dimensions)
        self.coefficients, size = sufficient.coefficients(
            self._kind, parameters, self._normalizer
        )
        largest = jnp.max(jnp.sum(data.x**2, axis=2))
        largest = jax.lax.pmax(largest, mapping.AXIS)
        dtype = data.x.dtype
        error = jnp.finfo(dtype).eps * largest * size
        sharp = error > _TOLERANCE[dtype.name]
        self.anchors = jnp.where(sharp[:, None], parameters.means, 0)
        count, columns = self.coefficients.shape
        self._whitens = self._kind == "full" and count * data.x.shape[2] <= columns
        self._num_sharp = jnp.sum(sharp)
        (self._sharp,) = jnp.nonzero(sharp, size=len(sharp), fill_value=0)
        self._is_sharp = sharp[:, None]

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Take the E-step for x [D', B].

        Returns:
          The log density of each point [B], the responsibilities [K, B], and what
          `moments` needs: T [F, B], or x if there are few components.
        """
        statistics = x if self._whitens else sufficient.statistics(self._kind, x)
        shape = len(self.coefficients), x.shape[1]

        def linear(statistics: jax.Array) -> jax.Array:
            if self._whitens:
                return self._whitened(statistics)
            return blocks.dot(self.coefficients, statistics)

        def skip(statistics: jax.Array) -> jax.Array:
            return jnp.zeros(shape, statistics.dtype)

        any_linear = self._num_sharp < shape[0]
        joint = jax.lax.cond(any_linear, linear, skip, statistics)
        if self._kind == "tied":
            whitened = whiten(self._parameters.precision_cholesky, x)
            joint = joint - jnp.sum(whitened**2, axis=0)[None] / 2

        def direct(j: jax.Array, joint: jax.Array) -> jax.Array:
            k = self._sharp[j]
            centered = x - self._parameters.means[k][:, None]
            factor = self._parameters.precision_cholesky[k]
            if self._kind == "full":
                whitened = whiten(factor, centered)
            elif self._kind == "diag":
                whitened = factor[:, None] * centered
            else:
                whitened = factor * centered
            distance = jnp.sum(whitened**2, axis=0)
            return joint.at[k].set(self._normalizer[k] - distance / 2)

        if self._kind != "tied":
            joint = jax.lax.fori_loop(0, self._num_sharp, direct, joint)
        largest = jnp.max(joint, axis=0)
        unscaled = jnp.exp(joint - largest[None])
        evidence = jnp.sum(unscaled, axis=0)
        return largest + jnp.log(evidence), unscaled / evidence[None], statistics

    def _whitened(self, x: jax.Array) -> jax.Array:
        """Return log densities [K, B] of x [D', B] from P'x - P'm."""
        size, means = len(x), self._parameters.means
        factors = jnp.swapaxes(self._parameters.precision_cholesky, 1, 2)
        offsets = jnp.einsum(
            "kij,kj->ki", factors, means, precision=jax.lax.Precision.HIGHEST
        )
        whitened = blocks.dot(factors.reshape(-1, size), x).reshape(*means.shape, -1)
        distance = jnp.sum((whitened - offsets[:, :, None]) ** 2, axis=1)
        return self._normalizer[:, None] - distance / 2

    def moments(
        self, x: jax.Array, resp: jax.Array, statistics: jax.Array
    ) -> jax.Array:
        """Return the M-step's sums R T' [K, F] over a block, about the anchors.

        Args:
          x: The block, [D', B].
          resp: Responsibilities R [K, B], 0 for padding.
          statistics: The third result of the E-step.
        """

        def linear(statistics: jax.Array) -> jax.Array:
            weights = jnp.where(self._is_sharp, 0, resp)
            if not self._whitens:
                return blocks.dot(weights, statistics.T)
            size = len(x)
            weighted = (weights[:, None] * x[None]).reshape(-1, x.shape[1])
            second = blocks.dot(weighted, x.T).reshape(-1, size, size)
            counts = jnp.sum(weights, axis=1, keepdims=True)
            first = blocks.dot(weights, x.T)
            return jnp.concatenate([counts, first, sufficient.pack(second)], axis=1)

        def skip(statistics: jax.Array) -> jax.Array:
            return jnp.zeros(self.coefficients.shape, statistics.dtype)

        any_linear = self._num_sharp < len(resp)
        sums = jax.lax.cond(any_linear, linear, skip, statistics)

        def direct(j: jax.Array, sums: jax.Array) -> jax.Array:
            k = self._sharp[j]
            weights = resp[k]
            centered = x - self._parameters.means[k][:, None]
            weighted = weights[None] * centered
            parts = [jnp.sum(weights)[None], jnp.sum(weighted, axis=1)]
            if self._kind == "full":
                parts.append(sufficient.pack(blocks.dot(weighted, centered.T)))
            elif self._kind == "diag":
                parts.append(jnp.sum(weighted * centered, axis=1))
            else:
                parts.append(jnp.sum(weighted * centered)[None])
            return sums.at[k].set(jnp.concatenate(parts))

        if self._kind == "tied":
            return sums
        return jax.lax.fori_loop(0, self._num_sharp, direct, sums)


def _m_step(
    setting: Setting,
    data: Data,
    sums: jax.Array,
    anchors: jax.Array,
    scatter: jax.Array | None,
) -> Parameters:
    """Return the mixture of the moments `sums` [K, F] about `anchors` [K, D'].

    `scatter` [D', D'] is that of all points, for a tied covariance.
    """
    size = anchors.shape[1]
    # As in scikit-learn, so that an empty component does not divide by zero.
    counts = sums[:, 0] + 10 * jnp.finfo(sums.dtype).eps
    shifts = sums[:, 1 : 1 + size] / counts[:, None]
    means = anchors + shifts
    second = sums[:, 1 + size :]
    if setting.covariance_type == "full":
        moments = sufficient.unpack(second, size) / counts[:, None, None]
        moments = moments - shifts[:, :, None] * shifts[:, None, :]
    elif scatter is not None:
        between = blocks.dot((counts[:, None] * means).T, means)
        moments = (scatter - between) / jnp.sum(counts)
    elif setting.covariance_type == "diag":
        moments = second / counts[:, None] - shifts**2
    else:
        moments = second[:, 0] / counts - jnp.sum(shifts**2, axis=1)
        moments = moments / data.dimensions
    return compute_parameters(
        setting.covariance_type, counts, means, moments, data.dimensions, data.ridge
    )
