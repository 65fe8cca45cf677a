"""k-means on the device: k-means++ start, Lloyd's iterations, no empty cluster.

N points in D dimensions, K clusters, all shapes static and both loops on the device.

Start (Arthur and Vassilvitskii 2007): the next centre is drawn with probability
proportional to the squared distance to the nearest centre so far; of 2 + log K draws
the one that lowers the sum most is kept, as in scikit-learn.

Lloyd: assign each point to the nearest centre, move each centre to its points' mean,
until no assignment changes. A cluster that lost all its points is moved to the point
that lies farthest from its own centre.

Cost: 2 N K D FLOP an iteration (one matrix product for the distances) and as much again
for the means, which are a product with the one-hot assignments.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rankckpt_jax.errors import InputError


class KMeans(NamedTuple):
    """A clustering.

    Attributes:
      centres: [K, D].
      assignments: int32 [N], each point's cluster.
      inertia: Scalar, sum of squared distances to the centres.
      num_iterations: int32 scalar.
    """

    centres: jax.Array
    assignments: jax.Array
    inertia: jax.Array
    num_iterations: jax.Array


def fit(x: jax.Array, num_clusters: int, seed: int = 0, max_iter: int = 300) -> KMeans:
    """Clusters the rows of `x`.

    Args:
      x: float [N, D].
      num_clusters: K, at most N.
      seed: Decides the start.
      max_iter: Most of Lloyd's iterations.

    Raises:
      InputError: There are fewer points than clusters.
    """
    if len(x) < num_clusters:
        raise InputError(
            "More clusters than points",
            expected=f"at least {num_clusters} points",
            found=f"{len(x)}",
        )
    # Distances are differences of products; about the mean the products are smallest.
    mean = jnp.mean(x, axis=0)
    found = _fit(x - mean, num_clusters, max_iter, jax.random.key(seed))
    return found._replace(centres=found.centres + mean)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _fit(x: jax.Array, num_clusters: int, max_iter: int, key: jax.Array) -> KMeans:
    norms = jnp.sum(x * x, axis=1)
    centres = _plus_plus(x, norms, num_clusters, key)

    def going_on(state: Any) -> jax.Array:
        _, _, changed, step = state
        return changed & (step < max_iter)

    def lloyd(state: Any) -> Any:
        centres, before, _, step = state
        distances, assignments = _nearest(x, norms, centres)
        centres = _means(x, distances, assignments, num_clusters)
        return centres, assignments, jnp.any(assignments != before), step + 1

    nowhere = jnp.full(len(x), -1, jnp.int32)
    start = (centres, nowhere, jnp.asarray(True), jnp.asarray(0))
    centres, _, _, steps = jax.lax.while_loop(going_on, lloyd, start)
    distances, assignments = _nearest(x, norms, centres)
    return KMeans(centres, assignments, jnp.sum(distances), steps)


def _squared_distances(x: jax.Array, norms: jax.Array, centres: jax.Array) -> jax.Array:
    """|x - c|^2 = |x|^2 - 2 x.c + |c|^2, clipped where rounding made it negative."""
    products = jnp.dot(x, centres.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(
        norms[:, None] - 2 * products + jnp.sum(centres * centres, axis=1), 0
    )


def _nearest(
    x: jax.Array, norms: jax.Array, centres: jax.Array
) -> tuple[jax.Array, jax.Array]:
    distances = _squared_distances(x, norms, centres)
    return jnp.min(distances, axis=1), jnp.argmin(distances, axis=1).astype(jnp.int32)


def _means(
    x: jax.Array, distances: jax.Array, assignments: jax.Array, num_clusters: int
) -> jax.Array:
    """Means of the clusters' points; an empty cluster goes to a far-off point."""
    sums = jax.ops.segment_sum(x, assignments, num_clusters)
    counts = jax.ops.segment_sum(jnp.ones_like(distances), assignments, num_clusters)
    # The j-th empty cluster takes the point with the j-th largest distance.
    empty = counts == 0
    order = jnp.argsort(-distances)
    place = jnp.clip(jnp.cumsum(empty) - 1, 0, len(x) - 1)
    means = sums / jnp.where(empty, 1, counts)[:, None]
    return jnp.where(empty[:, None], x[order[place]], means)


def _plus_plus(
    x: jax.Array, norms: jax.Array, num_clusters: int, key: jax.Array
) -> jax.Array:
    trials = 2 + int(math.log(num_clusters))
    first_key, key = jax.random.split(key)
    first = x[jax.random.randint(first_key, (), 0, len(x))]
    centres = jnp.zeros((num_clusters, x.shape[1]), x.dtype).at[0].set(first)
    nearest = _squared_distances(x, norms, first[None])[:, 0]

    def add(i: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centres, nearest = state
        # Inverse of the cumulative distribution at `trials` uniform draws.
        cumulative = jnp.cumsum(nearest)
        draws = jax.random.uniform(jax.random.fold_in(key, i), (trials,), x.dtype)
        drawn = jnp.searchsorted(cumulative, draws * cumulative[-1])
        candidates = x[jnp.clip(drawn, 0, len(x) - 1)]
        distances = _squared_distances(x, norms, candidates)
        lowered = jnp.minimum(nearest[:, None], distances)
        best = jnp.argmin(jnp.sum(lowered, axis=0))
        return centres.at[i].set(candidates[best]), lowered[:, best]

    return jax.lax.fori_loop(1, num_clusters, add, (centres, nearest))[0]
