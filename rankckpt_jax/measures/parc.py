"""PARC (Bolya et al. 2021, NeurIPS, arXiv 2111.06977): RSA of standardized features.

N images, F [N, D] with columns brought to mean 0 and standard deviation 1:

    PARC = 100 Spearman({1 - corr(f_i, f_j)}, {1 - corr(onehot y_i, onehot y_j)})

over all pairs (their section 3.2). `dimensions` principal components may be kept
before, as in the paper's further experiments; by default all.

Cost: N^2 D, and N^2 / 2 counts, in tiles (`rank_correlation`). Of more than
`max_images` images so many are drawn (`sampling.subset`). Range: [-100, 100]. Higher is
better. Published copies reduce to 32 dimensions by default, and let rounding tell equal
label dissimilarities apart, which moves the fifth digit.
"""

from __future__ import annotations

import numpy as np

from rankckpt_jax.measures import rsa
from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import rank_correlation, sampling


@register("parc", bounds=(-100.0, 100.0), uses_weights=True)
def parc(
    inputs: Inputs,
    dimensions: int = 0,
    max_images: int = rsa.MAX_IMAGES,
) -> Result:
    """PARC; all dimensions if `dimensions` is 0."""
    statistics = inputs.statistics
    seed = inputs.seed
    rows = sampling.subset(statistics.labels, max_images, seed)
    x, weights = statistics.features[rows], statistics.weights[rows]
    dtype = x.dtype
    if 0 < dimensions < x.shape[1]:
        x = statistics.principal(dimensions)[rows].astype(dtype)
    share = weights / weights.sum()
    centered = x - (share @ x).astype(dtype)
    deviation = np.sqrt(share @ centered**2).astype(dtype)
    # Rounding's share of a constant column is no deviation.
    varies = deviation > 8 * np.finfo(dtype).eps * np.abs(x).max(axis=0)
    standard = np.where(varies, centered / np.where(varies, deviation, 1), 0)
    score = rank_correlation.with_labels(standard, statistics.labels[rows], weights)
    return Result(100 * score, {"num_images": len(rows)})
