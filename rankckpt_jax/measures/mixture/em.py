"""Dense expectation-maximization: every component for every point.

N points in D dimensions, K components. Points are processed in blocks of B columns,
x [D', B], and a block one component at a time, so that every product is a large one:

    E   y = P_k'(x - m_k)        log w_k N(x; m_k, S_k) = c_k - |y|^2 / 2
        R [K, B] = softmax over k
    M   sums over points of R_k, of R_k (x - a_k), and of R_k (x - a_k)(x - a_k)'

The anchor a_k is the previous mean. Moments about it lose nothing to rounding when they
are moved to the new mean, and one pass over the points takes both steps.

Cost: 4 N K D^2 FLOP per iteration for full covariances, N K D for the others. Memory:
R [K, B] and the moments [K, D', D']. D' may be almost 2 D, since few D' are compiled.
For full covariances a program therefore holds products of three widths, and uses the
smallest one that is not below D.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rankckpt_jax.measures.mixture.covariance import (
    Parameters,
    compute_parameters,
    log_normalizer,
    whiten,
)
from rankckpt_jax.measures.statistics import blocks

_WIDTHS = 2 / 3, 5 / 6, 1
"""Widths of products in units of D'. `blocks` pads to D' if D is above half of it."""


class Setting(NamedTuple):
    """Static settings of EM.

    Attributes:
      covariance_type: One of `covariance.TYPES`.
      num_components: K.
      max_iter: Maximum number of iterations.
    """

    covariance_type: str
    num_components: int
    max_iter: int


class Data(NamedTuple):
    """Points in blocks, and scalars.

    Attributes:
      x: [blocks, B, D'], centered; D' >= D includes padding. `run` takes the points of
        one device, `sparse_em.run` all points.
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


class Progress(NamedTuple):
    """What EM reports besides the mixture.

    Attributes:
      lower_bounds: [max_iter + 1], mean log likelihood of each E-step, infinite for
        those that were not taken.
      step: int32 scalar, number of finished iterations.
      converged: bool scalar.
    """

    lower_bounds: jax.Array
    step: jax.Array
    converged: jax.Array


class _Moments(NamedTuple):
    """Sums over points, about an anchor of each component.

    Attributes:
      counts: [K].
      first: [K, D'].
      second: [K, D', D'] (full), [K, D'] (diag) or [K] (spherical); unused for tied.
    """

    counts: jax.Array
    first: jax.Array
    second: jax.Array


def run(setting: Setting, data: Data, labels: jax.Array) -> tuple[Progress, Parameters]:
    """Run EM on the points of this device from hard assignments.

    The loop first takes an M-step from the labels. It then alternates E- and M-steps
    until the lower bound changes by less than tol. A last E-step follows.

    Args:
      setting: The settings.
      data: The points of this device.
      labels: int32 [blocks, B]; K for padding.
    """
    kind, count = setting.covariance_type, setting.num_components
    dtype = data.x.dtype
    zeros = _zero_moments(kind, count, data.x.shape[2], dtype)
    scatter = None
    if kind == "tied":
        # The scatter of all points is constant; only the part between means changes.
        scatter = jnp.einsum(
            "nbi,nbj->ij", data.x, data.x, precision=jax.lax.Precision.HIGHEST
        )
        scatter = blocks.sum_over_devices(scatter)

    def hard(label: jax.Array) -> jax.Array:
        return jax.nn.one_hot(label, count, axis=0, dtype=dtype)

    def is_running(state: tuple[Progress, Parameters]) -> jax.Array:
        progress = state[0]
        return ~progress.converged & (progress.step < setting.max_iter)

    def iterate(state: tuple[Progress, Parameters]) -> tuple[Progress, Parameters]:
        (bounds, step, _), mixture = state
        is_start = step < 0
        expect = expectation(kind, mixture, data.dimensions)

        def add(sums: Any, block: tuple[jax.Array, ...]) -> Any:
            bound, moments = sums
            x, mask, label = block[0].T, *block[1:]
            evidence, resp = jax.lax.cond(
                is_start,
                lambda: (jnp.zeros_like(mask), hard(label)),
                lambda: expect(x),
            )
            resp = resp * mask[None]
            moments = _add_moments(kind, data.dimensions, moments, mixture, x, resp)
            return (bound + jnp.sum(evidence * mask), moments), None

        start = (
            jnp.zeros((), dtype),
            _Moments(mixture.means[:, 0] * 0, mixture.means * 0, zeros),
        )
        sums, _ = jax.lax.scan(add, start, (data.x, data.mask, labels))
        bound, moments = blocks.sum_over_devices(sums)
        bound = bound / data.num_rows
        before = jnp.where(step > 0, bounds[step - 1], -jnp.inf)
        target = jnp.where(is_start, len(bounds), step)
        progress = Progress(
            bounds.at[target].set(bound, mode="drop"),
            step + 1,
            ~is_start & (jnp.abs(bound - before) < data.tol),
        )
        return progress, _m_step(kind, data, moments, mixture.means, scatter)

    bounds = jnp.full(setting.max_iter + 1, jnp.inf, dtype)
    progress = Progress(bounds, jnp.int32(-1), jnp.asarray(False))
    means = _hard_means(data, labels, hard)
    # The first M-step uses only the means, as anchors.
    start = Parameters(means[:, 0], means, zeros, zeros)
    progress, mixture = jax.lax.while_loop(is_running, iterate, (progress, start))
    expect = expectation(kind, mixture, data.dimensions)

    def add_bound(bound: jax.Array, block: tuple[jax.Array, ...]) -> Any:
        return bound + jnp.sum(expect(block[0].T)[0] * block[1]), None

    bound, _ = jax.lax.scan(add_bound, jnp.zeros((), dtype), (data.x, data.mask))
    bound = blocks.sum_over_devices(bound) / data.num_rows
    bounds = progress.lower_bounds.at[progress.step].set(bound)
    return progress._replace(lower_bounds=bounds), mixture


def _hard_means(
    data: Data, labels: jax.Array, hard: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Return the means of labeled points, [K, D']; 0 for empty components."""

    def add(sums: tuple[jax.Array, ...], block: tuple[jax.Array, ...]) -> Any:
        members = hard(block[1])
        counts, points = sums
        points = points + blocks.dot(members, block[0])
        return (counts + jnp.sum(members, axis=1), points), None

    count = hard(labels[0]).shape[0]
    zeros = jnp.zeros((count, data.x.shape[2]), data.x.dtype)
    sums, _ = jax.lax.scan(add, (zeros[:, 0], zeros), (data.x, labels))
    counts, points = blocks.sum_over_devices(sums)
    return points / jnp.maximum(counts, 1)[:, None]


def _zero_moments(kind: str, count: int, size: int, dtype: Any) -> jax.Array:
    """Return zeros in the shape of S and P (see `covariance`)."""
    shapes = {
        "full": (count, size, size),
        "tied": (size, size),
        "diag": (count, size),
        "spherical": (count,),
    }
    return jnp.zeros(shapes[kind], dtype)


def expectation(
    kind: str, mixture: Parameters, dimensions: jax.Array
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Return the E-step under a mixture.

    Args:
      kind: The type of covariance.
      mixture: The parameters.
      dimensions: Scalar D.

    Returns:
      A function of points x [D', B] that returns their log densities [B] and the
      responsibilities [K, B].
    """
    normalizer = log_normalizer(kind, mixture, dimensions)
    factors = mixture.precision_cholesky
    means = blocks.dot(mixture.means, factors) if kind == "tied" else mixture.means

    def expect(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        if kind == "tied":
            x = whiten(factors, x)

        def log_joint(k: jax.Array, width: int) -> jax.Array:
            centered = x[:width] - means[k, :width, None]
            if kind == "full":
                whitened = whiten(factors[k, :width, :width], centered)
            elif kind == "tied":
                whitened = centered
            else:
                whitened = factors[k].reshape(-1, 1) * centered
            return normalizer[k] - jnp.sum(whitened**2, axis=0) / 2

        def log_joints(width: int) -> jax.Array:
            return jax.lax.map(lambda k: log_joint(k, width), jnp.arange(len(means)))

        joint = _by_width(kind, log_joints, dimensions, len(x))
        largest = jnp.max(joint, axis=0)
        unscaled = jnp.exp(joint - largest[None])
        evidence = jnp.sum(unscaled, axis=0)
        return largest + jnp.log(evidence), unscaled / evidence[None]

    return expect


def _by_width(
    kind: str, function: Callable[[int], Any], dimensions: jax.Array, size: int
) -> Any:
    """Return function(width) of a static width between D and D'.

    Args:
      kind: The type of covariance. Only full covariances have widths below D'.
      function: Maps a width to arrays, whose shapes do not depend on it.
      dimensions: Scalar D.
      size: D'.
    """
    if kind != "full":
        return function(size)
    widths = sorted({min(-(-round(w * size) // 8) * 8, size) for w in _WIDTHS})
    index = jnp.sum(jnp.asarray(widths[:-1], dimensions.dtype) < dimensions)
    branches = [functools.partial(function, width) for width in widths]
    return jax.lax.switch(index, branches)


def _add_moments(
    kind: str,
    dimensions: jax.Array,
    moments: _Moments,
    mixture: Parameters,
    x: jax.Array,
    resp: jax.Array,
) -> _Moments:
    """Add the moments of a block x [D', B] about the means of `mixture`."""

    def add(
        k: jax.Array, sums: tuple[jax.Array, ...], width: int
    ) -> tuple[jax.Array, ...]:
        first, second = sums
        centered = x[:width] - mixture.means[k, :width, None]
        weighted = resp[k][None] * centered
        if kind == "full":
            product = blocks.dot(weighted, centered.T)
            second = second.at[k, :width, :width].add(product)
        elif kind == "diag":
            second = second.at[k].add(jnp.sum(weighted * centered, axis=1))
        elif kind == "spherical":
            second = second.at[k].add(jnp.sum(weighted * centered))
        # A product, because XLA's sum over the last axis is slow on a CPU.
        first = first.at[k, :width].add(blocks.dot(centered, resp[k]))
        return first, second

    def add_all(width: int) -> tuple[jax.Array, ...]:
        step = functools.partial(add, width=width)
        sums = moments.first, moments.second
        return jax.lax.fori_loop(0, len(resp), step, sums)

    first, second = _by_width(kind, add_all, dimensions, len(x))
    return _Moments(moments.counts + jnp.sum(resp, axis=1), first, second)


def _m_step(
    kind: str,
    data: Data,
    moments: _Moments,
    anchors: jax.Array,
    scatter: jax.Array | None,
) -> Parameters:
    """Return the mixture of moments about `anchors` [K, D'].

    `scatter` [D', D'] is that of all points, for a tied covariance.
    """
    # As in scikit-learn, so that an empty component does not divide by zero.
    counts = moments.counts + 10 * jnp.finfo(anchors.dtype).eps
    shifts = moments.first / counts[:, None]
    means = anchors + shifts
    if kind == "full":
        central = moments.second / counts[:, None, None]
        central = central - shifts[:, :, None] * shifts[:, None, :]
    elif scatter is not None:
        between = blocks.dot((counts[:, None] * means).T, means)
        central = (scatter - between) / jnp.sum(counts)
    elif kind == "diag":
        central = moments.second / counts[:, None] - shifts**2
    else:
        central = moments.second / counts - jnp.sum(shifts**2, axis=1)
        central = central / data.dimensions
    return compute_parameters(kind, counts, means, central, data.dimensions, data.ridge)
