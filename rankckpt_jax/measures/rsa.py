"""RSA (Dwivedi and Roig 2019, CVPR): do alike images have alike features?

N images; the dissimilarity of two is 1 - Pearson's correlation of their feature
vectors, and that of their labels 1 - the correlation of the one-hot vectors, which has
two values: 0 within a class, C / (C - 1) between two.

    RSA = Spearman's correlation of the two over all pairs          (section 3.2)

with labels in the place of the paper's second task.

A rank correlation with a two-valued variable needs the ranks of the pairs within
classes alone: one sort of the N (N - 1) / 2 dissimilarities, and a search for the few.

Cost: 2 N^2 D, and N^2 log N. From more than `max_images` images so many are drawn, by
`seed`, without replacement. Range: [-1, 1]. Higher is better.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.registry import Result, register

MAX_IMAGES = 4096
"""Images whose pairs are taken: 8 million pairs."""


@register("rsa")
def rsa(
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    seed: int,
    max_images: int = MAX_IMAGES,
) -> Result:
    """RSA of features [N, D] and labels [N]."""
    del num_classes
    x, classes = subsample(np.asarray(features), np.asarray(labels), max_images, seed)
    return Result(similarity(x, classes), {"num_images": len(x)})


def subsample(
    x: np.ndarray, labels: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` images, drawn by `seed`, in their order."""
    if len(x) <= count:
        return x, labels
    chosen = np.random.default_rng(seed).permutation(len(x))[:count]
    chosen.sort()
    return x[chosen], labels[chosen]


def similarity(x: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's correlation of the dissimilarities of x [N, D] and labels [N].

    Raises:
      InputError: One dimension, in which nothing correlates, or no two images of one
        class, or of two.
    """
    if x.shape[1] < 2:
        raise InputError(
            "Feature vectors of one dimension have no correlation",
            expected="D of at least 2",
            found=f"{x.shape[1]}",
        )
    pairs = np.tril_indices(len(x), -1)
    dissimilarity = np.asarray(_dissimilarities(jnp.asarray(x)))[pairs]
    same = labels[pairs[0]] == labels[pairs[1]]
    share = same.mean()
    if share in (0, 1):
        raise InputError(
            "Pairs within a class and between classes are compared, and one kind "
            "is missing",
            expected="at least two images of one class, and two classes",
        )
    ordered = np.sort(dissimilarity)
    count = len(ordered)

    def mean_rank(values: np.ndarray) -> float:
        before = np.searchsorted(ordered, values, side="left")
        until = np.searchsorted(ordered, values, side="right")
        return float(np.mean(before + until + 1) / 2)

    (ends,) = np.nonzero(np.append(np.diff(ordered) > 0, True))
    ties = np.diff(ends, prepend=-1).astype(float)
    variance = (count**2 - 1) / 12 - np.sum(ties**3 - ties) / (12 * count)
    if variance <= 0:
        return 0.0
    # Of all ranks the mean is (n + 1) / 2: those between classes follow.
    gap = ((count + 1) / 2 - mean_rank(dissimilarity[same])) / (1 - share)
    return float(gap * np.sqrt(share * (1 - share) / variance))


@jax.jit
def _dissimilarities(x: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, axis=1, keepdims=True)
    length = jnp.linalg.norm(centred, axis=1, keepdims=True)
    unit = jnp.where(length > 0, centred / jnp.where(length > 0, length, 1), 0)
    return 1 - jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST)
