"""Regret: the accuracy that is lost by trusting a score."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.evaluation.scores import Values, align


class Regret(NamedTuple):
    """The regret of a score.

    Attributes:
      value: The regret, in the unit of the accuracies.
      random: Its expected value for k checkpoints drawn at random.
      normalized: value / random: 0 is perfect, 1 is as bad as a random draw. NaN if
        all draws are equally good.
    """

    value: float
    random: float
    normalized: float


def regret(
    scores: Values, accuracies: Values, k: int = 1, *, remeasured: Values | None = None
) -> Regret:
    """Return the accuracy lost by fine-tuning only the k best-scored checkpoints.

        max_i a_i - max_{i in T_k} a_i

    With `remeasured` accuracies b of a second seed it is b_best - b_chosen, where a
    names the best of all and the best of T_k, and b measures both. The largest of noisy
    accuracies is too large (the winner's curse); a second seed has no such bias. This
    regret may be negative. The value for random draws is exact, the mean over all sets
    of k checkpoints. If scores tie at place k, the regret is the mean over all ways to
    complete T_k. If accuracies tie, it is the mean over the tied checkpoints.

    Example:
      >>> value, random, normalized = regret([3, 2, 1, 0], [0.7, 0.9, 0.8, 0.6])
      >>> f"{value:.2f} {random:.2f} {normalized:.2f}"
      '0.20 0.15 1.33'

    Args:
      scores: [n], as for `score_ranking`.
      accuracies: [n], as for `score_ranking`.
      k: Number of checkpoints to fine-tune, >= 1.
      remeasured: [n], accuracies of another seed in the same order or by name.

    Returns:
      The regret in the unit of the accuracies; NaN if n = 0.

    Raises:
      InputError: As for `score_ranking`; or k < 1.
    """
    if k < 1:
        raise InputError("Invalid number of checkpoints", expected=">= 1", found=str(k))
    s, a = align(scores, accuracies)
    b = a if remeasured is None else align(scores, remeasured)[1]
    if not len(a):
        return Regret(math.nan, math.nan, math.nan)
    best = float(b[a == a.max()].mean())
    value = best - _mean_chosen(s, a, b, k)
    random = best - _mean_chosen(np.zeros_like(a), a, b, k)
    return Regret(value, random, value / random if abs(random) > 1e-12 else math.nan)


def _mean_chosen(s: np.ndarray, a: np.ndarray, b: np.ndarray, k: int) -> float:
    """Return the mean of b at the highest a in T_k, over all ways to complete T_k.

    Of the t checkpoints tied at place k, m are drawn. The levels of a are visited from
    the highest. At each level, u of the tied checkpoints that are left are there, and
    the chance to draw r of them is hypergeometric.
    """
    # Imported here for start-up time.
    from scipy.special import comb

    k = min(k, len(s))
    threshold = np.sort(s)[-k]
    chosen, tied = s > threshold, s == threshold
    m = k - int(chosen.sum())
    left, ways = int(tied.sum()), comb(int(tied.sum()), m)
    result = 0.0
    for level in np.unique(a)[::-1]:
        sure, maybe = b[chosen & (a == level)], b[tied & (a == level)]
        u = len(maybe)
        # None of the tied checkpoints above this level are drawn.
        for r in range(min(u, m) + 1):
            count = len(sure) + r
            share = comb(u, r) * comb(left - u, m - r) / ways
            if count and share:
                # By symmetry, each of the u is equally likely to be among the r.
                total = sure.sum() + (r * maybe.mean() if r else 0.0)
                result += share * total / count
        if len(sure):
            break
        left -= u
    return float(result)
