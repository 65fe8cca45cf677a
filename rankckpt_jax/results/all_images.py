"""Interval of the score of all N training images, from n of them.

The n images are drawn without replacement within each class. Random halves of them are
scored too; see `sampling.half`. With the score s and the scores h_k of H halves,

    variance  v = (1 - n / N) sum_k (h_k - h)^2 / (H - 1), where h is the mean of h_k
    growth    g = (s - h) log2(N / n)
    interval  [s + min(0, g) - t sqrt(v), s + max(0, g) + t sqrt(v)]

v is the variance of s around the score of all images: 1 - n / N is the factor of a
finite population (Cochran 1977, section 2.6). t is the quantile of Student's t
distribution with H - 1 degrees of freedom.

Most scores change systematically with the number of images. From n / 2 to n images s
grows by s - h, and in log2(N / n) further doublings by between 0 and g, if growth keeps
its sign and slows down.

The same holds for the difference of the scores of two checkpoints on the same images,
whose variance and growth are far smaller than those of a score.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
"""Nominal probability that the interval contains the score of all images."""


def interval(
    scores: np.ndarray | float,
    half_scores: np.ndarray | tuple[float, ...],
    num_images: int,
    total: int,
    error_rate: float,
    start_variance: np.ndarray | float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of the score of all images, or of differences of scores.

    Args:
      scores: s, of n images: float [...].
      half_scores: h_k, of halves of them: float [..., H].
      num_images: n.
      total: N, at least n.
      error_rate: Nominal probability that the score is below the lower bound, and the
        same for the upper bound.
      start_variance: Variance of `scores` over random starts, which is added to v:
        float [...].

    Returns:
      The lower and the upper bounds: float [...].
    """
    scores, half_scores = np.asarray(scores, float), np.asarray(half_scores, float)
    growth = (scores - half_scores.mean(axis=-1)) * math.log2(total / num_images)
    variance = (1 - num_images / total) * half_scores.var(axis=-1, ddof=1)
    quantile = stats.t.ppf(1 - error_rate, half_scores.shape[-1] - 1)
    reach = quantile * np.sqrt(variance + start_variance)
    low, high = np.minimum(growth, 0) - reach, np.maximum(growth, 0) + reach
    return scores + low, scores + high


def start_variance(spread: float, half_scores: tuple[float, ...]) -> float:
    """Return the variance of a score over random starts.

    Args:
      spread: The standard deviation over images and random starts.
      half_scores: The scores of the halves, whose variance is that over images.
    """
    return max(spread**2 - float(np.var(half_scores, ddof=1)), 0.0)
