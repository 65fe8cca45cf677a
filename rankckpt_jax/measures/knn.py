"""kNN: leave-one-out accuracy of a k-nearest-neighbors classifier.

N images. Each image is assigned the majority class of its k nearest other images. Ties
go to the first class, as in scikit-learn.

    kNN = fraction of images that are assigned their own class.

Several labels per image: the score of a label is the share of the neighbors that have
it, and kNN is the mean over the labels of average precision, the usual figure of
multi-label benchmarks (`goodness`). A number per image: it is predicted by the mean of
the neighbors, and kNN is R^2, as of scikit-learn's regressors. Both have k = 5 by
default, scikit-learn's, because a single neighbor gives no ranking and a noisy mean.

The option `metric` is the distance: "euclidean", the default, or "cosine", which is 1
minus the cosine of the angle between two images and 1 to an image of zeros. Sorkhei et
al. (2025, arXiv 2503.18528) find kNN the best of 23 measures over 42,000 fine-tunings.

The search is exact and works on tiles, so no N x N array exists. One tile of products
between images i and j serves the queries of both. If there are more than `max_queries`
images, a stratified subset (`sampling.subset`) is queried against all images.

Cost: N^2 D FLOP. Range: [0, 1]; at most 1 for a number. Higher is better. Published
code by PARC's authors returns percent.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.data.targets import CLASSES, MULTI_LABEL, REGRESSION, TARGETS
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.measures import regimes
from rankckpt_jax.measures.registry import (
    FRACTION,
    Inputs,
    Options,
    Regime,
    Result,
    register,
)
from rankckpt_jax.measures.statistics import blocks, goodness, sampling, scaling

METRICS = ("euclidean", "cosine")

_TILE = 512
"""Rows of a tile."""

_DEFAULT_K = 5
"""Neighbors for labels and numbers."""


def _no_neighbors(inputs: Inputs, result: Result) -> str:
    """Describe neighbors that are the same for any features."""
    statistics = inputs.statistics
    # Of images that share a class or label; most numbers occur once.
    share = inputs.target == REGRESSION or statistics.sums.max() > 1
    if share and result.details["k"] < len(inputs.labels) - 1:
        return ""
    return (
        "For any features, no other image has the class of an image, or all others are "
        "its neighbors, so the score cannot order checkpoints. Add images or lower `k`."
    )


NO_NEIGHBORS = Regime("no neighbors", _no_neighbors, saturates=True)


def _check(options: Options) -> None:
    metric = options.get("metric", METRICS[0])
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS, "measure_options.knn.metric")


@register(
    "knn",
    cost="N^2 D",
    targets=tuple(TARGETS),
    bounds=(-math.inf, 1.0),
    check=_check,
    tolerance=FRACTION,
    regimes=(NO_NEIGHBORS, regimes.MAJORITY, regimes.COPIES),
)
def knn(
    inputs: Inputs,
    k: int | None = None,
    metric: str = "euclidean",
    max_queries: int = 5_000,
) -> Result:
    """Return the leave-one-out accuracy, mean average precision or R^2.

    Args:
      inputs: Features [N, D] and labels; the seed selects the queries.
      k: Number of neighbors; if None, 1 for classes and 5 (if there are more images)
        for labels and numbers.
      metric: "euclidean" or "cosine".
      max_queries: Maximum number of images to predict. The standard error of an
        accuracy over 5,000 of them is at most 0.007.

    Raises:
      InputError: k is not between 1 and N - 1.
    """
    statistics = inputs.statistics
    count = len(statistics.labels)
    if k is None:
        k = 1 if inputs.target == CLASSES else min(_DEFAULT_K, count - 1)
    if not 1 <= k < count:
        raise InputError(
            "k must be smaller than the number of images",
            where="measure_options.knn.k",
            expected=f"1 to {count - 1}",
            found=f"{k}",
        )
    queries = sampling.subset(statistics.labels, max_queries, inputs.seed)
    others = np.setdiff1d(np.arange(count), queries, assume_unique=True)
    order = np.concatenate([queries, others])
    size = min(_TILE, -(-count // 8) * 8)
    if metric == "cosine":
        x, penalty = scaling.unit_rows(statistics.features), 0.0
    else:
        # Centering makes the products smaller, whose differences are distances.
        x, penalty = scaling.to_unit(statistics.centered), 0.5
    x = x[order] if len(others) else x
    nearest = _nearest(
        np.pad(x, ((0, -count % size), (0, 0))),
        count,
        penalty,
        _tile_pairs(-(-len(queries) // size), -(-count // size)),
        size,
        k,
    )
    labels = np.asarray(inputs.labels)
    if inputs.target == REGRESSION:
        assert statistics.columns is not None
        # Standardized, so that squares neither overflow nor vanish.
        labels = statistics.columns[:, 0]
    neighbors = labels[order[np.asarray(nearest)[: len(queries)]]]
    score = _EVALUATE[inputs.target](labels[queries], neighbors)
    details = {"num_queries": len(queries), "k": k}
    return Result(score, details)


def _accuracy(truth: np.ndarray, neighbors: np.ndarray) -> float:
    """Compare classes [Q] with the majority of those of the neighbors [Q, k]."""
    ordered = np.sort(neighbors, axis=1)
    place = np.arange(ordered.shape[1])
    starts = np.diff(ordered, axis=1, prepend=-1) != 0
    first = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
    # The first of several largest classes.
    most = np.argmax(place - first, axis=1)
    return float(np.mean(ordered[np.arange(len(ordered)), most] == truth))


def _average_precision(truth: np.ndarray, neighbors: np.ndarray) -> float:
    """Rank images by the number of neighbors [Q, k, L] with the label."""
    return goodness.mean_average_precision(truth, neighbors.sum(axis=1))


def _r2(truth: np.ndarray, neighbors: np.ndarray) -> float:
    """Compare numbers [Q] with the means of those of the neighbors [Q, k]."""
    return goodness.r2(truth, neighbors.mean(axis=1))


_EVALUATE = {CLASSES: _accuracy, MULTI_LABEL: _average_precision, REGRESSION: _r2}


def _tile_pairs(num_queries: int, num_tiles: int) -> np.ndarray:
    """Return pairs of tiles i <= j in which i holds queries: int32 [pairs, 2]."""
    return np.array(
        [(i, j) for i in range(num_queries) for j in range(i, num_tiles)],
        dtype=np.int32,
    )


@functools.partial(jax.jit, static_argnames=("size", "k"))
def _nearest(
    x: jax.Array,
    count: int,
    penalty: float,
    pairs: jax.Array,
    size: int,
    k: int,
) -> jax.Array:
    """Return the k nearest other rows of each row among `count` rows: int [rows, k].

    The neighbors of row i have the largest x_i'x_j - penalty |x_j|^2, which decreases
    with the Euclidean distance for a penalty of 1/2.
    """
    offset = penalty * jnp.sum(x * x, axis=1)
    offset = jnp.where(jnp.arange(len(x)) < count, offset, jnp.inf)

    def part(array: jax.Array, tile: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, tile * size, size)

    def update(
        best: Any, tile: jax.Array, other: jax.Array, product: jax.Array, axis: int
    ) -> Any:
        """Merge neighbors from tile `other`, along `axis`, into those of `tile`."""
        value, row = part(best[0], tile), part(best[1], tile)
        similarity = product - jnp.expand_dims(part(offset, other), 1 - axis)
        if k == 1:
            new, place = blocks.maximum(similarity, axis)
            # The first of several equal neighbors stays.
            new, candidate = new[:, None], (place + other * size)[:, None]
            row = jnp.where(new > value, candidate, row)
            value = jnp.maximum(new, value)
        else:
            rows = similarity if axis == 1 else similarity.T
            new, place = jax.lax.top_k(rows, min(k, size))
            both = jnp.concatenate([value, new], axis=1)
            candidates = jnp.concatenate([row, place + other * size], axis=1)
            value, place = jax.lax.top_k(both, k)
            row = jnp.take_along_axis(candidates, place, axis=1)
        start = tile * size, jnp.zeros_like(tile)
        return (
            jax.lax.dynamic_update_slice(best[0], value, start),
            jax.lax.dynamic_update_slice(best[1], row, start),
        )

    def step(best: Any, pair: jax.Array) -> tuple[Any, None]:
        i, j = pair
        product = blocks.dot(part(x, i), part(x, j).T)

        def within(best: Any) -> Any:
            others = jnp.where(jnp.eye(size, dtype=bool), -jnp.inf, product)
            return update(best, i, j, others, 1)

        def between(best: Any) -> Any:
            return update(update(best, i, j, product, 1), j, i, product, 0)

        return jax.lax.cond(i == j, within, between, best), None

    best = (
        jnp.full((len(x), k), -jnp.inf, x.dtype),
        jnp.zeros((len(x), k), jnp.int32),
    )
    return jax.lax.scan(step, best, pairs)[0][1]
