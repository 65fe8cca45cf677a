"""PARC (Bolya et al. 2021, NeurIPS, arXiv 2111.06977): RSA of standardized features.

N images, F [N, D] features with columns of mean 0 and standard deviation 1:

    PARC = 100 Spearman({1 - corr(f_i, f_j)}, {1 - corr(onehot y_i, onehot y_j)})

over all pairs of images (their section 3.2). Several labels or a number per image:
labels are compared as for `rsa`. The option `dimensions` first reduces the
features to principal components, as in further experiments of the paper.

Cost: N^2 D FLOP and N^2 / 2 counts, in tiles (`rank_correlation`). Range: [-100, 100].
Higher is better. If there are more than `max_images` images, a stratified subset is
used (`sampling.subset`). Published copies reduce to 32 dimensions by default. They also
break ties of equal label dissimilarities by rounding errors, which changes the fifth
digit.
"""

from __future__ import annotations

import numpy as np

from rankckpt_jax.data.targets import TARGETS
from rankckpt_jax.measures import rsa
from rankckpt_jax.measures.registry import (
    ROUNDING,
    Evidence,
    Inputs,
    Result,
    Tolerance,
    register,
)
from rankckpt_jax.measures.statistics import sampling, scaling


@register(
    "parc",
    cost="N^2 D",
    evidence=Evidence(0.43, 11),
    targets=tuple(TARGETS),
    bounds=(-100.0, 100.0),
    tolerance=Tolerance(absolute=100 * ROUNDING),
)
def parc(
    inputs: Inputs,
    dimensions: int = 0,
    max_images: int = sampling.PAIRED_IMAGES,
) -> Result:
    """Return PARC.

    Args:
      inputs: Features [N, D] and labels of any kind; the seed selects the images.
      dimensions: Number of principal components; 0 for the features themselves.
      max_images: Maximum number of images.
    """
    statistics = inputs.statistics
    rows = sampling.subset(statistics.labels, max_images, inputs.seed)
    x = statistics.features[rows]
    dtype = x.dtype
    if 0 < dimensions < x.shape[1]:
        x = statistics.principal(dimensions)[rows].astype(dtype)
    x = scaling.to_unit(x)
    centered = x - x.mean(axis=0, dtype=np.float64).astype(dtype)
    deviation = centered.std(axis=0, dtype=np.float64).astype(dtype)
    # The deviation of a constant column is rounding error.
    varies = deviation > 8 * np.finfo(dtype).eps * np.abs(x).max(axis=0)
    standard = np.where(varies, centered / np.where(varies, deviation, 1), 0)
    score = rsa.correlate(standard, statistics, rows)
    return Result(100 * score, {"num_images": len(rows)})
