"""k-means on the device: greedy k-means++, Lloyd's iterations, no empty cluster.

N points in D dimensions, K clusters. Shapes are static, and all loops run on the
device.

Initialization (Arthur and Vassilvitskii 2007). The next center is drawn with
probability proportional to the squared distance to the nearest center so far. As in
scikit-learn, 2 + log K candidates are drawn, and the one that lowers the sum of these
distances most is kept. Cost: 2 N K D (2 + log K) FLOP in K sequential steps.

Lloyd. Each point is assigned to the nearest center: 2 N K D FLOP in one matrix product
of |c|^2 - 2 c.x, since |x|^2 is equal for all centers. Each center moves to the mean of
its points (N D FLOP), until no assignment changes or the centers move by less than
`tol`. An empty cluster takes the point that is farthest from its own center.

Lloyd is discontinuous: a rounding error that moves one point to another cluster can
change the result. For equal clusters with any number of devices, each device assigns
its own points in blocks of one static shape, but sums all points in the same order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.devices import mapping, target
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.statistics import blocks


class KMeans(NamedTuple):
    """A clustering.

    Attributes:
      centers: [K, D].
      assignments: int32 [N], the cluster of each point.
      inertia: Scalar, sum of squared distances to the centers.
      num_iterations: int32 scalar.
    """

    centers: np.ndarray
    assignments: np.ndarray
    inertia: np.ndarray
    num_iterations: np.ndarray


def fit(
    x: Any,
    num_clusters: int,
    seed: int = 0,
    max_iter: int = 300,
    tol: float = 1e-4,
) -> KMeans:
    """Cluster the rows of `x`.

    Args:
      x: float [N, D]; computed in its own dtype.
      num_clusters: K, at most N.
      seed: Seed of the initialization.
      max_iter: Maximum number of Lloyd's iterations.
      tol: Lloyd stops when the summed squared movement of the centers is below this
        fraction of the mean variance of a dimension.

    Returns:
      The clustering, equal for any number of devices.

    Raises:
      InputError: There are fewer points than clusters.
    """
    return fit_many(x, num_clusters, (seed,), max_iter, tol)[0]


@mapping.allow_transfers
def fit_many(
    x: Any,
    num_clusters: int,
    seeds: tuple[int, ...],
    max_iter: int = 300,
    tol: float = 1e-4,
) -> list[KMeans]:
    """Cluster from several seeds in one call to the device; see `fit`."""
    x = np.asarray(x)
    num_rows, dimensions = x.shape
    if num_rows < num_clusters:
        raise InputError(
            "k-means has more clusters than points",
            expected=f"at least {num_clusters} points",
            found=f"{num_rows}",
            fix="reduce num_clusters or add points",
        )
    # Centering makes the products smaller, whose differences are distances.
    mean = x.mean(axis=0)
    centered = blocks.pad_dimensions(x - mean)
    shape = blocks.shape(num_rows, num_clusters)
    shift = tol * np.mean(np.var(x, axis=0))
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    # map_devices takes raw key data, not typed keys.
    raw = jax.random.key_data(keys)
    mapped = _mapped(num_rows, num_clusters, max_iter)
    points = blocks.split(centered, shape)
    outputs = mapped(blocks.for_devices(points), points, raw, x.dtype.type(shift))
    centers, assignments, inertia, steps = map(np.asarray, outputs)
    return [
        KMeans(
            centers[i, :, :dimensions] + mean,
            assignments[i, :num_rows],
            inertia[i],
            steps[i],
        )
        for i in range(len(seeds))
    ]


@functools.lru_cache(maxsize=64)
def _mapped(num_rows: int, num_clusters: int, max_iter: int) -> Callable[..., Any]:
    def fit_all(
        local: jax.Array, x: jax.Array, keys: jax.Array, shift: jax.Array
    ) -> Any:
        def fit_one(key: jax.Array) -> tuple[jax.Array, ...]:
            key = jax.random.wrap_key_data(key)
            return _fit(local, x, num_rows, num_clusters, max_iter, shift, key)

        # Seeds run one after the other. With vmap, every step would relocate empty
        # clusters even if there are none, and all seeds would wait for the slowest.
        return jax.lax.map(fit_one, keys)

    return mapping.map_devices(fit_all, in_axes=(0, None, None, None), out_axes=None)


def _fit(
    local: jax.Array,
    x: jax.Array,
    num_rows: int,
    num_clusters: int,
    max_iter: int,
    shift: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, ...]:
    """Cluster the first `num_rows` rows of x [blocks, rows, D]; the others are padding.

    `local` [blocks of this device, rows, D] are the points that this device assigns.
    """
    flat = x.reshape(-1, x.shape[2])
    valid = jnp.arange(len(flat)) < num_rows
    centers = _plus_plus(x, valid, num_clusters, key)

    def is_running(state: Any) -> jax.Array:
        _, _, _, converged, step = state
        return ~converged & (step < max_iter)

    def lloyd(state: Any) -> Any:
        centers, before, _, _, step = state
        distances, labels = _nearest(local, centers)
        labels = jnp.where(valid, labels, num_clusters)
        labels, sums, counts = _sums(flat, distances, labels, num_clusters)
        moved = sums / counts[:, None]
        still = jnp.sum((moved - centers) ** 2) <= shift
        converged = jnp.all(labels == before) | still
        return moved, labels, distances, converged, step + 1

    unassigned = jnp.full(len(flat), -1, jnp.int32)
    start = (centers, unassigned, jnp.zeros(len(flat), x.dtype), jnp.asarray(False), 0)
    centers, _, _, _, steps = jax.lax.while_loop(is_running, lloyd, start)
    # The centers moved after the last assignment.
    distances, labels = _nearest(local, centers)
    inertia = jnp.sum(jnp.where(valid, distances, 0))
    return centers, labels, inertia, jnp.asarray(steps, jnp.int32)


def _nearest(local: jax.Array, centers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return squared distances to the nearest centers and their indices.

    Both are of all devices' points, [blocks * rows].
    """
    half = jnp.sum(centers * centers, axis=1)[:, None] / 2
    ranks = jnp.arange(len(centers), dtype=jnp.int32)[:, None]

    def assign(block: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Reductions over the first axis vectorize. So do min and ==, unlike argmin.
        score = half - blocks.dot(centers, block.T)
        least = jnp.min(score, axis=0)
        label = jnp.min(
            jnp.where(score == least[None], ranks, len(centers) - 1), axis=0
        )
        return jnp.maximum(jnp.sum(block * block, axis=1) + 2 * least, 0), label

    parts = jax.lax.map(assign, local)
    return tuple(jax.lax.all_gather(part, mapping.AXIS).reshape(-1) for part in parts)


def _sums(
    x: jax.Array, distances: jax.Array, labels: jax.Array, num_clusters: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Fill empty clusters; return labels, and sums [K, D] and counts [K] of clusters.

    Rows with the label K belong to no cluster.
    """

    def count(labels: jax.Array) -> jax.Array:
        return jnp.zeros(num_clusters, x.dtype).at[labels].add(1, mode="drop")

    def relocate(labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The j-th empty cluster takes the point with the j-th largest distance among
        # the points that are not alone in their cluster.
        alone = count(labels)[jnp.minimum(labels, num_clusters - 1)] <= 1
        farthest = jnp.argsort(
            jnp.where((labels == num_clusters) | alone, 1, -distances)
        )
        empty = count(labels) == 0
        taken = farthest[jnp.clip(jnp.cumsum(empty) - 1, 0, len(labels) - 1)]
        target = jnp.where(empty, taken, len(labels))
        labels = labels.at[target].set(
            jnp.arange(num_clusters, dtype=labels.dtype), mode="drop"
        )
        return labels, count(labels)

    def keep(labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        return labels, count(labels)

    any_empty = jnp.any(count(labels) == 0)
    labels, counts = jax.lax.cond(any_empty, relocate, keep, labels)
    if target.platform() == "cpu":
        sums = jnp.zeros((num_clusters, x.shape[1]), x.dtype)
        sums = sums.at[labels].add(x, mode="drop")
    else:
        # A GPU scatters in random order, a TPU one element at a time.
        one_hot = jax.nn.one_hot(labels, num_clusters, axis=0, dtype=x.dtype)
        sums = blocks.dot(one_hot, x)
    return labels, sums, jnp.maximum(counts, 1)


def _plus_plus(
    x: jax.Array, valid: jax.Array, num_clusters: int, key: jax.Array
) -> jax.Array:
    """Return greedy k-means++ centers [K, D] among the points of [blocks, rows, D]."""
    num_blocks, rows, dimensions = x.shape
    trials = 2 + int(math.log(num_clusters))
    flat = x.reshape(-1, dimensions)
    columns = flat.T
    norms = jnp.where(valid, jnp.sum(flat * flat, axis=1), 0)

    def draw(key: jax.Array, weights: jax.Array) -> jax.Array:
        # Invert the cumulative distribution over blocks, then within a block. A
        # cumulative sum over all points would cost more than the distances.
        table = weights.reshape(num_blocks, rows)
        cumulative = jnp.cumsum(jnp.sum(table, axis=1))
        target = cumulative[-1] * jax.random.uniform(key, (trials,), x.dtype)
        block = jnp.sum(cumulative[None] <= target[:, None], axis=1)
        block = jnp.minimum(block, num_blocks - 1)
        before = jnp.where(block > 0, cumulative[block - 1], 0)
        within = jnp.cumsum(table[block], axis=1)
        row = jnp.sum(within <= (target - before)[:, None], axis=1)
        return block * rows + jnp.minimum(row, rows - 1)

    def add(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        centers, nearest = state
        candidates = flat[draw(jax.random.fold_in(key, i), nearest)]
        lengths = jnp.sum(candidates * candidates, axis=1)[:, None]
        distances = norms[None] - 2 * blocks.dot(candidates, columns) + lengths
        distances = jnp.where(valid[None], jnp.maximum(distances, 0), 0)
        lowered = jnp.minimum(nearest[None], distances)
        best = jnp.argmin(jnp.sum(lowered, axis=1))
        return centers.at[i].set(candidates[best]), lowered[best]

    first = flat[draw(key, valid.astype(x.dtype))[0]]
    nearest = norms - 2 * blocks.dot(first[None], columns)[0] + jnp.sum(first * first)
    nearest = jnp.where(valid, jnp.maximum(nearest, 0), 0)
    centers = jnp.zeros((num_clusters, dimensions), x.dtype).at[0].set(first)
    return jax.lax.fori_loop(1, num_clusters, add, (centers, nearest))[0]
