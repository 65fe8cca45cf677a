"""RSA (Dwivedi and Roig 2019, CVPR): do similar images have similar features?

N images. The dissimilarity of two images is 1 - Pearson's correlation of their feature
vectors. The dissimilarity of their labels is 1 - the correlation of the one-hot
vectors, which is 0 within a class and C / (C - 1) between classes.

    RSA = Spearman's correlation of both over all pairs             (section 3.2)

Several labels or a number per image: the dissimilarity of labels is the Euclidean
distance between their rows of 0 and 1, or between the numbers. For one label per image
it has two values too, and so the same ranks.

Here labels replace the second task of the paper. A rank correlation with a variable of
two values does not need to store the pairs, see `rank_correlation`. The option `target`
[N, E] takes the features of a network trained on the task instead of the labels, as in
the paper.

Cost: N^2 D FLOP and N^2 / 2 counts, in tiles. Range: [-1, 1]. Higher is better. If
there are more than `max_images` images (2000 with a target), a stratified subset is
used (`sampling.subset`). An image with constant features correlates with none. The
published measure compares two networks; labels were first used by PARC's authors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats

from rankckpt_jax.data.targets import TARGETS
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.registry import UNIT_SCALE, Inputs, Result, register
from rankckpt_jax.measures.statistics import rank_correlation, sampling
from rankckpt_jax.measures.statistics.class_statistics import Statistics

_MOST_WITH_TARGET = 2000


@register(
    "rsa",
    cost="N^2 D",
    targets=tuple(TARGETS),
    bounds=(-1.0, 1.0),
    tolerance=UNIT_SCALE,
)
def rsa(
    inputs: Inputs, max_images: int = sampling.PAIRED_IMAGES, target: Any = None
) -> Result:
    """Return RSA of features and labels, or of features and a target representation.

    Args:
      inputs: Features [N, D] and labels of any kind; the seed selects the images.
      max_images: Maximum number of images.
      target: Features [N, E] of another network for the same images, or None.

    Raises:
      InputError: The target is not a matrix with one row per image.
    """
    statistics = inputs.statistics
    labels = statistics.labels
    most = max_images if target is None else min(max_images, _MOST_WITH_TARGET)
    rows = sampling.subset(labels, most, inputs.seed)
    features = statistics.features[rows]
    if target is None:
        score = correlate(features, statistics, rows)
    else:
        target = np.asarray(target, np.float64)
        if target.ndim != 2 or len(target) != len(labels) or target.shape[1] < 2:
            raise InputError(
                "target must have one row per image",
                where="measure_options.rsa.target",
                expected=f"shape [{len(labels)}, E] with E of at least 2",
                found=f"shape {list(target.shape)}",
            )
        score = _between(features, target[rows])
    return Result(score, {"num_images": len(rows)})


def correlate(features: np.ndarray, statistics: Statistics, rows: np.ndarray) -> float:
    """Return Spearman's correlation of the similarity of features and of labels.

    Args:
      features: float [M, D], of the images `rows`.
      statistics: Labels of all images.
      rows: int [M].
    """
    if statistics.columns is None:
        return rank_correlation.with_labels(features, statistics.labels[rows])
    return rank_correlation.with_distances(features, statistics.columns[rows])


def _between(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's correlation between the correlations of two representations."""
    upper = np.triu_indices(len(one), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ranked = (
            np.nan_to_num(np.corrcoef(x.astype(float))[upper]) for x in (one, other)
        )
        return float(scipy.stats.spearmanr(*ranked).statistic)
