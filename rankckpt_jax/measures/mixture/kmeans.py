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

Dimensions. Points are stored in groups of columns, and groups that are padding are
skipped. One program therefore serves all D up to _CAPACITY, in the widths of EM. More
groups would waste fewer products and compile longer.

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

_CAPACITY = 384
"""Dimensions are padded to at least this, so that a pool needs one program."""


Groups = tuple[jax.Array, ...]
"""An array in groups of columns."""


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
    ends = group_ends(dimensions)
    centered = np.pad(x - mean, ((0, 0), (0, ends[-1] - dimensions)))
    points = blocks.split(centered, blocks.shape(num_rows, num_clusters))
    groups = tuple(np.split(points, ends[:-1], axis=2))
    device = blocks.for_devices(np.arange(blocks.num_devices(), dtype=np.int32))
    number = np.int32(1 + np.searchsorted(ends, dimensions))
    shift = x.dtype.type(tol * np.mean(np.var(x, axis=0)))
    run = program(num_rows, num_clusters, max_iter)
    results = []
    for seed in seeds:
        # map_devices takes raw key data, not typed keys.
        key = jax.random.key_data(jax.random.key(np.uint32(seed)))
        centers, *outputs = map(
            np.asarray, run(device, groups, number, np.asarray(key), shift)
        )
        centers = centers[:, :dimensions]
        assignments, inertia, steps = outputs
        results.append(KMeans(centers + mean, assignments[:num_rows], inertia, steps))
    return results


def group_ends(dimensions: int) -> list[int]:
    """Return the last columns of the groups: EM's widths, 96, 192, 384 and so on."""
    ends = [blocks.padded_size(1)]
    while ends[-1] < max(dimensions, _CAPACITY):
        ends.append(blocks.padded_size(ends[-1] + 1))
    return ends


@functools.lru_cache(maxsize=64)
def program(num_rows: int, num_clusters: int, max_iter: int) -> Callable[..., Any]:
    """Return the mapped `_fit`, from groups of columns (see `fit_many`)."""

    def fit_one(
        device: jax.Array,
        groups: Groups,
        number: jax.Array,
        key: jax.Array,
        shift: jax.Array,
    ) -> Any:
        key = jax.random.wrap_key_data(key)
        points = _arrange(groups, number, num_rows)
        return _fit(device[0], points, num_clusters, max_iter, shift, key)

    axes = (0, None, None, None, None)
    return mapping.map_devices(fit_one, in_axes=axes, out_axes=None)


class _Points(NamedTuple):
    """Points on a device, in blocks of B rows.

    Attributes:
      rows: For each group of w columns, [blocks * B, w].
      columns: The same, [w, blocks * B].
      number: int32 scalar, groups that are not padding.
      norms: [blocks * B], |x|^2.
      valid: bool [blocks * B], False in rows that are padding.
      num_blocks: Number of blocks.
    """

    rows: Groups
    columns: Groups
    number: jax.Array
    norms: jax.Array
    valid: jax.Array
    num_blocks: int


def _arrange(groups: Groups, number: jax.Array, num_rows: int) -> _Points:
    """Arrange groups [blocks, B, w]; the first `num_rows` rows are points."""
    rows = tuple(group.reshape(-1, group.shape[2]) for group in groups)
    norms = _squares(number, rows)
    columns = tuple(group.T for group in rows)
    valid = jnp.arange(len(norms)) < num_rows
    return _Points(rows, columns, number, norms, valid, len(groups[0]))


def _fit(
    device: jax.Array,
    points: _Points,
    num_clusters: int,
    max_iter: int,
    shift: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, ...]:
    """Cluster the points.

    Args:
      device: int32 scalar, the index of this device.
      points: All points.
      num_clusters: K.
      max_iter: Maximum number of Lloyd's iterations.
      shift: Scalar; Lloyd stops when the centers move by less, squared and summed.
      key: The random key.
    """
    norms, valid = points.norms, points.valid
    centers = _plus_plus(points, num_clusters, key)

    def nearest(centers: Groups) -> tuple[jax.Array, jax.Array]:
        least, labels = _nearest(device, points, centers)
        return jnp.maximum(norms + 2 * least, 0), labels

    def is_running(state: Any) -> jax.Array:
        _, _, _, converged, step = state
        return ~converged & (step < max_iter)

    def lloyd(state: Any) -> Any:
        centers, before, _, _, step = state
        distances, labels = nearest(centers)
        labels = jnp.where(valid, labels, num_clusters)
        labels, sums, counts = _sums(points, distances, labels, num_clusters)
        moved = tuple(group / counts[:, None] for group in sums)
        pairs = zip(moved, centers, strict=True)
        still = sum(jnp.sum((new - old) ** 2) for new, old in pairs) <= shift
        converged = jnp.all(labels == before) | still
        return moved, labels, distances, converged, step + 1

    unassigned = jnp.full(len(norms), -1, jnp.int32)
    start = (centers, unassigned, norms, jnp.asarray(False), 0)
    centers, _, _, _, steps = jax.lax.while_loop(is_running, lloyd, start)
    # The centers moved after the last assignment.
    distances, labels = nearest(centers)
    inertia = jnp.sum(jnp.where(valid, distances, 0))
    together = jnp.concatenate(centers, axis=1)
    return together, labels, inertia, jnp.asarray(steps, jnp.int32)


def _over_groups(
    number: jax.Array,
    function: Callable[..., jax.Array],
    start: jax.Array,
    *groups: Groups,
) -> jax.Array:
    """Return start plus the sum of function(group, ...) over groups without padding."""

    def add(total: jax.Array, *group: jax.Array) -> jax.Array:
        return total + function(*group)

    def keep(total: jax.Array, *group: jax.Array) -> jax.Array:
        return total

    first, *others = zip(*groups, strict=True)
    total = add(start, *first)
    for j, group in enumerate(others, 1):
        total = jax.lax.cond(j < number, add, keep, total, *group)
    return total


def _squares(number: jax.Array, rows: Groups) -> jax.Array:
    """Return the squared norms of rows [M, D] in groups: [M]."""
    zeros = jnp.zeros_like(rows[0][:, 0])
    return _over_groups(number, lambda x: jnp.sum(x * x, axis=1), zeros, rows)


def _nearest(
    device: jax.Array, points: _Points, centers: Groups
) -> tuple[jax.Array, jax.Array]:
    """Return |c|^2 / 2 - c.x of the nearest centers, and their indices.

    Both are of all devices' points, [blocks * B].
    """
    half = _squares(points.number, centers)[:, None] / 2
    ranks = jnp.arange(len(half), dtype=jnp.int32)[:, None]
    size = len(points.norms) // points.num_blocks
    count = points.num_blocks // blocks.num_devices()

    def assign(block: jax.Array) -> tuple[jax.Array, jax.Array]:
        def multiply(centers: jax.Array, rows: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(rows, block * size, size)
            return -blocks.dot(centers, part.T)

        start = jnp.broadcast_to(half, (len(half), size))
        score = _over_groups(points.number, multiply, start, centers, points.rows)
        # Reductions over the first axis vectorize. So do min and ==, unlike argmin.
        least = jnp.min(score, axis=0)
        label = jnp.min(jnp.where(score == least[None], ranks, len(half) - 1), axis=0)
        return least, label

    parts = jax.lax.map(assign, device * count + jnp.arange(count))
    return tuple(jax.lax.all_gather(part, mapping.AXIS).reshape(-1) for part in parts)


def _sums(
    points: _Points, distances: jax.Array, labels: jax.Array, num_clusters: int
) -> tuple[jax.Array, Groups, jax.Array]:
    """Fill empty clusters; return labels, and sums [K, w] of groups and counts [K].

    Rows with the label K belong to no cluster.
    """
    dtype = points.norms.dtype

    def count(labels: jax.Array) -> jax.Array:
        return jnp.zeros(num_clusters, dtype).at[labels].add(1, mode="drop")

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

    def add_block(sums: jax.Array, block: tuple[jax.Array, ...]) -> Any:
        one_hot = jax.nn.one_hot(block[1], num_clusters, axis=0, dtype=dtype)
        return sums + blocks.dot(one_hot, block[0]), None

    def zeros(rows: jax.Array) -> jax.Array:
        return jnp.zeros((num_clusters, rows.shape[1]), dtype)

    def add(rows: jax.Array) -> jax.Array:
        if target.platform() == "cpu":
            return zeros(rows).at[labels].add(rows, mode="drop")
        # A GPU scatters in random order, a TPU one element at a time.
        in_blocks = rows.reshape(points.num_blocks, -1, rows.shape[1])
        by_block = in_blocks, labels.reshape(points.num_blocks, -1)
        return jax.lax.scan(add_block, zeros(rows), by_block)[0]

    sums = tuple(
        jax.lax.cond(j < points.number, add, zeros, rows)
        for j, rows in enumerate(points.rows)
    )
    return labels, sums, jnp.maximum(counts, 1)


def _plus_plus(points: _Points, num_clusters: int, key: jax.Array) -> Groups:
    """Return greedy k-means++ centers: for each group, [K, w]."""
    trials = 2 + int(math.log(num_clusters))
    norms, num_blocks = points.norms, points.num_blocks
    rows = len(norms) // num_blocks

    def draw(key: jax.Array, weights: jax.Array) -> jax.Array:
        # Invert the cumulative distribution over blocks, then within a block. A
        # cumulative sum over all points would cost more than the distances.
        table = weights.reshape(num_blocks, rows)
        cumulative = jnp.cumsum(jnp.sum(table, axis=1))
        target = cumulative[-1] * jax.random.uniform(key, (trials,), norms.dtype)
        block = jnp.sum(cumulative[None] <= target[:, None], axis=1)
        block = jnp.minimum(block, num_blocks - 1)
        before = jnp.where(block > 0, cumulative[block - 1], 0)
        within = jnp.cumsum(table[block], axis=1)
        row = jnp.sum(within <= (target - before)[:, None], axis=1)
        return block * rows + jnp.minimum(row, rows - 1)

    def add(i: jax.Array, state: tuple[Groups, jax.Array]) -> tuple[Groups, jax.Array]:
        centers, nearest = state
        is_first = i == 0
        weights = jnp.where(is_first, points.valid.astype(norms.dtype), nearest)
        chosen = draw(jax.random.fold_in(key, i), weights)
        candidates = tuple(group[chosen] for group in points.rows)
        distances = _over_groups(
            points.number,
            lambda rows, columns: -2 * blocks.dot(rows, columns),
            norms[None] + norms[chosen][:, None],
            candidates,
            points.columns,
        )
        distances = jnp.where(points.valid[None], jnp.maximum(distances, 0), 0)
        lowered = jnp.minimum(nearest[None], distances)
        total = jnp.sum(lowered, axis=1)
        # The first center is not chosen among candidates.
        best = jnp.where(is_first, 0, jnp.argmin(total))
        pairs = zip(centers, candidates, strict=True)
        extended = tuple(group.at[i].set(rows[best]) for group, rows in pairs)
        return extended, lowered[best]

    nearest = jnp.where(points.valid, jnp.inf, 0).astype(norms.dtype)
    zeros = tuple(
        jnp.zeros((num_clusters, group.shape[1]), norms.dtype) for group in points.rows
    )
    centers, _ = jax.lax.fori_loop(0, num_clusters, add, (zeros, nearest))
    return centers
