"""Static lists: orders of the checkpoints that do not depend on the task.

A list by size or by source accuracy can agree with fine-tuning as well as a measure. A
measure is useful for what it adds to such a list (Singh et al., "How NOT to benchmark
your SITE metric", arXiv:2510.06448).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from rankckpt_jax.evaluation.scores import Values, align, score_ranking

Tables = Mapping[str, Mapping[str, float]]
"""By task, the value of each checkpoint."""


class BeyondStatic(NamedTuple):
    """What a score adds to a static list.

    Attributes:
      kendall: Kendall's tau of the score with the accuracies, tau_sa.
      static: That of the static list, tau_za.
      skill: kendall - static.
      partial: Kendall's partial tau of the score given the list.
    """

    kendall: float
    static: float
    skill: float
    partial: float


def beyond_static(scores: Values, accuracies: Values, static: Values) -> BeyondStatic:
    """Return the skill and the partial tau of a score given a static list z.

        partial = (tau_sa - tau_sz tau_za) / sqrt((1 - tau_sz^2) (1 - tau_za^2))

    (Kendall, "Partial Rank Correlation", 1942.) It is NaN if the score or the
    accuracies have the order of the list.

    Args:
      scores: [n], as for `score_ranking`.
      accuracies: [n], as for `score_ranking`.
      static: [n] values of the list, higher is better, in the same order or by name.

    Raises:
      InputError: As for `score_ranking`.
    """
    s, a = align(scores, accuracies)
    _, z = align(scores, static)
    sa, sz, za = (score_ranking(*pair)["kendall"] for pair in ((s, a), (s, z), (z, a)))
    square = (1 - sz * sz) * (1 - za * za)
    # Rounding also gives 1e-16 for equal orders.
    partial = (sa - sz * za) / math.sqrt(square) if square > 1e-12 else math.nan
    return BeyondStatic(sa, za, sa - za, partial)


def mean_rank_elsewhere(accuracies: Tables) -> dict[str, dict[str, float]]:
    """Return the mean rank of each checkpoint on the other tasks.

    It is a static list that leaves out the task that judges it. A rank is divided by
    the number of checkpoints of its task, (rank - 1/2) / n, where 1 is the rank of the
    lowest accuracy and ties have their mean rank. So tasks may have different
    checkpoints.

    Args:
      accuracies: By task, the accuracy of each checkpoint.

    Returns:
      By task, a value in (0, 1) for each of its checkpoints that another task has;
      higher is better.
    """
    # Imported here for start-up time.
    from scipy.stats import rankdata

    ranks = {
        task: dict(
            zip(known, (rankdata(list(known.values())) - 0.5) / len(known), strict=True)
        )
        for task, known in accuracies.items()
        if known
    }
    result: dict[str, dict[str, float]] = {}
    for task, known in accuracies.items():
        result[task] = {}
        for name in known:
            others = [r[name] for t, r in ranks.items() if t != task and name in r]
            if others:
                # Rounding keeps equal means equal.
                result[task][name] = round(float(np.mean(others)), 12)
    return result


def rank_dispersion(accuracies: Tables) -> float:
    """Return how much the order of the checkpoints differs between tasks.

    It is 1 minus the mean over pairs of tasks of Kendall's tau of their accuracies.
    Near 0, a static list suffices, and the tasks cannot tell measures apart. The
    published VTAB accuracies of NeuCRaB's checkpoints have 0.13 to 0.4.

    Args:
      accuracies: By task, the accuracy of each checkpoint.

    Returns:
      A value in [0, 2]; NaN if no two tasks share two checkpoints.
    """
    taus = []
    for one, other in itertools.combinations(accuracies.values(), 2):
        names = [name for name in one if name in other]
        tau = score_ranking([one[n] for n in names], [other[n] for n in names])
        taus.append(tau["kendall"])
    known = [tau for tau in taus if not math.isnan(tau)]
    return 1 - math.fsum(known) / len(known) if known else math.nan
