"""Pairs of points and components, grouped by component.

Each of N points lists up to S components. The flat index i S + s denotes the pair of
point i and the s-th component of its list. A `Table` sorts all pairs by component and
cuts them into chunks of equal length, so that work on pairs of one component becomes
batched matrix products of static shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_CHUNK_ELEMENTS = 1 << 20
"""Elements of the [chunks, D, D] arrays that are processed at once."""


class Table(NamedTuple):
    """The listed pairs in chunks.

    Attributes:
      order: int32 [N S], indices of pairs, sorted by component.
      components: int32 [chunks], the component of each chunk; K for unused chunks.
      starts: int32 [chunks], first position of each chunk in `order`.
      lengths: int32 [chunks], number of pairs in each chunk.
      num_chunks: int32 scalar, number of chunks in use.
      positions: int32 [chunk length], 0 ... length - 1.
      batch: int32 [chunks processed at once], 0 ... number - 1.
    """

    order: jax.Array
    components: jax.Array
    starts: jax.Array
    lengths: jax.Array
    num_chunks: jax.Array
    positions: jax.Array
    batch: jax.Array


class Batch(NamedTuple):
    """Some chunks of a `Table`.

    Attributes:
      components: int32 [G].
      pairs: int32 [G, chunk length], indices of pairs.
      valid: bool [G, chunk length], False for padding.
    """

    components: jax.Array
    pairs: jax.Array
    valid: jax.Array


def build_table(components: jax.Array, num_components: int, dimensions: int) -> Table:
    """Group pairs by component.

    Args:
      components: int32 [N, S], the lists; K in empty slots.
      num_components: K.
      dimensions: D', which limits how many chunks are processed at once.
    """
    pairs = components.reshape(-1)
    # About as long as a component has points, so that most chunks are full.
    mean = len(components) / num_components
    length = 1 << min(8, max(3, math.ceil(math.log2(mean))))
    batch = max(1, min(256, _CHUNK_ELEMENTS // (dimensions * dimensions)))
    most = num_components + len(pairs) // length
    counts = jnp.zeros(num_components, jnp.int32).at[pairs].add(1, mode="drop")
    chunks = (counts + length - 1) // length
    ends = jnp.cumsum(chunks)
    index = jnp.arange(most + batch, dtype=jnp.int32)
    owner = jnp.searchsorted(ends, index, side="right").astype(jnp.int32)
    clipped = jnp.minimum(owner, num_components - 1)
    offset = (index - (ends - chunks)[clipped]) * length
    return Table(
        order=jnp.argsort(pairs).astype(jnp.int32),
        components=owner,
        starts=(jnp.cumsum(counts) - counts)[clipped] + offset,
        lengths=jnp.where(owner < num_components, counts[clipped] - offset, 0),
        num_chunks=ends[-1],
        positions=jnp.arange(length, dtype=jnp.int32),
        batch=jnp.arange(batch, dtype=jnp.int32),
    )


def fold(table: Table, add: Callable[[Any, Batch], Any], sums: Any) -> Any:
    """Apply `add(sums, batch)` to every batch of chunks, and return the last sums."""
    step = len(table.batch)

    def body(i: jax.Array, sums: Any) -> Any:
        chunks = i * step + table.batch
        place = table.starts[chunks][:, None] + table.positions[None]
        pairs = table.order[jnp.minimum(place, len(table.order) - 1)]
        valid = table.positions[None] < table.lengths[chunks][:, None]
        return add(sums, Batch(table.components[chunks], pairs, valid))

    return jax.lax.fori_loop(0, (table.num_chunks + step - 1) // step, body, sums)
