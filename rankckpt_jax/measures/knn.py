"""kNN: leave-one-out accuracy of the nearest neighbours.

N images; each takes the class that most of its k nearest others (Euclidean distance)
have, where classes are equal in number that with the nearer neighbours:

    kNN = share of the images that take their own class.

Exact, in blocks of rows: no N x N array. Of more than `max_queries` images so many,
drawn (`sampling.subset`), are asked; their neighbours are sought among all.

Cost: 2 N^2 D. Range: [0, 1]. Higher is better. Published code of PARC's authors gives
per cent, others use cosine similarity.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import blocks, sampling
from rankckpt_jax.measures.registry import Result, register
from rankckpt_jax.measures.statistics import Statistics

_BLOCK = 512


@register("knn")
def knn(
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    seed: int,
    statistics: Statistics,
    k: int = 1,
    max_queries: int = 20_000,
) -> Result:
    """Leave-one-out accuracy of features [N, D] and labels [N] with k neighbours."""
    del features
    count = len(statistics.labels)
    if not 1 <= k < count:
        raise InputError(
            "k nearest neighbours need more than k images",
            where="measure_options.knn.k",
            expected=f"1 to {count - 1}",
            found=f"{k}",
        )
    asked = sampling.subset(statistics.labels, max_queries, seed)
    shape = -(-len(asked) // _BLOCK), _BLOCK
    # About the mean the products, whose differences are distances, are smallest.
    found = _neighbour_class(
        jnp.asarray(statistics.centred),
        jnp.asarray(labels),
        blocks.split(asked, shape),
        k,
        num_classes,
    )
    predicted = np.asarray(found).reshape(-1)[: len(asked)]
    right = predicted == statistics.labels[asked]

    def score(weights: np.ndarray) -> float:
        return float(np.average(right, weights=weights[asked]))

    details = {"num_queries": len(asked)}
    return Result(score(statistics.weights), details, reweighted=score)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _neighbour_class(
    x: jax.Array, labels: jax.Array, asked: jax.Array, k: int, num_classes: int
) -> jax.Array:
    half = jnp.sum(x * x, axis=1) / 2
    # Nearer neighbours count more, by too little to outvote another.
    weights = 1 + jnp.arange(k, 0, -1) / (4.0 * k * k)

    def one(rows: jax.Array) -> jax.Array:
        likeness = blocks.dot(x[rows], x.T) - half
        likeness = likeness.at[jnp.arange(len(rows)), rows].set(-jnp.inf)
        if k == 1:
            return labels[jnp.argmax(likeness, axis=1)]
        nearest = labels[jax.lax.top_k(likeness, k)[1]]
        votes = jnp.zeros((len(rows), num_classes), x.dtype)
        place = jnp.arange(len(rows))[:, None]
        return jnp.argmax(votes.at[place, nearest].add(weights.astype(x.dtype)), axis=1)

    return jax.lax.map(one, asked)
