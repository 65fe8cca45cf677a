"""RSA (Dwivedi and Roig 2019, CVPR): do alike images have alike features?

N images; the dissimilarity of two is 1 - Pearson's correlation of their feature
vectors, and that of their labels 1 - the correlation of the one-hot vectors, which has
two values: 0 within a class, C / (C - 1) between two.

    RSA = Spearman's correlation of the two over all pairs          (section 3.2)

with labels in the place of the paper's second task.

A rank correlation with a two-valued variable needs no pair kept: see
`rank_correlation`. `target` [N, E] takes the features of a network that was trained on
the task in the place of the labels, as Dwivedi and Roig do.

Cost: N^2 D, and N^2 / 2 counts, in tiles. Of more than `max_images` images, with a
target more than 2000, so many are drawn (`sampling.subset`). Range: [-1, 1]. Higher is
better. An image whose features do not vary correlates with none. The published measure
compares two networks, which is `target`; labels in its place are PARC's authors' use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.registry import Inputs, Result, register
from rankckpt_jax.measures.statistics import rank_correlation, sampling

MAX_IMAGES = 20_000
"""Images whose pairs are taken: 200 million pairs."""

_MOST_WITH_TARGET = 2000


@register("rsa", bounds=(-1.0, 1.0), uses_weights=True)
def rsa(inputs: Inputs, max_images: int = MAX_IMAGES, target: Any = None) -> Result:
    """RSA; `num_images` in its details is how many were compared.

    Raises:
      InputError: The target is not of the same images.
    """
    statistics = inputs.statistics
    seed = inputs.seed
    labels = statistics.labels
    most = max_images if target is None else min(max_images, _MOST_WITH_TARGET)
    rows = sampling.subset(labels, most, seed)
    features, weights = statistics.features[rows], statistics.weights[rows]
    if target is None:
        score = rank_correlation.with_labels(features, labels[rows], weights)
    else:
        target = np.asarray(target, np.float64)
        if target.ndim != 2 or len(target) != len(labels) or target.shape[1] < 2:
            raise InputError(
                "The target representation must have a row for each image",
                expected=f"shape [{len(labels)}, E] with E of at least 2",
                found=f"shape {list(target.shape)}",
            )
        score = _between(features, target[rows], weights)
    return Result(score, {"num_images": len(rows)})


def _between(one: np.ndarray, other: np.ndarray, weights: np.ndarray) -> float:
    """Spearman's correlation of the correlations of one [N, D] and other [N, E]."""
    upper = np.triu_indices(len(one), 1)
    often = np.rint(weights[upper[0]] * weights[upper[1]]).astype(int)
    with np.errstate(invalid="ignore", divide="ignore"):
        ranked = (
            np.repeat(np.nan_to_num(np.corrcoef(x.astype(float))[upper]), often)
            for x in (one, other)
        )
        return float(scipy.stats.spearmanr(*ranked).statistic)
