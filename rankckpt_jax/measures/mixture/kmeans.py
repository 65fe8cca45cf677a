"""k-means on the device: greedy k-means++, Lloyd's iterations, no empty cluster.

N points in D dimensions, K clusters. Shapes are static, and all loops run on the
device.

Initialization (Arthur and Vassilvitskii 2007). The next center is drawn with
probability proportional to the squared distance to the nearest center so far. As in
scikit-learn, 2 + log K candidates are drawn, and the one that lowers the sum of these
distances most is kept. Cost: 2 N K D (2 + log K) FLOP in K sequential steps. Up to
_ALL_PAIRS points, the distances of all pairs are computed first instead, in one product
of 2 N^2 D FLOP, and the steps only read rows of them.

Lloyd. Each point is assigned to the nearest center: 2 N K D FLOP in one matrix product
of |c|^2 - 2 c.x, since |x|^2 is equal for all centers. Each center moves to the mean of
its points (N D FLOP), until no assignment changes or the centers move by less than
`tol`. An empty cluster takes the point that is farthest from its own center.

Dimensions. Points are stored in panels of _PANEL columns, and loops over the panels
skip those that are padding. One program therefore serves all D up to _CAPACITY, and
wastes less than a panel.

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

_PANEL = 32
"""Columns that are multiplied at once."""

_CAPACITY = 512
"""Dimensions are padded to a multiple of this, so that a pool needs one program."""


_ALL_PAIRS = 4096
"""Number of points up to which the distances of all pairs are kept: 64 MB."""


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
    """Cluster from several seeds with one program; see `fit`."""
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
    capacity = -(-dimensions // _CAPACITY) * _CAPACITY
    centered = np.pad(x - mean, ((0, 0), (0, capacity - dimensions)))
    points = blocks.split(centered, blocks.shape(num_rows, num_clusters))
    points = points.reshape(*points.shape[:2], -1, _PANEL).transpose(2, 0, 1, 3)
    local = blocks.for_devices(np.ascontiguousarray(points.swapaxes(0, 1)))
    number = np.int32(-(-dimensions // _PANEL))
    shift = x.dtype.type(tol * np.mean(np.var(x, axis=0)))
    run = program(num_rows, num_clusters, max_iter)
    results = []
    for seed in seeds:
        # map_devices takes raw key data, not typed keys.
        key = jax.random.key_data(jax.random.key(np.uint32(seed)))
        centers, *outputs = map(
            np.asarray, run(local, points, number, np.asarray(key), shift)
        )
        centers = centers.swapaxes(0, 1).reshape(num_clusters, -1)[:, :dimensions]
        assignments, inertia, steps = outputs
        results.append(KMeans(centers + mean, assignments[:num_rows], inertia, steps))
    return results


@functools.lru_cache(maxsize=64)
def program(num_rows: int, num_clusters: int, max_iter: int) -> Callable[..., Any]:
    """Return the mapped `_fit`, from points in panels (see `fit_many`)."""

    def fit_one(
        local: jax.Array,
        x: jax.Array,
        number: jax.Array,
        key: jax.Array,
        shift: jax.Array,
    ) -> Any:
        key = jax.random.wrap_key_data(key)
        return _fit(local, x, number, num_rows, num_clusters, max_iter, shift, key)

    axes = (0, None, None, None, None)
    return mapping.map_devices(fit_one, in_axes=axes, out_axes=None)


def _fit(
    local: jax.Array,
    x: jax.Array,
    number: jax.Array,
    num_rows: int,
    num_clusters: int,
    max_iter: int,
    shift: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, ...]:
    """Cluster the first `num_rows` points.

    Args:
      local: The points that this device assigns, [blocks of this device, P, B, _PANEL].
      x: All points, [P, blocks, B, _PANEL].
      number: int32 scalar, panels that are not padding.
      num_rows: N; other rows are padding.
      num_clusters: K.
      max_iter: Maximum number of Lloyd's iterations.
      shift: Scalar; Lloyd stops when the centers move by less, squared and summed.
      key: The random key.
    """
    panels, num_blocks, rows, _ = x.shape
    flat = x.reshape(panels, num_blocks * rows, -1)
    norms = _over_panels(
        number, lambda j: jnp.sum(flat[j] ** 2, axis=1), jnp.zeros_like(flat[0, :, 0])
    )
    valid = jnp.arange(len(norms)) < num_rows
    centers = _plus_plus(flat, number, norms, valid, num_blocks, num_clusters, key)

    def nearest(centers: jax.Array) -> tuple[jax.Array, jax.Array]:
        least, labels = _nearest(local, number, centers)
        return jnp.maximum(norms + 2 * least, 0), labels

    def is_running(state: Any) -> jax.Array:
        _, _, _, converged, step = state
        return ~converged & (step < max_iter)

    def lloyd(state: Any) -> Any:
        centers, before, _, _, step = state
        distances, labels = nearest(centers)
        labels = jnp.where(valid, labels, num_clusters)
        labels, sums, counts = _sums(
            flat, number, distances, labels, num_blocks, num_clusters
        )
        moved = sums / counts[None, :, None]
        still = jnp.sum((moved - centers) ** 2) <= shift
        converged = jnp.all(labels == before) | still
        return moved, labels, distances, converged, step + 1

    unassigned = jnp.full(len(norms), -1, jnp.int32)
    start = (centers, unassigned, norms, jnp.asarray(False), 0)
    centers, _, _, _, steps = jax.lax.while_loop(is_running, lloyd, start)
    # The centers moved after the last assignment.
    distances, labels = nearest(centers)
    inertia = jnp.sum(jnp.where(valid, distances, 0))
    return centers, labels, inertia, jnp.asarray(steps, jnp.int32)


def _over_panels(
    number: jax.Array, function: Callable[[jax.Array], jax.Array], start: jax.Array
) -> jax.Array:
    """Return start plus the sum of function(j) over the panels that are not padding."""
    return jax.lax.fori_loop(0, number, lambda j, total: total + function(j), start)


def _nearest(
    local: jax.Array, number: jax.Array, centers: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return |c|^2 / 2 - c.x of the nearest centers, and their indices.

    Both are of all devices' points, [blocks * B].
    """
    half = jnp.sum(centers * centers, axis=(0, 2))[:, None] / 2
    ranks = jnp.arange(len(half), dtype=jnp.int32)[:, None]

    def assign(block: jax.Array) -> tuple[jax.Array, jax.Array]:
        score = _over_panels(
            number,
            lambda j: -blocks.dot(centers[j], block[j].T),
            jnp.broadcast_to(half, (len(half), block.shape[1])),
        )
        # Reductions over the first axis vectorize. So do min and ==, unlike argmin.
        least = jnp.min(score, axis=0)
        label = jnp.min(jnp.where(score == least[None], ranks, len(half) - 1), axis=0)
        return least, label

    parts = jax.lax.map(assign, local)
    return tuple(jax.lax.all_gather(part, mapping.AXIS).reshape(-1) for part in parts)


def _sums(
    x: jax.Array,
    number: jax.Array,
    distances: jax.Array,
    labels: jax.Array,
    num_blocks: int,
    num_clusters: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Fill empty clusters; return labels, and sums [P, K, _PANEL] and counts [K].

    Rows with the label K belong to no cluster.
    """

    def count(labels: jax.Array) -> jax.Array:
        return jnp.zeros(num_clusters, x.dtype).at[labels].add(1, mode="drop")

    def relocate(labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Each empty cluster takes the farthest point that is not alone in its cluster.
        def fill(state: Any) -> Any:
            labels, counts, distances = state
            alone = counts[jnp.minimum(labels, num_clusters - 1)] <= 1
            movable = (labels < num_clusters) & ~alone
            point = jnp.argmax(jnp.where(movable, distances, -1))
            empty = jnp.argmin(counts)
            counts = counts.at[labels[point]].add(-1).at[empty].set(1)
            labels = labels.at[point].set(empty.astype(labels.dtype))
            return labels, counts, distances.at[point].set(0)

        state = labels, count(labels), distances
        filled = jax.lax.while_loop(lambda s: jnp.any(s[1] == 0), fill, state)
        return filled[0], filled[1]

    def keep(labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        return labels, count(labels)

    any_empty = jnp.any(count(labels) == 0)
    labels, counts = jax.lax.cond(any_empty, relocate, keep, labels)
    zeros = jnp.zeros((num_clusters, x.shape[2]), x.dtype)

    def add_block(sums: jax.Array, block: tuple[jax.Array, ...]) -> Any:
        one_hot = jax.nn.one_hot(block[1], num_clusters, axis=0, dtype=x.dtype)
        return sums + blocks.dot(one_hot, block[0]), None

    def add(j: jax.Array, sums: jax.Array) -> jax.Array:
        if target.platform() == "cpu":
            panel = zeros.at[labels].add(x[j], mode="drop")
        else:
            # A GPU scatters in random order, a TPU one element at a time.
            in_blocks = x[j].reshape(num_blocks, -1, x.shape[2])
            by_block = in_blocks, labels.reshape(num_blocks, -1)
            panel, _ = jax.lax.scan(add_block, zeros, by_block)
        return sums.at[j].set(panel)

    sums = jnp.zeros((len(x), *zeros.shape), x.dtype)
    sums = jax.lax.fori_loop(0, number, add, sums)
    return labels, sums, jnp.maximum(counts, 1)


def _plus_plus(
    x: jax.Array,
    number: jax.Array,
    norms: jax.Array,
    valid: jax.Array,
    num_blocks: int,
    num_clusters: int,
    key: jax.Array,
) -> jax.Array:
    """Return greedy k-means++ centers [P, K, _PANEL] among points [P, N, _PANEL]."""
    trials = 2 + int(math.log(num_clusters))
    columns = jnp.swapaxes(x, 1, 2)
    rows = len(norms) // num_blocks

    def clip(distances: jax.Array) -> jax.Array:
        return jnp.where(valid[None], jnp.maximum(distances, 0), 0)

    def all_pairs(size: int) -> jax.Array:
        flat = columns[:size].reshape(-1, len(norms))
        return clip(norms[:, None] + norms[None] - 2 * blocks.dot(flat.T, flat))

    pairs = None
    if len(norms) <= _ALL_PAIRS:
        # A sum over panels would write N x N numbers for each. Of three static widths,
        # the smallest one that holds all panels is used.
        sizes = sorted({-(-len(x) // 4), -(-len(x) // 2), len(x)})
        index = jnp.sum(jnp.asarray(sizes[:-1]) < number)
        branches = [functools.partial(all_pairs, size) for size in sizes]
        pairs = jax.lax.switch(index, branches)

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
        is_first = i == 0
        weights = jnp.where(is_first, valid.astype(x.dtype), nearest)
        chosen = draw(jax.random.fold_in(key, i), weights)
        candidates = x[:, chosen]
        if pairs is None:
            distances = clip(
                _over_panels(
                    number,
                    lambda j: -2 * blocks.dot(candidates[j], columns[j]),
                    norms[None] + norms[chosen][:, None],
                )
            )
        else:
            distances = pairs[chosen]
        lowered = jnp.minimum(nearest[None], distances)
        total = jnp.sum(lowered, axis=1)
        # The first center is not chosen among candidates.
        best = jnp.where(is_first, 0, jnp.argmin(total))
        return centers.at[:, i].set(candidates[:, best]), lowered[best]

    centers = jnp.zeros((len(x), num_clusters, x.shape[2]), x.dtype)
    nearest = jnp.where(valid, jnp.inf, 0).astype(x.dtype)
    return jax.lax.fori_loop(0, num_clusters, add, (centers, nearest))[0]
