"""Expectation-maximisation where nearly all responsibilities are exactly zero.

N points in D dimensions, K components with full covariances. Where a component has few
points for its dimensions, its covariance is singular but for the ridge r: a point that
lies outside the span of the component's points by a distance h has log density lower by
h^2 / 2r, tens of thousands of nats. In floating point its responsibility is then 0.0,
not nearly so, and neither step of EM needs the pair. This is the regime of a real
benchmark (6 images a component in 72 dimensions).

Each point holds a list of SLOTS components that can explain it. From a hard start:

    M   sums over the pairs in the lists only.
    E   1. the exact joint log density of the pairs in the lists; their logsumexp is a
           lower bound L_i of the point's log density.
        2. For all other pairs an upper bound: with S^-1 = P P', a Mahalanobis distance
           is a sum of D squares, hence at least the sum of any of them,

               log w_k N(x_i; m_k, S_k) <= c_k - 1/2 sum_{j in J} (p_j'(x_i - m_k))^2.

           J are the last _WITNESSES columns of P, where P is largest: they point out of
           the span. Cost 2 N K D _WITNESSES.
        3. Where the bound lies further below L_i than exp can represent (underflow),
           the responsibility is 0.0 and adding it to any sum changes nothing. A
           component for which the bound leaves any point open is evaluated on all
           points, and enters the lists of those it can explain.

Components are kept in one of two forms:

    `LowRank`  where each has at most W <= D / 2 points: a basis of W vectors. About
               12 W^2 (D + W) FLOP to make one, 8 W (D + W) for each pair.
    `Full`     else: [D, D] matrices. Some D^3 to make one, 2 D^2 for each pair.

The result is that of dense EM to rounding. Where a list overflows, a component gets
more than W points, or more than half of the components are open, the regime is another
one: `run` stops and says so, and `em.run` goes on from the lists reached.

An iteration that leaves all lists as they were would repeat itself: nothing is computed
again. From a good start that is the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rankckpt_jax.devices import mapping
from rankckpt_jax.measures.mixture import em, low_rank
from rankckpt_jax.measures.mixture.covariance import (
    Parameters,
    log_normalizer,
    parameters,
    refine,
)
from rankckpt_jax.measures.mixture.low_rank import LowRank
from rankckpt_jax.measures.statistics import blocks

SLOTS = 4
"""Components that a point's list can hold."""

_WITNESSES = 4
"""Columns of each precision_cholesky that the upper bound is made of."""

_FEWEST_POINTS = 8
"""The smallest W, so that few are compiled for."""

_CHUNK_ELEMENTS = 1 << 20
"""Elements of the [chunks, D, D] arrays that are worked on at once."""

_UNDERFLOW = {"float32": 110.0, "float64": 755.0}
"""Nats below which exp is 0.0 (104 and 745.2), and room for the bounds' rounding."""


class Lists(NamedTuple):
    """What explains each point.

    Attributes:
      components: int32 [N, SLOTS], the most responsible first; K where there is none.
      values: [N, SLOTS], responsibilities, 0 where there is none.
    """

    components: jax.Array
    values: jax.Array


class SparseState(NamedTuple):
    """Where EM stands, after an E-step.

    Attributes:
      before: The responsibilities whose mixture the E-step was taken under.
      lists: The responsibilities that it found.
      lower_bounds: [max_iter + 1], of each E-step, NaN for those not taken.
      taken: int32 scalar, E-steps.
      settled: bool scalar; the lists did not change, and will not.
      converged: bool scalar; the bound changed by less than tol.
      ended: bool scalar; that was the last E-step.
      dense: bool scalar; the lists do not suffice, the E-step was not taken.
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
    """K components by their [D', D'] factors; methods as those of `LowRank`."""

    mixture: Parameters
    normalizer: jax.Array

    @property
    def means(self) -> jax.Array:
        """[K, D']."""
        return self.mixture.means

    def listed(self, x: jax.Array, components: jax.Array) -> jax.Array:
        """Joint log densities of the pairs, [N, SLOTS], -inf where empty."""
        table = _table(components, len(self.normalizer), x.shape[1])
        factors = self.mixture.precision_cholesky

        def evaluate(joint: jax.Array, part: Part) -> jax.Array:
            centered = x[part.pairs // SLOTS] - self.means[part.components][:, None]
            whitened = blocks.dot(centered, factors[part.components])
            distance = jnp.sum(whitened**2, axis=2)
            value = self.normalizer[part.components][:, None] - distance / 2
            target = jnp.where(part.valid, part.pairs, len(joint))
            return joint.at[target].set(value, mode="drop")

        joint = jnp.full(components.size, -jnp.inf, x.dtype)
        return _for_parts(table, evaluate, joint).reshape(components.shape)

    def log_density(self, k: jax.Array, x: jax.Array) -> jax.Array:
        """Joint log densities [N] of one component and all of x [N, D']."""
        centered = x - self.means[k]
        whitened = blocks.dot(centered, self.mixture.precision_cholesky[k])
        return self.normalizer[k] - jnp.sum(whitened**2, axis=1) / 2

    def witnesses(self, dimensions: jax.Array, number: int) -> jax.Array:
        """The last columns of each P, [number, K, D']."""
        last = dimensions.astype(jnp.int32) - 1 - jnp.arange(number)
        factors = self.mixture.precision_cholesky
        columns = jnp.take(factors, jnp.maximum(last, 0), axis=2)
        # With fewer dimensions than witnesses no column may count twice.
        return jnp.transpose(jnp.where(last >= 0, columns, 0), (2, 0, 1))


Components = LowRank | Full


def width(most_points: int, dimensions: int) -> int | None:
    """W for a start whose largest component has so many points; None for `Full`.

    A power of two above that number: components may grow a little.
    """
    found = max(_FEWEST_POINTS, 1 << most_points.bit_length())
    return found if 2 * found <= dimensions else None


def hard_lists(labels: jax.Array, num_components: int, dtype: Any) -> Lists:
    """One component, with responsibility 1, per point; none where the label is K."""
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
    """Iterates as `em.run` does, unless the lists do not suffice.

    Args:
      setting: Full covariances, sharded by rows.
      data: This device's points.
      lists: The responsibilities to begin with.
      num_components: K.
      most_points: W of `LowRank`; None for `Full`.

    Returns:
      Where EM ended, its `parameters` None; the responsibilities that `m_step` makes
      these of; the last responsibilities; and whether the lists did not suffice: then
      EM is to go on from there with a dense E-step.
    """
    make = _maker(data, num_components, most_points)

    def step(state: SparseState) -> tuple[jax.Array, Lists, Any, Any]:
        evidence, lists, overflow = _e_step(data, make(state.lists), state.lists)
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
        # The bound is compared before the M-step that an iteration ends with, and that
        # M-step is followed by a last E-step.
        ended = state.converged | (taken == setting.max_iter)
        converged = state.converged | (~ended & (jnp.abs(bound - last) < data.tol))
        bounds = state.lower_bounds.at[taken].set(jnp.where(dense, jnp.nan, bound))
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
    bounds = jnp.full(setting.max_iter + 1, jnp.nan, data.x.dtype)
    start = SparseState(lists, lists, bounds, jnp.int32(0), no, no, no, no)
    state = jax.lax.while_loop(lambda s: ~s.ended & ~s.dense, iterate, start)
    steps = jnp.where(state.dense, state.taken, state.taken - 1)
    ended = em.State(None, state.lower_bounds, steps, state.converged)
    return ended, state.before, state.lists, state.dense


def _maker(
    data: em.Data, num_components: int, most_points: int | None
) -> Callable[[Lists], Components]:
    """Maps the lists of this device's points to the components that all lists make."""

    def full(lists: Lists) -> Components:
        mixture = m_step(data, lists, num_components)
        return Full(mixture, log_normalizer("full", mixture, data.dimensions))

    if most_points is None:
        return full
    like = num_components, most_points
    # N D numbers are few here, the work on K bases little: every device does it all.
    x = _gather(data.x.reshape(-1, data.x.shape[2]))

    def of_low_rank(lists: Lists) -> Components:
        everyone = _gather(lists.components), _gather(lists.values)
        return low_rank.of_lists(x, *everyone, like, data.dimensions, data.ridge)

    return of_low_rank


def _gather(array: jax.Array) -> jax.Array:
    """The rows of all devices."""
    gathered = jax.lax.all_gather(array, mapping.AXIS)
    return gathered.reshape(-1, *array.shape[1:])


def _e_step(
    data: em.Data, mixture: Components, old: Lists
) -> tuple[jax.Array, Lists, jax.Array]:
    """Log densities [N] (0 for padding), the lists, and whether they overflow."""
    x = data.x.reshape(-1, data.x.shape[2])
    valid = data.mask.reshape(-1) > 0
    normalizer = mixture.normalizer
    joint = mixture.listed(x, old.components)
    # Padding is explained by everything: nothing more will be looked for.
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
        here = new[:, None] & (slots == used[:, None])
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
    """Orders each list by log density; what is not in a list has -inf, at its end."""
    joint = jnp.where(components < num_components, joint, -jnp.inf)

    def order() -> tuple[jax.Array, jax.Array]:
        by = jnp.argsort(-joint, axis=1)
        ordered = [jnp.take_along_axis(a, by, axis=1) for a in (components, joint)]
        return ordered[0], ordered[1]

    # Nearly always there is one entry, in its place.
    several = jnp.any(components[:, 1:] < num_components)
    return jax.lax.cond(several, order, lambda: (components, joint))


def _open(
    data: em.Data, mixture: Components, listed: jax.Array, floor: jax.Array
) -> jax.Array:
    """Components [K] that the upper bound leaves open for some unlisted point."""
    columns = mixture.witnesses(data.dimensions, _WITNESSES)
    offsets = jnp.einsum(
        "wkd,kd->wk", columns, mixture.means, precision=jax.lax.Precision.HIGHEST
    )
    normalizer = mixture.normalizer

    def look(found: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        x, listed, floor = block
        heights = blocks.dot(columns, x.T) - offsets[:, :, None]
        bound = normalizer[:, None] - jnp.sum(heights**2, axis=0) / 2
        # Also where it is NaN.
        possible = ~(bound <= floor)
        rows = jnp.arange(len(x))[:, None]
        possible = possible.at[listed, rows].set(False, mode="drop")
        return found | jnp.any(possible, axis=1), None

    shape = data.mask.shape
    per_block = data.x, listed.reshape(*shape, SLOTS), floor.reshape(shape)
    nothing = jnp.zeros(len(normalizer), bool)
    return jax.lax.scan(look, nothing, per_block)[0]


def m_step(data: em.Data, lists: Lists, num_components: int) -> Parameters:
    """The mixture that the lists of all devices make."""
    x = data.x.reshape(-1, data.x.shape[2])
    size = x.shape[1]
    table = _table(lists.components, num_components, size)
    weights = lists.values.reshape(-1)

    def add_points(sums: Any, part: Part) -> Any:
        counts, points = sums
        weight = jnp.where(part.valid, weights[part.pairs], 0)
        points = points.at[part.components].add(
            jnp.einsum("gb,gbd->gd", weight, x[part.pairs // SLOTS]), mode="drop"
        )
        return counts.at[part.components].add(jnp.sum(weight, 1), mode="drop"), points

    zeros = jnp.zeros((num_components, size), x.dtype)
    counts, points = blocks.sum_over_devices(
        _for_parts(table, add_points, (zeros[:, 0], zeros))
    )
    # What scikit-learn adds, so that an empty component divides by more than nothing.
    counts = counts + 10 * jnp.finfo(x.dtype).eps
    means = points / counts[:, None]

    def gram(factors: jax.Array | None) -> jax.Array:
        """Second moments of the points about the means, or of P'(x - m)."""

        def add(sums: jax.Array, part: Part) -> jax.Array:
            weight = jnp.where(part.valid, weights[part.pairs], 0)
            centered = x[part.pairs // SLOTS] - means[part.components][:, None]
            scaled = jnp.sqrt(weight)[:, :, None] * centered
            if factors is not None:
                scaled = blocks.dot(scaled, factors[part.components])
            products = blocks.dot(jnp.swapaxes(scaled, 1, 2), scaled)
            return sums.at[part.components].add(products, mode="drop")

        zeros = jnp.zeros((num_components, size, size), x.dtype)
        sums = blocks.sum_over_devices(_for_parts(table, add, zeros))
        return sums / counts[:, None, None]

    mixture = parameters(
        "full", counts, jnp.sum(counts), means, gram(None), data.dimensions, data.ridge
    )
    if x.dtype == jnp.float64:
        return mixture
    return refine(mixture, gram, data.dimensions, data.ridge)


class Table(NamedTuple):
    """The listed pairs by component, cut into chunks of one length.

    Attributes:
      order: int32 [N SLOTS], pairs in the order of their components.
      components: int32 [chunks], each chunk's component; K behind the last one.
      starts: int32 [chunks], into `order`.
      lengths: int32 [chunks], pairs of each.
      num_chunks: int32 scalar, chunks that hold any.
      width: int array [chunk length], 0 ... length - 1.
      together: int array [chunks done at once], 0 ... number - 1.
    """

    order: jax.Array
    components: jax.Array
    starts: jax.Array
    lengths: jax.Array
    num_chunks: jax.Array
    width: jax.Array
    together: jax.Array


class Part(NamedTuple):
    """Some chunks of a Table: components [G], pairs [G, length], which are valid."""

    components: jax.Array
    pairs: jax.Array
    valid: jax.Array


def _table(components: jax.Array, num_components: int, size: int) -> Table:
    pairs = components.reshape(-1)
    # About as long as a component has points, so that most chunks are full.
    mean = len(components) / num_components
    length = 1 << min(8, max(3, math.ceil(math.log2(mean))))
    together = max(1, min(256, _CHUNK_ELEMENTS // (size * size)))
    most = num_components + len(pairs) // length
    counts = jnp.zeros(num_components, jnp.int32).at[pairs].add(1, mode="drop")
    chunks = (counts + length - 1) // length
    ends = jnp.cumsum(chunks)
    index = jnp.arange(most + together)
    owner = jnp.searchsorted(ends, index, side="right").astype(jnp.int32)
    known = jnp.minimum(owner, num_components - 1)
    offset = (index - (ends - chunks)[known]) * length
    return Table(
        order=jnp.argsort(pairs).astype(jnp.int32),
        components=owner,
        starts=(jnp.cumsum(counts) - counts)[known] + offset,
        lengths=jnp.where(owner < num_components, counts[known] - offset, 0),
        num_chunks=ends[-1],
        width=jnp.arange(length),
        together=jnp.arange(together),
    )


def _for_parts(table: Table, add: Callable[[Any, Part], Any], sums: Any) -> Any:
    """Runs `add(sums, part)` over the table, as many chunks at once as it says."""
    step = len(table.together)

    def body(i: jax.Array, sums: Any) -> Any:
        chunks = i * step + table.together
        place = table.starts[chunks][:, None] + table.width
        pairs = table.order[jnp.minimum(place, len(table.order) - 1)]
        valid = table.width < table.lengths[chunks][:, None]
        return add(sums, Part(table.components[chunks], pairs, valid))

    return jax.lax.fori_loop(0, (table.num_chunks + step - 1) // step, body, sums)
