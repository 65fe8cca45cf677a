"""Power laws of the spectra of weight matrices.

Clauset et al. (2009), "Power-law distributions in empirical data", as Martin, Peng and
Mahoney (2021) apply it to the eigenvalues of layers.
"""

from __future__ import annotations

import dataclasses

import numpy as np

MIN_EIGENVALUES = 8
"""Layers with fewer have no spectrum to fit, as `min_evals` of weightwatcher 0.7.7."""

_SMALLEST = 1e-5
"""Eigenvalues up to this one are dropped, as in weightwatcher 0.7.7."""

_EQUAL = 1e-5
"""Relative difference up to which all eigenvalues are equal: weights are float32."""

_BLOCK = 1 << 20
"""Pairs of a start and an eigenvalue that are compared at once."""


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """The power law p(x) ~ x^-alpha of the largest eigenvalues.

    Attributes:
      alpha: The exponent, above 1.
      distance: Kolmogorov-Smirnov distance to the eigenvalues from `x_min` on.
      x_min: The smallest eigenvalue that it was fitted to.
      tail: Number of eigenvalues from `x_min` on.
    """

    alpha: float
    distance: float
    x_min: float
    tail: int


def eigenvalues(matrices: np.ndarray) -> np.ndarray:
    """Return the squared singular values of matrices in one ascending list.

    They come from singular values in float64: those of W'W would lose the small ones.

    Args:
      matrices: float [K, n, m].

    Returns:
      float64 [k], all above 1e-5.
    """
    values = np.linalg.svd(matrices.astype(np.float64), compute_uv=False)
    squares = np.sort(np.square(values), axis=None)
    return squares[squares > _SMALLEST]


def fit(x: np.ndarray) -> PowerLaw | None:
    """Fit a power law to the tail of a spectrum that it describes best.

    For each start i < k, with m_i = k - i + 1 eigenvalues from x_i on:

        alpha_i = 1 + m_i / sum_{j >= i} ln(x_j / x_i)
        D_i = max_{j >= i} |1 - (x_j / x_i)^(1 - alpha_i) - (j - i) / m_i|

    The start with the least D_i counts, the first of equal ones.

    Args:
      x: float64 [k], positive and ascending.

    Returns:
      The power law; None for fewer than `MIN_EIGENVALUES` or equal eigenvalues.
    """
    count = len(x)
    if count < MIN_EIGENVALUES or x[-1] <= x[0] * (1 + _EQUAL):
        return None
    logs = np.log(x / x[0])
    sizes = count - np.arange(count - 1)
    sums = np.cumsum(logs[::-1])[:0:-1] - sizes * logs[:-1]
    # A tail of equal eigenvalues has no exponent.
    is_fitted = sums > _EQUAL * sizes
    alphas = 1 + sizes / np.where(is_fitted, sums, np.inf)
    distances = np.ones(count - 1)
    rows = max(1, _BLOCK // count)
    for first in range(0, count - 1, rows):
        starts = np.arange(first, min(first + rows, count - 1))[:, None]
        # Earlier starts of the block need the eigenvalues from `first` on.
        offsets = np.arange(first, count) - starts
        ratios = np.maximum(logs[first:] - logs[starts], 0)
        expected = -np.expm1((1 - alphas[starts]) * ratios)
        gaps = np.abs(expected - offsets / sizes[starts])
        distances[starts[:, 0]] = np.where(offsets < 0, 0, gaps).max(axis=1)
    distances[~is_fitted] = 1
    best = int(np.argmin(distances))
    return PowerLaw(
        float(alphas[best]), float(distances[best]), float(x[best]), int(sizes[best])
    )
