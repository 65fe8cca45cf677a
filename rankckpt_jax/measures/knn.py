"""kNN: leave-one-out accuracy of the nearest neighbours.

N images; each takes the class that most of its k nearest others (Euclidean distance)
have, where classes are equal in number that with the nearer neighbours:

    kNN = share of the images that take their own class.

Exact, tile by tile: no N x N array. A tile of products of images i and j serves both,
who ask each other. Of more than `max_queries` images so many, drawn
(`sampling.subset`), are asked; their neighbours are sought among all.

Cost: N^2 D. Range: [0, 1]. Higher is better. Published code of PARC's authors gives
per cent, others use cosine similarity.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import blocks, sampling

_TILE = 512
"""Rows of a tile."""


@register("knn", bounds=(0.0, 1.0))
def knn(inputs: Inputs, k: int = 1, max_queries: int = 20_000) -> Result:
    """Leave-one-out accuracy of features [N, D] and labels [N] with k neighbours."""
    num_classes = inputs.num_classes
    seed = inputs.seed
    statistics = inputs.statistics
    count = len(statistics.labels)
    if not 1 <= k < count:
        raise InputError(
            "k nearest neighbours need more than k images",
            where="measure_options.knn.k",
            expected=f"1 to {count - 1}",
            found=f"{k}",
        )
    asked = sampling.subset(statistics.labels, max_queries, seed)
    others = np.setdiff1d(np.arange(count), asked, assume_unique=True)
    order = np.concatenate([asked, others])
    size = min(_TILE, -(-count // 8) * 8)
    # About the mean the products, whose differences are distances, are smallest.
    x = statistics.centered[order] if len(others) else statistics.centered
    found = _neighbour_class(
        np.pad(x, ((0, -count % size), (0, 0))),
        np.pad(statistics.labels[order], (0, -count % size)),
        count,
        _pairs(-(-len(asked) // size), -(-count // size)),
        size,
        k,
        num_classes,
    )
    predicted = np.asarray(found)[: len(asked)]
    right = predicted == statistics.labels[asked]

    def score(weights: np.ndarray) -> float:
        return float(np.average(right, weights=weights[asked]))

    details = {"num_queries": len(asked)}
    return Result(score(statistics.weights), details, reweighted=score)


def _pairs(asked: int, tiles: int) -> np.ndarray:
    """Tiles i <= j of which i is asked: int32 [pairs, 2], rising."""
    return np.array(
        [(i, j) for i in range(asked) for j in range(i, tiles)], dtype=np.int32
    )


@functools.partial(jax.jit, static_argnames=("size", "k", "num_classes"))
def _neighbour_class(
    x: jax.Array,
    labels: jax.Array,
    count: int,
    pairs: jax.Array,
    size: int,
    k: int,
    num_classes: int,
) -> jax.Array:
    """The class that each row's neighbours among the first `count` have: [rows]."""
    # x_i'x_j - |x_j|^2 / 2 falls as j's distance from i rises.
    half = jnp.sum(x * x, axis=1) / 2
    half = jnp.where(jnp.arange(len(x)) < count, half, jnp.inf)

    def part(array: jax.Array, tile: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, tile * size, size)

    def nearer(
        best: Any, tile: jax.Array, other: jax.Array, product: jax.Array, axis: int
    ) -> Any:
        """The best k of rows of `tile`; `axis` of their products runs over `other`."""
        value, label = part(best[0], tile), part(best[1], tile)
        likeness = product - jnp.expand_dims(part(half, other), 1 - axis)
        if k == 1:
            new, place = blocks.maximum(likeness, axis)
            # Of equals the first stays.
            new, found = new[:, None], part(labels, other)[place][:, None]
            label = jnp.where(new > value, found, label)
            value = jnp.maximum(new, value)
        else:
            rows = likeness if axis == 1 else likeness.T
            new, place = jax.lax.top_k(rows, min(k, size))
            both = jnp.concatenate([value, new], axis=1)
            known = jnp.concatenate([label, part(labels, other)[place]], axis=1)
            value, place = jax.lax.top_k(both, k)
            label = jnp.take_along_axis(known, place, axis=1)
        start = tile * size, 0
        return (
            jax.lax.dynamic_update_slice(best[0], value, start),
            jax.lax.dynamic_update_slice(best[1], label, start),
        )

    def step(best: Any, pair: jax.Array) -> tuple[Any, None]:
        i, j = pair
        product = blocks.dot(part(x, i), part(x, j).T)

        def within(best: Any) -> Any:
            others = jnp.where(jnp.eye(size, dtype=bool), -jnp.inf, product)
            return nearer(best, i, j, others, 1)

        def between(best: Any) -> Any:
            return nearer(nearer(best, i, j, product, 1), j, i, product, 0)

        return jax.lax.cond(i == j, within, between, best), None

    best = (
        jnp.full((len(x), k), -jnp.inf, x.dtype),
        jnp.zeros((len(x), k), labels.dtype),
    )
    _, nearest = jax.lax.scan(step, best, pairs)[0]
    # Nearer neighbours count more, by too little to outvote another.
    weights = 1 + jnp.arange(k, 0, -1) / (4.0 * k * k)
    votes = jnp.zeros((len(x), num_classes), x.dtype)
    place = jnp.arange(len(x))[:, None]
    return jnp.argmax(votes.at[place, nearest].add(weights.astype(x.dtype)), axis=1)
