"""Dense expectation-maximisation: every component for every point.

N points in D dimensions, K components. A Gaussian is an exponential family: with the
statistics T(x) of a point,

    full       T(x) = (1, x, x_i x_j for i <= j)      F = 1 + D + D (D + 1) / 2
    diag       T(x) = (1, x, x_j^2)                   F = 1 + 2 D
    spherical  T(x) = (1, x, |x|^2)                   F = 2 + D
    tied       T(x) = (1, x)                          F = 1 + D

its log density is linear in T, and its moments are means of T. So for a block of points
both steps of EM are one matrix product each, with T [F, B] between them:

    E   log w_k N(x; m_k, S_k) = C T, C [K, F];   its softmax over k is R [K, B]
    M   sum_i R[k, i] T(x_i)   = R T' [K, F]

Cost: 4 N K F FLOP an iteration; for full covariances, where F is D^2 / 2, 2 N K D^2,
half of what whitening each point for each component takes. Memory: T and R of one
block, and K F sums. `sufficient` lays T out.

With few components (K D <= F) the products are slim and making T takes longer than
using it. There the points are whitened after all, for all components in one product
[K D, D] [D, B], and the moments are one product [K D, B] [B, D]: 4 N K D^2 FLOP, but
K D numbers a point in place of F.

Rounding. C T sums terms as large as |x|^2 |S_k^-1|, of which a log density is the small
difference: its error is up to eps |x|^2 |S_k^-1|. Where that exceeds _TOLERANCE the
component is called sharp, and is done the direct way, |P'(x - m)|^2 and moments about
its old mean, one sharp component after the other.
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
    log_normalizer,
    parameters,
    whiten,
)
from rankckpt_jax.measures.statistics import blocks

_TOLERANCE = {"float32": 2e-3, "float64": 1e-9}
"""Largest error of a log density, in nats, that the linear form may bring."""


class Setting(NamedTuple):
    """What EM is to do; static, and equal on all devices.

    Attributes:
      covariance_type: One of `covariance.TYPES`.
      max_iter: Most iterations.
      shard: "rows", each device holds all components and a share of the points; or
        "components", each device holds all points and a share of the components.
    """

    covariance_type: str
    max_iter: int
    shard: str = "rows"


class Data(NamedTuple):
    """The points, in blocks, and three numbers.

    Attributes:
      x: [blocks, B, D'], centered.
      mask: [blocks, B], 1 for a point and 0 for padding.
      dimensions: Scalar D <= D', those that are not padding.
      num_rows: Scalar N, over all devices.
      ridge: Scalar.
      tol: Scalar.
    """

    x: Any
    mask: Any
    dimensions: Any
    num_rows: Any
    ridge: Any
    tol: Any


class State(NamedTuple):
    """Where EM stands.

    Attributes:
      parameters: The mixture, `covariance.Parameters`.
      lower_bounds: [max_iter + 1], of each E-step, NaN for those not taken.
      step: int32 scalar, iterations done.
      converged: bool scalar.
    """

    parameters: Any
    lower_bounds: jax.Array
    step: jax.Array
    converged: jax.Array


def begin(parameters: Parameters, max_iter: int) -> State:
    """EM before its first iteration."""
    bounds = jnp.full(max_iter + 1, jnp.nan, parameters.means.dtype)
    return State(parameters, bounds, jnp.int32(0), jnp.asarray(False))


def advance(state: State, bound: jax.Array, new: Parameters, tol: jax.Array) -> State:
    """EM after an iteration whose E-step found `bound` and whose M-step `new`."""
    before = jnp.where(state.step > 0, state.lower_bounds[state.step - 1], -jnp.inf)
    return State(
        new,
        state.lower_bounds.at[state.step].set(bound),
        state.step + 1,
        jnp.abs(bound - before) < tol,
    )


def start(
    setting: Setting, data: Data, labels: jax.Array, num_components: int
) -> State:
    """EM before its first iteration, from a hard assignment of the points.

    Not for full covariances, which `sparse_em.m_step` makes without [K, B] products.

    Args:
      setting: The covariance type; rows are sharded here whatever it says.
      data: This device's points.
      labels: int32 [blocks, B]; padding has a label of K or more.
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
    mixture = parameters(
        kind, counts, total, means, moments, data.dimensions, data.ridge
    )
    return begin(mixture, setting.max_iter)


def run(setting: Setting, data: Data, state: State) -> State:
    """Iterates until the bound changes by less than tol, then takes a last E-step."""
    scatter = None
    if setting.covariance_type == "tied":
        # The points' scatter does not change: only its part between the means does.
        scatter = _over_rows(setting, jnp.einsum("nbi,nbj->ij", data.x, data.x))

    def going_on(state: State) -> jax.Array:
        return ~state.converged & (state.step < setting.max_iter)

    def iterate(state: State) -> State:
        expect = Expectation(setting, data, state.parameters)

        def add(sums: Any, block: jax.Array, mask: jax.Array) -> Any:
            bound, moments = sums
            evidence, resp, statistics = expect(block)
            moments = moments + expect.moments(block, resp * mask, statistics)
            return bound + jnp.sum(evidence * mask), moments

        start = jnp.zeros((), data.x.dtype), jnp.zeros_like(expect.coefficients)
        bound, moments = _over_rows(setting, fold(data, add, start))
        new = _m_step(setting, data, moments, expect.anchors, scatter)
        return advance(state, bound / data.num_rows, new, data.tol)

    state = jax.lax.while_loop(going_on, iterate, state)
    expect = Expectation(setting, data, state.parameters)

    def add_bound(bound: jax.Array, block: jax.Array, mask: jax.Array) -> jax.Array:
        return bound + jnp.sum(expect(block)[0] * mask)

    bound = _over_rows(setting, fold(data, add_bound, jnp.zeros((), data.x.dtype)))
    bounds = state.lower_bounds.at[state.step].set(bound / data.num_rows)
    return state._replace(lower_bounds=bounds)


def fold(data: Data, add: Callable[..., Any], start: Any) -> Any:
    """Runs `add(sums, x [D', B], mask [B], ...)` over the blocks of this device."""

    def step(sums: Any, block: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        return add(sums, block[0].T, block[1]), None

    return jax.lax.scan(step, start, (data.x, data.mask))[0]


def is_slim(kind: str, num_components: int, dimensions: int, columns: int) -> bool:
    """Whether K D' is at most F, so that whitening each point is the lesser work."""
    return kind == "full" and num_components * dimensions <= columns


class Expectation:
    """The E-step under one mixture; call it with a block of points.

    Attributes:
      coefficients: C [K, F] of the module's docstring.
      anchors: [K, D'], what the moments of each component are about: its mean where it
        is sharp, else 0.
    """

    def __init__(self, setting: Setting, data: Data, parameters: Parameters):
        """Prepares what all blocks share."""
        self._setting = setting
        self._parameters = parameters
        self._normalizer = log_normalizer(
            setting.covariance_type, parameters, data.dimensions
        )
        self.coefficients, size = sufficient.coefficients(
            setting.covariance_type, parameters, self._normalizer
        )
        largest = jnp.max(jnp.sum(data.x**2, axis=2))
        largest = jax.lax.pmax(largest, mapping.AXIS)
        dtype = data.x.dtype
        error = jnp.finfo(dtype).eps * largest * size
        sharp = (error > _TOLERANCE[dtype.name]) & (parameters.weights > 0)
        self.anchors = jnp.where(sharp[:, None], parameters.means, 0)
        count, columns = self.coefficients.shape
        self._few = is_slim(setting.covariance_type, count, data.x.shape[2], columns)
        self._num_sharp = jnp.sum(sharp)
        (self._sharp,) = jnp.nonzero(sharp, size=len(sharp), fill_value=0)
        self._is_sharp = sharp[:, None]

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Takes the step for x [D', B].

        Returns:
          Each point's log density [B], the responsibilities [K, B], and the statistics
          that `moments` takes: T [F, B], or x where there are few components.
        """
        kind = self._setting.covariance_type
        statistics = x if self._few else sufficient.statistics(kind, x)
        shape = len(self.coefficients), x.shape[1]

        def linear(statistics: jax.Array) -> jax.Array:
            if self._few:
                return self._whitened(statistics)
            return blocks.dot(self.coefficients, statistics)

        def nothing(statistics: jax.Array) -> jax.Array:
            return jnp.zeros(shape, statistics.dtype)

        any_linear = self._num_sharp < shape[0]
        joint = jax.lax.cond(any_linear, linear, nothing, statistics)
        if self._setting.covariance_type == "tied":
            whitened = whiten(self._parameters.precision_cholesky, x)
            joint = joint - jnp.sum(whitened**2, axis=0) / 2

        def direct(j: jax.Array, joint: jax.Array) -> jax.Array:
            k = self._sharp[j]
            centered = x - self._parameters.means[k][:, None]
            factor = self._parameters.precision_cholesky[k]
            if self._setting.covariance_type == "full":
                whitened = whiten(factor, centered)
            elif self._setting.covariance_type == "diag":
                whitened = factor[:, None] * centered
            else:
                whitened = factor * centered
            distance = jnp.sum(whitened**2, axis=0)
            return joint.at[k].set(self._normalizer[k] - distance / 2)

        if self._setting.covariance_type != "tied":
            joint = jax.lax.fori_loop(0, self._num_sharp, direct, joint)
        most = jnp.max(joint, axis=0)
        if self._setting.shard == "components":
            most = jax.lax.pmax(most, mapping.AXIS)
        unscaled = jnp.exp(joint - most)
        evidence = jnp.sum(unscaled, axis=0)
        if self._setting.shard == "components":
            evidence = jax.lax.psum(evidence, mapping.AXIS)
        return most + jnp.log(evidence), unscaled / evidence, statistics

    def _whitened(self, x: jax.Array) -> jax.Array:
        """Log densities [K, B] of x [D', B], from P'x - P'm of all components."""
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
        """The M-step's sums [K, F] over a block: of R T, about the anchors."""

        def linear(statistics: jax.Array) -> jax.Array:
            weights = jnp.where(self._is_sharp, 0, resp)
            if not self._few:
                return blocks.dot(weights, statistics.T)
            size = len(x)
            weighted = (weights[:, None] * x).reshape(-1, x.shape[1])
            second = blocks.dot(weighted, x.T).reshape(-1, size, size)
            counts = jnp.sum(weights, axis=1, keepdims=True)
            first = blocks.dot(weights, x.T)
            return jnp.concatenate([counts, first, sufficient.pack(second)], axis=1)

        def nothing(statistics: jax.Array) -> jax.Array:
            return jnp.zeros(self.coefficients.shape, statistics.dtype)

        any_linear = self._num_sharp < len(resp)
        sums = jax.lax.cond(any_linear, linear, nothing, statistics)

        def direct(j: jax.Array, sums: jax.Array) -> jax.Array:
            k = self._sharp[j]
            weights = resp[k]
            centered = x - self._parameters.means[k][:, None]
            weighted = weights * centered
            parts = [jnp.sum(weights)[None], jnp.sum(weighted, axis=1)]
            if self._setting.covariance_type == "full":
                parts.append(sufficient.pack(blocks.dot(weighted, centered.T)))
            elif self._setting.covariance_type == "diag":
                parts.append(jnp.sum(weighted * centered, axis=1))
            else:
                parts.append(jnp.sum(weighted * centered)[None])
            return sums.at[k].set(jnp.concatenate(parts))

        if self._setting.covariance_type == "tied":
            return sums
        return jax.lax.fori_loop(0, self._num_sharp, direct, sums)


def _m_step(
    setting: Setting,
    data: Data,
    sums: jax.Array,
    anchors: jax.Array,
    scatter: jax.Array | None,
) -> Parameters:
    """The mixture whose moments are `sums` [K, F] about `anchors` [K, D'].

    `scatter` is that of all points, for a tied covariance.
    """
    size = anchors.shape[1]
    # What scikit-learn adds, so that an empty component divides by more than nothing.
    counts = sums[:, 0] + 10 * jnp.finfo(sums.dtype).eps
    shifts = sums[:, 1 : 1 + size] / counts[:, None]
    means = anchors + shifts
    second = sums[:, 1 + size :]
    total = over_components(setting, jnp.sum(counts))
    if setting.covariance_type == "full":
        moments = sufficient.unpack(second, size) / counts[:, None, None]
        moments = moments - shifts[:, :, None] * shifts[:, None, :]
    elif scatter is not None:
        between = blocks.dot((counts[:, None] * means).T, means)
        moments = (scatter - over_components(setting, between)) / total
    elif setting.covariance_type == "diag":
        moments = second / counts[:, None] - shifts**2
    else:
        moments = second[:, 0] / counts - jnp.sum(shifts**2, axis=1)
        moments = moments / data.dimensions
    return parameters(
        setting.covariance_type,
        counts,
        total,
        means,
        moments,
        data.dimensions,
        data.ridge,
    )


def over_components(setting: Setting, value: jax.Array) -> jax.Array:
    """Sums over the devices that share the components, if they do."""
    if setting.shard == "rows":
        return value
    return jax.lax.psum(value, mapping.AXIS)


def _over_rows(setting: Setting, tree: Any) -> Any:
    """Sums over the devices that share the points, if they do."""
    return tree if setting.shard == "components" else blocks.sum_over_devices(tree)
