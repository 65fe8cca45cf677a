"""Expectation-maximization where nearly all responsibilities are exactly zero.

N points in D dimensions, K components with full covariances. A component with fewer
points than dimensions has a covariance that is singular except for the ridge r. A point
at distance h from the span of the component's points then has a log density lower by
h^2 / 2r, tens of thousands of nats. Its responsibility underflows to 0.0, and neither
step of EM needs the pair. Real benchmarks are in this regime, for example with 6 images
per component in 72 dimensions.

Each component lists up to W points with a responsibility above 0.

    M   `low_rank.fit` of the listed points.
    E   1. The exact joint log density of the listed pairs. Its logsumexp L_i over the
           components that list point i is a lower bound of the log density of point i.
        2. For all other pairs an upper bound. A Mahalanobis distance is at least the
           part that WITNESSES coordinates have in it (`low_rank`). Cost:
           2 N K D WITNESSES FLOP.
        3. If the bound lies so far below L_i that exp underflows, the responsibility is
           0.0, and adding it to a sum changes nothing. A component for which the bound
           leaves some unlisted point open is evaluated on all points, and lists the
           points that it explains.

The numbers of points per component are skewed: 1 to 28 with a mean of 6. Components are
therefore processed in groups of similar number, padded to W / 16, W / 4 or W points.
The number of groups is a value and not a shape, so that one program serves all
clusterings of N points. Each device computes a part of the components.

The result equals that of dense EM up to rounding. `run` stops if a component explains
more points than it can list, and the caller starts again with `em.run`.

If an iteration leaves all lists unchanged, later iterations would repeat it, so nothing
is computed again. With a good start, this is the case after the first iteration.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.devices import mapping
from rankckpt_jax.measures.mixture import em, low_rank
from rankckpt_jax.measures.statistics import blocks

WITNESSES = 8
"""Vectors per component in the upper bound.

For 20,000 points in 194 dimensions, 4 leave 129 of 500 components open and take four
times as long; 16 leave none open either and take twice as long.
"""

_FEWEST_POINTS = 8
"""Smallest W."""

_NUM_WIDTHS, _RATIO = 3, 4
"""Number of widths of groups, and the ratio of successive ones."""

_GROUP_ELEMENTS = 1 << 19
"""Elements of the bases of a group, to fit into a CPU's cache."""

_UNDERFLOW = {"float32": 110.0, "float64": 755.0}
"""Nats below which exp is 0.0 (104 and 745.2), plus a margin for rounding."""


class Lists(NamedTuple):
    """The points with a responsibility above 0, for each component.

    Attributes:
      points: int32 [K, W], indices of points; blocks x B in empty slots.
      values: [K, W], responsibilities; 0 in empty slots.
    """

    points: Any
    values: Any


class Result(NamedTuple):
    """The result of `run`, equal on all devices.

    Attributes:
      progress: Lower bounds, steps and convergence.
      source: The responsibilities of all components from which the last M-step computed
        the mixture.
      lists: The responsibilities under this mixture.
      failed: bool scalar; a component explains more points than it can list.
    """

    progress: em.Progress
    source: Lists
    lists: Lists
    failed: jax.Array


class _State(NamedTuple):
    """The state after an E-step, with the names of `Result`.

    Attributes:
      taken: int32 scalar, number of E-steps.
      settled: bool scalar; the lists did not change, and later steps repeat this one.
      ended: bool scalar; this was the last E-step.
    """

    source: Lists
    lists: Lists
    lower_bounds: jax.Array
    taken: jax.Array
    settled: jax.Array
    converged: jax.Array
    ended: jax.Array
    failed: jax.Array


class _EStep(NamedTuple):
    """The values that an E-step computes for K components of this device.

    Attributes:
      selected: bool [K], the components to process next.
      means: [K, D'].
      normalizer: [K], log w_k / sqrt(det 2 pi S_k).
      witnesses: [WITNESSES, K, D'].
      floor: [N], the log density below which a responsibility is 0.0.
      points: int32 [K, W], as in `Lists`.
      joint: [K, W], joint log densities of listed pairs; -inf in empty slots.
      overflow: bool scalar; a component explains more than W points.
    """

    selected: jax.Array
    means: jax.Array
    normalizer: jax.Array
    witnesses: jax.Array
    floor: jax.Array
    points: jax.Array
    joint: jax.Array
    overflow: jax.Array


def width(num_rows: int, num_components: int) -> int:
    """Return W, the number of points that a component can list.

    It depends on N and K only, so that all clusterings of a task share programs.
    """
    mean = num_rows / num_components
    smallest = max(_FEWEST_POINTS, 2 ** math.ceil(math.log2(mean / _RATIO)))
    return smallest * _RATIO ** (_NUM_WIDTHS - 1)


def hard_lists(
    labels: np.ndarray, num_components: int, width: int, empty: int, dtype: Any
) -> Lists:
    """Return lists with responsibility 1, on the host.

    Args:
      labels: int [N] in 0 ... K-1, each at most W times.
      num_components: K.
      width: W.
      empty: Index in empty slots.
      dtype: Floating dtype of the responsibilities.
    """
    counts = np.bincount(labels, minlength=num_components)
    order = np.argsort(labels, kind="stable")
    slots = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    points = np.full((num_components, width), empty, np.int32)
    points[labels[order], slots] = order
    return Lists(points, (points < empty).astype(dtype))


def run(setting: em.Setting, data: em.Data, lists: Lists) -> Result:
    """Iterate like `em.run`, and stop early if a list overflows.

    Args:
      setting: With full covariances.
      data: All points.
      lists: The initial responsibilities of this device's components.
    """

    def step(state: _State) -> tuple[jax.Array, Lists, jax.Array, jax.Array]:
        evidence, lists, overflow = _e_step(setting, data, state.lists)
        changed = jnp.any(lists.points != state.lists.points)
        changed |= jnp.any(lists.values != state.lists.values)
        changed, overflow = blocks.sum_over_devices(
            (jnp.int32(changed), jnp.int32(overflow))
        )
        bound = jnp.sum(evidence) / data.num_rows
        return bound, lists, changed == 0, overflow > 0

    def repeat(state: _State) -> tuple[jax.Array, Lists, jax.Array, jax.Array]:
        bound = state.lower_bounds[state.taken - 1]
        return bound, state.lists, state.settled, state.failed

    def iterate(state: _State) -> _State:
        taken = state.taken
        bound, lists, settled, failed = jax.lax.cond(state.settled, repeat, step, state)
        last = jnp.where(taken > 0, state.lower_bounds[taken - 1], -jnp.inf)
        # An iteration compares bounds before its M-step, which is followed by a last
        # E-step.
        ended = state.converged | (taken == setting.max_iter)
        converged = state.converged | (~ended & (jnp.abs(bound - last) < data.tol))
        bounds = state.lower_bounds.at[taken].set(bound)
        return _State(
            state.lists, lists, bounds, taken + 1, settled, converged, ended, failed
        )

    no = jnp.asarray(False)
    bounds = jnp.full(setting.max_iter + 1, jnp.inf, data.x.dtype)
    start = _State(lists, lists, bounds, jnp.int32(0), no, no, no, no)
    state = jax.lax.while_loop(lambda s: ~s.ended & ~s.failed, iterate, start)
    progress = em.Progress(state.lower_bounds, state.taken - 1, state.converged)
    source, lists = jax.tree.map(_gather, (state.source, state.lists))
    return Result(progress, source, lists, state.failed)


def _gather(array: jax.Array) -> jax.Array:
    """Concatenate the rows of all devices."""
    gathered = jax.lax.all_gather(array, mapping.AXIS)
    return gathered.reshape(-1, *array.shape[1:])


def _e_step(
    setting: em.Setting, data: em.Data, old: Lists
) -> tuple[jax.Array, Lists, jax.Array]:
    """Take the M-step of `old` and the E-step under its mixture.

    Returns:
      The log density of each point [N] (0 for padding), the new lists, and whether they
      overflow.
    """
    flat = data.x.reshape(-1, data.x.shape[2])
    valid, empty = data.mask.reshape(-1) > 0, len(flat)
    count, width = old.points.shape
    used = jnp.max(
        jnp.where(old.points < empty, jnp.arange(1, width + 1)[None], 0), axis=1
    )

    # The number of components is padded to a multiple of the devices.
    index = jax.lax.axis_index(mapping.AXIS) * count + jnp.arange(count)
    zeros = jnp.zeros((count, flat.shape[1]), flat.dtype)
    nothing = jnp.full((count, width), -jnp.inf, flat.dtype)
    start = _EStep(
        selected=index < setting.num_components,
        means=zeros,
        normalizer=nothing[:, 0],
        witnesses=jnp.stack([zeros] * WITNESSES),
        floor=jnp.zeros(empty, flat.dtype),
        points=old.points,
        joint=nothing,
        overflow=jnp.asarray(False),
    )

    def sweep(i: jax.Array, step: _EStep) -> _EStep:
        """Evaluate the lists of all components, then open components on all points."""

        def process(ks: jax.Array, width: int, step: _EStep) -> _EStep:
            # An index of K fills a group.
            kept = jnp.minimum(ks, count - 1)
            points = old.points[kept, :width]
            members = flat[jnp.minimum(points, empty - 1)]
            scalars = data.num_rows, data.dimensions, data.ridge
            fitted = low_rank.fit(members, old.values[kept, :width], *scalars)
            return jax.lax.cond(
                i == 0,
                lambda: _evaluate_lists(
                    step, data, ks, fitted, members, points < empty
                ),
                lambda: _evaluate_all_points(step, data, ks, fitted),
            )

        lengths = jnp.where(step.selected, used, width + 1)
        step = _for_groups(lengths, width, flat.shape[1], process, step)
        return jax.lax.cond(i == 0, lambda: _select_open(step, data), lambda: step)

    # A loop, so that `low_rank.fit` is compiled once for each width.
    step = jax.lax.fori_loop(0, 2, sweep, start)
    evidence = jnp.where(valid, _evidence(step.points, step.joint, empty), 0)
    values = jnp.exp(step.joint - evidence[jnp.minimum(step.points, empty - 1)])
    points = jnp.where(values > 0, step.points, empty)
    return evidence, Lists(points, values), step.overflow


def _evaluate_lists(
    step: _EStep,
    data: em.Data,
    ks: jax.Array,
    fitted: low_rank.LowRank,
    members: jax.Array,
    is_listed: jax.Array,
) -> _EStep:
    """Evaluate components `ks` [G] on their listed points, members [G, w, D']."""
    joint, witnesses = fitted.log_density_and_witnesses(
        members, data.dimensions, WITNESSES
    )
    joint = jnp.where(is_listed, joint, -jnp.inf)
    witnesses = jnp.swapaxes(witnesses, 0, 1)
    return step._replace(
        means=step.means.at[ks].set(fitted.means, mode="drop"),
        normalizer=step.normalizer.at[ks].set(fitted.normalizer, mode="drop"),
        witnesses=step.witnesses.at[:, ks].set(witnesses, mode="drop"),
        joint=step.joint.at[ks, : joint.shape[1]].set(joint, mode="drop"),
    )


def _evaluate_all_points(
    step: _EStep, data: em.Data, ks: jax.Array, fitted: low_rank.LowRank
) -> _EStep:
    """List all points that components `ks` [G] explain, one component at a time."""
    (empty,), (count, width) = step.floor.shape, step.points.shape
    shape = data.mask.shape

    def evaluate(j: jax.Array, step: _EStep) -> _EStep:
        one = jax.tree.map(lambda a: a[j][None], fitted)

        def add_block(lists: Any, block: tuple[jax.Array, ...]) -> Any:
            points, joint, length = lists
            x, floor, index = block
            densities = one.log_density(x[None])[0]
            explained = densities > floor
            within = jnp.cumsum(explained, dtype=jnp.int32)
            slots = jnp.where(explained, length + within - 1, width)
            points = points.at[slots].set(index, mode="drop")
            joint = joint.at[slots].set(densities, mode="drop")
            return (points, joint, length + within[-1]), None

        nothing = jnp.full(width, -jnp.inf, step.joint.dtype)
        lists = jnp.full(width, empty, jnp.int32), nothing, jnp.int32(0)
        index = jnp.arange(empty, dtype=jnp.int32).reshape(shape)
        per_block = data.x, step.floor.reshape(shape), index
        (points, joint, length), _ = jax.lax.scan(add_block, lists, per_block)
        return step._replace(
            points=step.points.at[ks[j]].set(points),
            joint=step.joint.at[ks[j]].set(joint),
            overflow=step.overflow | (length > width),
        )

    # The components that fill a group come last.
    return jax.lax.fori_loop(0, jnp.sum(ks < count), evaluate, step)


def _select_open(step: _EStep, data: em.Data) -> _EStep:
    """Select the components that the bound leaves open for an unlisted point."""
    vectors, points = step.witnesses, step.points
    floor = _evidence(points, step.joint, len(step.floor))
    # An infinite floor keeps padding from opening any component.
    floor = jnp.where(data.mask.reshape(-1) > 0, floor, jnp.inf)
    floor = floor - _UNDERFLOW[floor.dtype.name]
    offsets = jnp.einsum(
        "wkd,kd->wk", vectors, step.means, precision=jax.lax.Precision.HIGHEST
    )

    def add(is_open: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        x, floor, start = block
        heights = blocks.dot(vectors, x.T) - offsets[:, :, None]
        bound = step.normalizer[:, None] - jnp.sum(heights**2, axis=0) / 2
        # The negation includes a bound of NaN.
        possible = ~(bound <= floor[None])
        place = points - start
        here = (place >= 0) & (place < len(x))
        listed = jnp.take_along_axis(possible, jnp.clip(place, 0, len(x) - 1), axis=1)
        others = jnp.sum(possible, axis=1) > jnp.sum(here & listed, axis=1)
        return is_open | others, None

    count, rows = data.mask.shape
    starts = jnp.arange(count, dtype=jnp.int32) * rows
    per_block = data.x, floor.reshape(count, rows), starts
    is_open, _ = jax.lax.scan(add, jnp.zeros(len(points), bool), per_block)
    return step._replace(selected=is_open, floor=floor)


def _evidence(points: jax.Array, joint: jax.Array, num_points: int) -> jax.Array:
    """Return the logsumexp of all components' joint log densities, [N]."""
    nothing = jnp.full(num_points, -jnp.inf, joint.dtype)
    largest = nothing.at[points].max(joint, mode="drop")
    # Padding is finite as well, so that no difference is NaN.
    largest = jnp.maximum(largest, jnp.finfo(joint.dtype).min)
    largest = jax.lax.pmax(largest, mapping.AXIS)
    scaled = jnp.exp(joint - largest[jnp.minimum(points, num_points - 1)])
    total = jnp.zeros_like(nothing).at[points].add(scaled, mode="drop")
    return largest + jnp.log(jax.lax.psum(total, mapping.AXIS))


def _for_groups(
    lengths: jax.Array,
    width: int,
    dimensions: int,
    function: Callable[[jax.Array, int, Any], Any],
    carry: Any,
) -> Any:
    """Apply a function to groups of components with lists of similar length.

    Args:
      lengths: [K], slots in use; components with more than `width` are left out.
      width: W.
      dimensions: D'.
      function: Called as function(ks [G], width, carry) with components whose lists end
        before `width`; an index of K fills the last group.
      carry: The value that the function updates.
    """
    count, before = len(lengths), -1
    for i in reversed(range(_NUM_WIDTHS)):
        padded = width // _RATIO**i
        size = _GROUP_ELEMENTS // (padded * (dimensions + padded))
        size = max(1, min(count, size))
        here = (lengths > before) & (lengths <= padded)
        (ks,) = jnp.nonzero(here, size=-(-count // size) * size, fill_value=count)
        groups = ks.reshape(-1, size)

        def apply(
            g: jax.Array, carry: Any, groups: Any = groups, w: int = padded
        ) -> Any:
            return function(groups[g], w, carry)

        number = (jnp.sum(here) + size - 1) // size
        carry = jax.lax.fori_loop(0, number, apply, carry)
        before = padded
    return carry
