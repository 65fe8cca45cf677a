"""Fidelity: whether gaps between scores follow gaps between accuracies.

Pearson's r of the differences s_i - s_j and a_i - a_j over all ordered pairs is
Pearson's r of s and a, so it adds nothing. Over pairs i < j it depends on the order in
which the checkpoints are listed. The absolute gaps have neither flaw.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from rankckpt_jax.evaluation import batch
from rankckpt_jax.evaluation.scores import Values, align


class Calibration(NamedTuple):
    """Pairs of checkpoints with similar score gaps.

    Attributes:
      num_pairs: Number of pairs.
      score_gap: Mean of |s_i - s_j|; NaN without pairs.
      accuracy_gap: Mean of |a_i - a_j|; NaN without pairs.
      correct: Share of the pairs in the right order; a tie counts one half.
    """

    num_pairs: int
    score_gap: float
    accuracy_gap: float
    correct: float


def gap_fidelity(scores: Values, accuracies: Values) -> float:
    """Return Pearson's r of |s_i - s_j| and |a_i - a_j| over all pairs i < j.

    It ignores the signs of the gaps, so read it beside Kendall's tau. It answers the
    third objection of Singh et al., "How NOT to benchmark your SITE metric"
    (arXiv:2510.06448). The definition is ours, and may differ from theirs.

    Args:
      scores: [n], as for `score_ranking`.
      accuracies: [n], as for `score_ranking`.

    Returns:
      A value in [-1, 1]; NaN if all gaps of one kind are equal.

    Raises:
      InputError: As for `score_ranking`.
    """
    s, a = align(scores, accuracies)
    i, j = np.triu_indices(len(s), 1)
    gaps = np.abs(s[i] - s[j])[None], np.abs(a[i] - a[j])[None]
    return float(batch.pearson(*gaps)[0])


def calibrate_gaps(
    scores: Values, accuracies: Values, num_bins: int = 3
) -> tuple[Calibration, ...]:
    """Group the pairs of checkpoints by their score gap, the smallest gaps first.

    For a faithful score, larger score gaps come with larger accuracy gaps and with more
    pairs in the right order. Bins are quantiles of the score gap (tertiles by default).
    Equal gaps are in one bin, so bins may differ in size or be empty.

    Args:
      scores: [n], as for `score_ranking`.
      accuracies: [n], as for `score_ranking`.
      num_bins: Number of bins.

    Raises:
      InputError: As for `score_ranking`.
    """
    s, a = align(scores, accuracies)
    i, j = np.triu_indices(len(s), 1)
    gaps, order = np.abs(s[i] - s[j]), np.sign(s[i] - s[j]) * np.sign(a[i] - a[j])
    accuracy_gaps = np.abs(a[i] - a[j])
    if not len(gaps):
        return tuple(_bin(gaps, gaps, gaps) for _ in range(num_bins))
    edges = np.quantile(gaps, np.arange(1, num_bins) / num_bins)
    bins = np.searchsorted(edges, gaps)
    return tuple(
        _bin(gaps[bins == b], accuracy_gaps[bins == b], order[bins == b])
        for b in range(num_bins)
    )


def _bin(gaps: np.ndarray, accuracy_gaps: np.ndarray, order: np.ndarray) -> Calibration:
    if not len(gaps):
        return Calibration(0, math.nan, math.nan, math.nan)
    correct = (1 + float(order.mean())) / 2
    return Calibration(
        len(gaps), float(gaps.mean()), float(accuracy_gaps.mean()), correct
    )
