"""PARC (Bolya et al. 2021, NeurIPS, arXiv 2111.06977): RSA of standardised features.

N images, F [N, D] with columns brought to mean 0 and standard deviation 1:

    PARC = 100 Spearman({1 - corr(f_i, f_j)}, {1 - corr(onehot y_i, onehot y_j)})

over all pairs (their section 3.2). `dimensions` principal components may be kept
before, as in the paper's further experiments; by default all.

Cost: 2 N^2 D, and N^2 log N. From more than `max_images` images so many are drawn, by
`seed`, without replacement. Range: [-100, 100]. Higher is better. Published copies
reduce to 32 dimensions by default, and let rounding tell equal label dissimilarities
apart, which moves the fifth digit.
"""

from __future__ import annotations

import jax
import numpy as np

from rankckpt_jax.measures import rsa
from rankckpt_jax.measures.registry import Result, register
from rankckpt_jax.measures.statistics import Statistics


@register("parc")
def parc(
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    seed: int,
    dimensions: int = 0,
    max_images: int = rsa.MAX_IMAGES,
) -> Result:
    """PARC of features [N, D] and labels [N]; all dimensions if `dimensions` is 0."""
    x, classes = rsa.subsample(
        np.asarray(features), np.asarray(labels), max_images, seed
    )
    if 0 < dimensions < x.shape[1]:
        kept = Statistics(x, classes, num_classes).principal(dimensions)
        x = kept.astype(x.dtype)
    centred = x - x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    deviation = centred.std(axis=0, dtype=np.float64).astype(x.dtype)
    # Rounding's share of a constant column is no deviation.
    varies = deviation > np.finfo(x.dtype).eps * np.abs(x).max(axis=0)
    standard = np.where(varies, centred / np.where(varies, deviation, 1), 0)
    score = 100 * rsa.similarity(standard, classes)
    return Result(score, {"num_images": len(x)})
