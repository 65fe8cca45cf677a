"""Expectation-maximization where nearly all responsibilities are exactly zero.

N points in D dimensions, K components with full covariances. A component with few
points for its dimensions has a covariance that is singular except for the ridge r. A
point at distance h from the span of the component's points then has a log density lower
by h^2 / 2r, tens of thousands of nats. Its responsibility underflows to 0.0, and
neither step of EM needs the pair. Real benchmarks are in this regime, for example with
6 images per component in 72 dimensions.

Each point lists up to SLOTS components with a responsibility above 0.

    M   sums over the listed pairs only.
    E   1. The exact joint log density of the listed pairs. Its logsumexp L_i is a lower
           bound of the log density of point i.
        2. For all other pairs an upper bound. With S^-1 = P P', a Mahalanobis distance
           is a sum of D squares, so any subset J of them gives

               log w_k N(x_i; m_k, S_k) <= c_k - 1/2 sum_{j in J} (p_j'(x_i - m_k))^2.

           J are the last _WITNESSES columns of P, where P is largest: they point out of
           the span of the points. Cost: 2 N K D _WITNESSES FLOP.
        3. If the bound lies so far below L_i that exp underflows, the responsibility is
           0.0, and adding it to a sum changes nothing. A component for which the bound
           leaves some point open is evaluated on all points, and is added to the lists
           of the points that it explains.

Components have one of two representations:

    `LowRank`  if each has at most W <= D / 2 points: a basis of W vectors. About
               12 W^2 (D + W) FLOP per component and 8 W (D + W) per pair.
    `Full`     otherwise: [D, D] matrices. About D^3 FLOP per component and 2 D^2 per
               pair.

The result equals that of dense EM up to rounding. `run` stops if a list overflows, a
component gets more than W points, or more than half of the components are open; then
`em.run` continues from the last lists.

If an iteration leaves all lists unchanged, later iterations would repeat it, so nothing
is computed again. With a good start, this is the case after the first iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rankckpt_jax.devices import mapping
from rankckpt_jax.measures.mixture import em, low_rank, pairs
from rankckpt_jax.measures.mixture.covariance import (
    Parameters,
    compute_parameters,
    log_normalizer,
    refine,
)
from rankckpt_jax.measures.mixture.low_rank import LowRank
from rankckpt_jax.measures.statistics import blocks

SLOTS = 4
"""Capacity of the list of a point."""

_WITNESSES = 4
"""Columns of each precision_cholesky in the upper bound."""

_FEWEST_POINTS = 8
"""Smallest W, so that few values of W are compiled."""

_UNDERFLOW = {"float32": 110.0, "float64": 755.0}
"""Nats below which exp is 0.0 (104 and 745.2), plus a margin for rounding."""


class Lists(NamedTuple):
    """The components with a responsibility above 0, for each point.

    Attributes:
      components: int32 [N, SLOTS], the most responsible first; K in empty slots.
      values: [N, SLOTS], responsibilities; 0 in empty slots.
    """

    components: jax.Array
    values: jax.Array


class SparseState(NamedTuple):
    """The state of EM after an E-step.

    Attributes:
      before: The responsibilities from which the mixture of the E-step was computed.
      lists: The responsibilities computed by the E-step.
      lower_bounds: [max_iter + 1], mean log likelihood of each E-step, infinite for
        those that were not taken.
      taken: int32 scalar, number of E-steps.
      settled: bool scalar; the lists did not change, and later steps repeat this one.
      converged: bool scalar; the bound changed by less than tol.
      ended: bool scalar; this was the last E-step.
      dense: bool scalar; the lists do not suffice, and the E-step does not count.
    """

    before: Lists
    lists: Lists
    lower_bounds: jax.Array
    taken: jax.Array
    settled: jax.Array
    converged: jax.Array
    ended: jax.Array
    dense: jax.Array


class Full(NamedTuple):
    """K components with factors [K, D', D']; the methods are those of `LowRank`."""

    mixture: Parameters
    normalizer: jax.Array

    @property
    def means(self) -> jax.Array:
        """Means, [K, D']."""
        return self.mixture.means

    def listed(self, x: jax.Array, components: jax.Array) -> jax.Array:
        """Return joint log densities of the listed pairs, [N, SLOTS]."""
        table = pairs.build_table(components, len(self.normalizer), x.shape[1])
        factors = self.mixture.precision_cholesky

        def evaluate(joint: jax.Array, batch: pairs.Batch) -> jax.Array:
            centered = x[batch.pairs // SLOTS] - self.means[batch.components][:, None]
            whitened = blocks.dot(centered, factors[batch.components])
            distance = jnp.sum(whitened**2, axis=2)
            value = self.normalizer[batch.components][:, None] - distance / 2
            target = jnp.where(batch.valid, batch.pairs, len(joint))
            return joint.at[target].set(value, mode="drop")

        joint = jnp.full(components.size, -jnp.inf, x.dtype)
        return pairs.fold(table, evaluate, joint).reshape(components.shape)

    def log_density(self, k: jax.Array, x: jax.Array) -> jax.Array:
        """Return joint log densities [N] of component k and all points x [N, D']."""
        centered = x - self.means[k][None]
        whitened = blocks.dot(centered, self.mixture.precision_cholesky[k])
        return self.normalizer[k] - jnp.sum(whitened**2, axis=1) / 2

    def witnesses(self, dimensions: jax.Array, number: int) -> jax.Array:
        """Return the last columns of each P, [number, K, D']."""
        last = dimensions.astype(jnp.int32) - 1 - jnp.arange(number, dtype=jnp.int32)
        factors = self.mixture.precision_cholesky
        columns = jnp.take(factors, jnp.maximum(last, 0), axis=2)
        # With fewer dimensions than witnesses no column may count twice.
        return jnp.transpose(jnp.where(last[None, None] >= 0, columns, 0), (2, 0, 1))


Components = LowRank | Full


def width(most_points: int, dimensions: int) -> int | None:
    """Return W for components of at most `most_points` points; None for `Full`.

    W is a power of two above this number, so that components may grow a little.
    """
    result = max(_FEWEST_POINTS, 1 << most_points.bit_length())
    return result if 2 * result <= dimensions else None


def hard_lists(labels: jax.Array, num_components: int, dtype: Any) -> Lists:
    """Return lists of one component with responsibility 1; none if the label is K."""
    components = jnp.full((len(labels), SLOTS), num_components, jnp.int32)
    components = components.at[:, 0].set(labels)
    return Lists(components, (components < num_components).astype(dtype))


def run(
    setting: em.Setting,
    data: em.Data,
    lists: Lists,
    num_components: int,
    most_points: int | None,
) -> tuple[em.State, Lists, Lists, jax.Array]:
    """Iterate like `em.run`, and stop early if the lists do not suffice.

    Args:
      setting: With full covariances.
      data: The points of this device.
      lists: The initial responsibilities.
      num_components: K.
      most_points: W of `LowRank`; None for `Full`.

    Returns:
      The final state, with `parameters` None; the responsibilities from which `m_step`
      computes these parameters; the last responsibilities; and whether the lists did
      not suffice, so that EM must continue with a dense E-step.
    """
    m_step_of = _m_step_of(data, num_components, most_points)

    def step(state: SparseState) -> tuple[jax.Array, Lists, Any, Any]:
        evidence, lists, overflow = _e_step(data, m_step_of(state.lists), state.lists)
        changed = jnp.any(lists.components != state.lists.components)
        changed |= jnp.any(lists.values != state.lists.values)
        points = jnp.zeros(num_components, jnp.int32)
        points = points.at[lists.components].add(1, mode="drop")
        bound, changed, overflow, points = blocks.sum_over_devices(
            (
                jnp.sum(evidence * data.mask.reshape(-1)),
                jnp.int32(changed),
                jnp.int32(overflow),
                points,
            )
        )
        overflow = overflow > 0
        if most_points is not None:
            overflow |= jnp.any(points > most_points)
        return bound / data.num_rows, lists, changed == 0, overflow

    def repeat(state: SparseState) -> tuple[jax.Array, Lists, Any, Any]:
        bound = state.lower_bounds[state.taken - 1]
        return bound, state.lists, state.settled, state.dense

    def iterate(state: SparseState) -> SparseState:
        taken = state.taken
        bound, lists, settled, dense = jax.lax.cond(state.settled, repeat, step, state)
        last = jnp.where(taken > 0, state.lower_bounds[taken - 1], -jnp.inf)
        # An iteration compares bounds before its M-step, which is followed by a last
        # E-step.
        ended = state.converged | (taken == setting.max_iter)
        converged = state.converged | (~ended & (jnp.abs(bound - last) < data.tol))
        bounds = state.lower_bounds.at[taken].set(jnp.where(dense, jnp.inf, bound))
        return SparseState(
            state.lists,
            lists,
            bounds,
            jnp.where(dense, taken, taken + 1),
            settled,
            jnp.where(dense, state.converged, converged),
            ended,
            dense,
        )

    no = jnp.asarray(False)
    bounds = jnp.full(setting.max_iter + 1, jnp.inf, data.x.dtype)
    start = SparseState(lists, lists, bounds, jnp.int32(0), no, no, no, no)
    state = jax.lax.while_loop(lambda s: ~s.ended & ~s.dense, iterate, start)
    steps = jnp.where(state.dense, state.taken, state.taken - 1)
    ended = em.State(None, state.lower_bounds, steps, state.converged)
    return ended, state.before, state.lists, state.dense


def _m_step_of(
    data: em.Data, num_components: int, most_points: int | None
) -> Callable[[Lists], Components]:
    """Return the M-step: the lists of this device -> components of all devices."""

    def full(lists: Lists) -> Components:
        mixture = m_step(data, lists, num_components)
        return Full(mixture, log_normalizer("full", mixture, data.dimensions))

    if most_points is None:
        return full
    like = num_components, most_points
    # Points and bases are small here, so every device computes all components.
    x = _gather(data.x.reshape(-1, data.x.shape[2]))

    def of_low_rank(lists: Lists) -> Components:
        gathered = _gather(lists.components), _gather(lists.values)
        return low_rank.of_lists(x, *gathered, like, data.dimensions, data.ridge)

    return of_low_rank


def _gather(array: jax.Array) -> jax.Array:
    """Concatenate the rows of all devices."""
    gathered = jax.lax.all_gather(array, mapping.AXIS)
    return gathered.reshape(-1, *array.shape[1:])


def _e_step(
    data: em.Data, mixture: Components, old: Lists
) -> tuple[jax.Array, Lists, jax.Array]:
    """Return log densities [N] (0 for padding), lists, and whether they overflow."""
    x = data.x.reshape(-1, data.x.shape[2])
    valid = data.mask.reshape(-1) > 0
    normalizer = mixture.normalizer
    joint = mixture.listed(x, old.components)
    # An infinite floor keeps padding from opening any component.
    floor = jnp.where(valid, jax.nn.logsumexp(joint, axis=1), jnp.inf)
    floor = floor - _UNDERFLOW[x.dtype.name]
    components = jnp.where(joint > floor[:, None], old.components, len(normalizer))
    components, joint = _most_likely_first(components, joint, len(normalizer))
    is_open = _open(data, mixture, old.components, floor)
    num_open = jnp.sum(is_open)
    too_many = num_open > len(normalizer) // 2
    (which,) = jnp.nonzero(is_open, size=len(normalizer), fill_value=0)
    slots = jnp.arange(SLOTS)

    def enter(j: jax.Array, lists: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        components, joint, overflow = lists
        k = which[j].astype(jnp.int32)
        value = mixture.log_density(k, x)
        new = (value > floor) & ~jnp.any(old.components == k, axis=1)
        used = jnp.sum(components < len(normalizer), axis=1)
        here = new[:, None] & (slots[None] == used[:, None])
        components = jnp.where(here, k, components)
        joint = jnp.where(here, value[:, None], joint)
        return components, joint, overflow | jnp.any(new & (used == SLOTS))

    count = jnp.where(too_many, 0, num_open)
    components, joint, overflow = jax.lax.fori_loop(
        0, count, enter, (components, joint, too_many)
    )
    evidence = jnp.where(valid, jax.nn.logsumexp(joint, axis=1), 0)
    values = jnp.exp(joint - evidence[:, None])
    components = jnp.where(values > 0, components, len(normalizer))
    components, joint = _most_likely_first(components, joint, len(normalizer))
    values = jnp.where(
        components < len(normalizer), jnp.exp(joint - evidence[:, None]), 0
    )
    return evidence, Lists(components, values), overflow


def _most_likely_first(
    components: jax.Array, joint: jax.Array, num_components: int
) -> tuple[jax.Array, jax.Array]:
    """Sort each list by falling log density, empty slots (-inf) last."""
    joint = jnp.where(components < num_components, joint, -jnp.inf)

    def order() -> tuple[jax.Array, jax.Array]:
        by = jnp.argsort(-joint, axis=1)
        ordered = [jnp.take_along_axis(a, by, axis=1) for a in (components, joint)]
        return ordered[0], ordered[1]

    # Nearly always all lists have a single entry.
    several = jnp.any(components[:, 1:] < num_components)
    return jax.lax.cond(several, order, lambda: (components, joint))


def _open(
    data: em.Data, mixture: Components, listed: jax.Array, floor: jax.Array
) -> jax.Array:
    """Return the components that the bound leaves open for an unlisted point: [K]."""
    columns = mixture.witnesses(data.dimensions, _WITNESSES)
    offsets = jnp.einsum(
        "wkd,kd->wk", columns, mixture.means, precision=jax.lax.Precision.HIGHEST
    )
    normalizer = mixture.normalizer

    def add(is_open: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        x, listed, floor = block
        heights = blocks.dot(columns, x.T) - offsets[:, :, None]
        bound = normalizer[:, None] - jnp.sum(heights**2, axis=0) / 2
        # The negation includes a bound of NaN.
        possible = ~(bound <= floor[None])
        rows = jnp.arange(len(x))[:, None]
        possible = possible.at[listed, rows].set(False, mode="drop")
        return is_open | jnp.any(possible, axis=1), None

    shape = data.mask.shape
    per_block = data.x, listed.reshape(*shape, SLOTS), floor.reshape(shape)
    none = jnp.zeros(len(normalizer), bool)
    return jax.lax.scan(add, none, per_block)[0]


def m_step(data: em.Data, lists: Lists, num_components: int) -> Parameters:
    """Return the mixture of the responsibilities of all devices."""
    x = data.x.reshape(-1, data.x.shape[2])
    size = x.shape[1]
    table = pairs.build_table(lists.components, num_components, size)
    weights = lists.values.reshape(-1)

    def add_points(sums: Any, batch: pairs.Batch) -> Any:
        counts, points = sums
        weight = jnp.where(batch.valid, weights[batch.pairs], 0)
        points = points.at[batch.components].add(
            jnp.einsum("gb,gbd->gd", weight, x[batch.pairs // SLOTS]), mode="drop"
        )
        return counts.at[batch.components].add(jnp.sum(weight, 1), mode="drop"), points

    zeros = jnp.zeros((num_components, size), x.dtype)
    counts, points = blocks.sum_over_devices(
        pairs.fold(table, add_points, (zeros[:, 0], zeros))
    )
    # As in scikit-learn, so that an empty component does not divide by zero.
    counts = counts + 10 * jnp.finfo(x.dtype).eps
    means = points / counts[:, None]

    def gram(factors: jax.Array | None) -> jax.Array:
        """Return second moments of x - m, or of P'(x - m): [K, D', D']."""

        def add(sums: jax.Array, batch: pairs.Batch) -> jax.Array:
            weight = jnp.where(batch.valid, weights[batch.pairs], 0)
            centered = x[batch.pairs // SLOTS] - means[batch.components][:, None]
            scaled = jnp.sqrt(weight)[:, :, None] * centered
            if factors is not None:
                scaled = blocks.dot(scaled, factors[batch.components])
            products = blocks.dot(jnp.swapaxes(scaled, 1, 2), scaled)
            return sums.at[batch.components].add(products, mode="drop")

        zeros = jnp.zeros((num_components, size, size), x.dtype)
        sums = blocks.sum_over_devices(pairs.fold(table, add, zeros))
        return sums / counts[:, None, None]

    mixture = compute_parameters(
        "full", counts, means, gram(None), data.dimensions, data.ridge
    )
    if x.dtype == jnp.float64:
        return mixture
    return refine(mixture, gram, data.dimensions, data.ridge)
