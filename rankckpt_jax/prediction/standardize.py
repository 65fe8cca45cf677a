"""Values of a pool on a scale that does not depend on the task."""

from __future__ import annotations

import numpy as np

_CLIP = 0.002
"""Accuracies are clipped by it if the number of test images is unknown."""

_REACH = 4.0
"""Values farther from the median, in robust standard deviations, are moved there."""


def logit(accuracies: np.ndarray, num_test: int | None = None) -> np.ndarray:
    """Return log(a / (1 - a)) of accuracies in [0, 1], float64.

    They are clipped by half a test image, or by 0.002 if the number is unknown.
    """
    edge = 0.5 / num_test if num_test else _CLIP
    a = np.clip(np.asarray(accuracies, np.float64), edge, 1 - edge)
    return np.log(a) - np.log1p(-a)


def winsorize(values: np.ndarray) -> np.ndarray:
    """Return values [n] with outliers moved to 4 robust deviations from the median.

    The robust standard deviation is 1.4826 times the median absolute deviation, which
    is that of a normal distribution. If it is 0, nothing is moved. NaN stays NaN.
    """
    x = np.asarray(values, np.float64)
    if not np.isfinite(x).any():
        return x
    center = np.nanmedian(x)
    reach = _REACH * 1.4826 * np.nanmedian(np.abs(x - center))
    return np.clip(x, center - reach, center + reach) if reach > 0 else x


def standardize(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return winsorized values [n] with mean 0 and variance 1, and their scale.

    Args:
      values: [n], NaN where unknown.

    Returns:
      float64 [n]; all NaN if fewer than two are known or all are equal, since they
      then order nothing. And the standard deviation they were divided by.
    """
    x = winsorize(values)
    known = np.isfinite(x)
    if known.sum() < 2 or np.ptp(x[known]) <= 1e-12 * np.abs(x[known]).max():
        return np.full(x.shape, np.nan), np.nan
    scale = float(x[known].std())
    return (x - x[known].mean()) / scale, scale
