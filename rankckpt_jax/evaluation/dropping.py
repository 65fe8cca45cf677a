"""The dropping curve: agreement after the easiest checkpoints are left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rankckpt_jax.evaluation import batch
from rankckpt_jax.evaluation.noise_ceiling import noise_ceiling
from rankckpt_jax.evaluation.scores import Values, align

_MIN_LEFT = 6
"""The curve ends with this many checkpoints."""


class DroppingPoint(NamedTuple):
    """Agreement among the checkpoints that are left.

    Attributes:
      num_dropped: Number of dropped checkpoints, j.
      n: Number of checkpoints that are left.
      kendall: Kendall's tau of the score.
      static: That of the static list; NaN without one.
      ceiling: That of a perfect score, judged as the accuracies were; NaN with fewer
        than two runs.
    """

    num_dropped: int
    n: int
    kendall: float
    static: float
    ceiling: float


def dropping_curve(
    scores: Values,
    accuracies: Values,
    criterion: Values,
    *,
    static: Values | None = None,
    runs: Sequence[Values] = (),
) -> tuple[DroppingPoint, ...]:
    """Return Kendall's tau after dropping the j easiest, for j = 0 ... n - 6.

    The checkpoints with the lowest criterion are dropped first. Choose a criterion that
    does not judge: size, source accuracy or the mean rank on other tasks. To drop the
    largest first, negate the sizes. A smaller range lowers every tau, so compare with
    the ceiling and the static list, from which the same checkpoints are dropped.
    Checkpoints with equal criterion are dropped in the order of their listing.

    Args:
      scores: [n], as for `score_ranking`.
      accuracies: [n], as for `score_ranking`; the mean over `runs` if there are some.
      criterion: [n], the lowest is the easiest.
      static: [n] values of a static list, higher is better.
      runs: Accuracies of R fine-tunings, each [n], for the ceiling; see
        `noise_ceiling`.

    Raises:
      InputError: As for `score_ranking`.
    """
    s, a = align(scores, accuracies)
    order = np.argsort(align(scores, criterion)[1], kind="stable")
    z = None if static is None else align(scores, static)[1]
    each = [align(scores, run)[1] for run in runs]
    result = []
    for j in range(max(0, len(s) - _MIN_LEFT + 1)):
        kept = order[j:]
        ceiling = math.nan
        if len(each) > 1:
            ceiling = noise_ceiling([run[kept] for run in each]).kendall_mean
        result.append(
            DroppingPoint(
                j,
                len(kept),
                _kendall(s[kept], a[kept]),
                math.nan if z is None else _kendall(z[kept], a[kept]),
                ceiling,
            )
        )
    return tuple(result)


def _kendall(s: np.ndarray, a: np.ndarray) -> float:
    return float(batch.kendall(s[None], a[None])[0])
