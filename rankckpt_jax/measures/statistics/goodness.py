"""How good predictions of labels and numbers are."""

from __future__ import annotations

import numpy as np


def mean_average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean average precision of the labels.

    The average precision of a label is sum_n (R_n - R_{n-1}) P_n, where R_n and P_n are
    recall and precision at the n-th highest score. Images with equal scores share a
    threshold, as in scikit-learn. The mean is over the labels that some images have and
    others have not; it is NaN if there is none.

    Args:
      truth: bool [M, L].
      scores: float [M, L], higher for images that should have the label.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=0)
    has = np.take_along_axis(truth, order, axis=0)
    # The last of the images with the same score, for each image.
    place = np.arange(len(scores))[:, None]
    is_last = np.ones(scores.shape, bool)
    is_last[:-1] = ordered[:-1] != ordered[1:]
    last = np.where(is_last, place, len(scores))
    last = np.minimum.accumulate(last[::-1], axis=0)[::-1]
    found = np.cumsum(has, axis=0)
    varies = (found[-1] > 0) & (found[-1] < len(scores))
    if not varies.any():
        return float("nan")
    precision = np.take_along_axis(found / (place + 1), last, axis=0)
    parts = np.sum(has * precision, axis=0)[varies]
    return float(np.mean(parts / found[-1, varies]))


def r2(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return R^2, the share of the variance of `truth` [M] that is predicted.

    It is 1 - sum_i (t_i - p_i)^2 / sum_i (t_i - t)^2 with the mean t, as in
    scikit-learn; at most 1, and NaN if `truth` is constant.
    """
    spread = np.sum((truth - truth.mean()) ** 2)
    error = np.sum((truth - predicted) ** 2)
    return float(1 - error / spread) if spread > 0 else float("nan")
