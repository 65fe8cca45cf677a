"""Remappings that move the classes of features before a measure scores them.

N images, D dimensions, C classes with means g_c; R_c = the root of the summed variances
of class c. Each class moves as a whole along the lines between class means, with
d_ab = |g_a - g_b| and u_ab = (g_a - g_b) / d_ab:

    ped  Li et al. (2023, arXiv 2308.15074): classes that overlap repel each other. In
         features with mean 0 and deviation 1, class a moves by
         sum_b u_ab min(t^2 / 2, 1) max(r (R_a + R_b) - d_ab, 0) in each of at most 6
         steps, until a step is half as long as the first one. t = 0.1, r = 0.6.
    sa   Khoba et al. (2025, arXiv 2502.16471), spread and attract: the first 64
         principal components of each image move by 1 away from the mean of its class.
         Then class a moves by 0.005 sum_b u_ba (d_ab - 0.6 (R_a + R_b)).

Published code of `ped` takes mean and deviation from validation images of the source
task, which checkpoints do not come with; here they are those of the features
themselves. Published code of `sa` omits the spread and moves classes apart; this is the
form of the paper. Both move images by their own labels, so that classes become easier
(`ped`) or harder (`sa`) to separate for any features. Independent evidence finds no
gain over the measure without them (Zheng et al. 2025, arXiv 2510.23145).

Pairs of classes are streamed in blocks: no array is larger than C x D or _PAIRS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.measures.statistics.class_statistics import Statistics

REMAPS = ("none", "ped", "sa")

_STEPS, _TIME, _RADIUS = 6, 0.1, 0.6
"""Constants of `ped`: steps, t and r. Published code also tries r = 0.3."""
_LEAST_DEVIATION = 1e-3
"""Columns are divided by this at least, as in published code of `ped`."""
_SPREAD, _ATTRACTION, _COMPONENTS = 1.0, 0.005, 64
"""Constants of `sa`."""

_PAIRS = 1 << 22
"""Pairs of classes in a block."""
_ROWS = 4096
"""Rows that are converted to float64 at once."""


def check(measure: str) -> Callable[[Mapping[str, Any]], None]:
    """Return a check that the option `remap` of a measure is one of REMAPS."""

    def check_options(options: Mapping[str, Any]) -> None:
        remap = options.get("remap", "none")
        if remap not in REMAPS:
            where = f"measure_options.{measure}.remap"
            raise unknown_name("remap", remap, REMAPS, where)

    return check_options


def apply(statistics: Statistics, remap: str, radius: float = _RADIUS) -> Statistics:
    """Return the statistics of remapped features.

    Args:
      statistics: Of features [N, D].
      remap: One of REMAPS. "none" returns `statistics`.
      radius: r of `ped`.

    Returns:
      Statistics of [N, D], or of [N, min(N, D, 64)] for "sa".

    Raises:
      InputError: The images do not have one class each.
    """
    if remap != "none" and statistics.columns is not None:
        raise InputError(
            f"The remapping {remap!r} moves classes, and these images have none",
            where="measure_options",
            expected="one class per image",
            found="several labels or a number per image",
            fix="leave the option `remap` out",
        )
    if remap == "ped":
        moves = _repel(statistics, radius)
        return _moved(statistics, statistics.features, moves)
    if remap == "sa":
        spread = _spread(statistics)
        return _moved(spread, spread.features, _attract(spread))
    return statistics


def _moved(
    statistics: Statistics, features: np.ndarray, moves: np.ndarray
) -> Statistics:
    """Return statistics of features [N, D] whose classes move by [C, D]."""
    labels = statistics.labels
    moved = features + moves.astype(features.dtype)[labels]
    return Statistics(moved, labels, statistics.num_classes)


def _repel(statistics: Statistics, radius: float) -> np.ndarray:
    """Return the moves [C, D] of `ped`."""
    variances = np.diag(statistics.scatter) / statistics.num_images
    deviation = np.maximum(np.sqrt(np.maximum(variances, 0)), _LEAST_DEVIATION)
    start = means = statistics.class_means / deviation
    radii = radius * _radii(statistics, deviation)
    share = min(_TIME**2 / 2, 1.0)
    first = 0.0
    for _ in range(_STEPS):
        move = _move(means, radii, lambda gap: -share * np.minimum(gap, 0))
        means = means + move
        length = np.abs(move).sum()
        first = first or length
        if length <= first / 2:
            break
    return (means - start) * deviation


def _spread(statistics: Statistics) -> Statistics:
    """Return statistics of images that moved by 1 away from the mean of their class."""
    if statistics.features.shape[1] > _COMPONENTS:
        x = statistics.principal(_COMPONENTS).astype(statistics.features.dtype)
        return _spread(Statistics(x, statistics.labels, statistics.num_classes))
    means = statistics.class_means + statistics.rest
    away = statistics.centered - means[statistics.labels]
    length = np.linalg.norm(away, axis=1, keepdims=True)
    away *= _SPREAD / np.where(length > 0, length, np.inf)
    x = statistics.features + away.astype(statistics.features.dtype)
    return Statistics(x, statistics.labels, statistics.num_classes)


def _attract(statistics: Statistics) -> np.ndarray:
    """Return the moves [C, D] of `sa` after the spread."""
    means = statistics.class_means
    radii = _RADIUS * _radii(statistics, np.ones(means.shape[1]))
    return _move(means, radii, lambda gap: -_ATTRACTION * gap)


def _move(
    means: np.ndarray, radii: np.ndarray, push: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return sum_b u_ab push(d_ab - radius_a - radius_b) for each class a: [C, D].

    Classes with the same mean do not move each other.
    """
    squares = np.einsum("ij,ij->i", means, means)
    moves = np.empty_like(means)
    rows = max(1, _PAIRS // len(means))
    # Distances are differences of squares.
    least = 64 * np.finfo(float).eps * squares.max(initial=0)
    for start in range(0, len(means), rows):
        block = slice(start, start + rows)
        distances = squares[block, None] + squares - 2 * means[block] @ means.T
        differs = distances > least
        distances = np.sqrt(np.where(differs, distances, 1))
        gaps = distances - radii[block, None] - radii
        pushes = np.where(differs, push(gaps) / distances, 0)
        moves[block] = pushes.sum(axis=1, keepdims=True) * means[block]
        moves[block] -= pushes @ means
    return moves


def _radii(statistics: Statistics, deviation: np.ndarray) -> np.ndarray:
    """Return R_c of features that are divided by deviation [D]: float64 [C]."""
    means = statistics.class_means + statistics.rest
    squares = np.empty(len(statistics.labels))
    for start in range(0, len(squares), _ROWS):
        block = slice(start, start + _ROWS)
        rows = statistics.centered[block] - means[statistics.labels[block]]
        squares[block] = np.square(rows / deviation).sum(axis=1)
    sums = np.bincount(statistics.labels, squares, statistics.num_classes)
    return np.sqrt(sums / statistics.sizes)
