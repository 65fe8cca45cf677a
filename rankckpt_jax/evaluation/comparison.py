"""Whether one measure ranks better than another, or only seems to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.evaluation import batch
from rankckpt_jax.evaluation.scores import Values, align

_MOST_EXACT = 12
"""With so few checkpoints all 2^n exchanges are looked at, instead of a sample."""

_BY_ORDER = tuple(name for name in batch.METRICS if name != "pearson")


class Comparison(NamedTuple):
    """Two measures on the same checkpoints.

    Attributes:
      difference: Of the first to the second, averaged over tasks.
      p_value: How often exchanging the two at random gives a difference as large,
        either way; NaN where the difference is undefined.
    """

    difference: float
    p_value: float


def compare(
    tasks: Sequence[tuple[Values, Values, Values]],
    metric: str = "kendall",
    *,
    num_samples: int = 4000,
    seed: int = 0,
) -> Comparison:
    """Tests whether two measures differ, by a paired permutation test.

    If both knew equally much, it would not matter which of its two scores a checkpoint
    is ranked by. So the scores, each measure's brought to ranks to be of one scale, are
    exchanged for a random half of the checkpoints of each task, the difference is taken
    again, and p is the share of such exchanges that reach the one found.

    Args:
      tasks: For each task (scores of the first measure, scores of the second,
        accuracies), each [n] or a mapping with the same names.
      metric: One of `batch.METRICS` but "pearson", which ranks would change.
      num_samples: Random exchanges; all are tried where there are at most twelve
        checkpoints of a single task.
      seed: Decides which.

    Returns:
      The mean difference over tasks and its two-sided p value.

    Raises:
      InputError: As `score_ranking`, or the metric is not one of those.
    """
    from scipy.stats import rankdata

    if metric not in _BY_ORDER:
        raise InputError(
            f"Measures cannot be compared by {metric!r}",
            expected=", ".join(_BY_ORDER),
        )
    random = np.random.default_rng(seed)
    differences = []
    for first, second, accuracies in tasks:
        s, a = align(first, accuracies)
        t, _ = align(second, accuracies)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            t = np.asarray([second[name] for name in first], np.float64)
        n = len(a)
        s, t = rankdata(s), rankdata(t)
        if n <= _MOST_EXACT and len(tasks) == 1:
            exchange = np.array(list(itertools.product([False, True], repeat=n)))
        else:
            exchange = random.random((num_samples, n)) < 0.5
            # Among them the one found, so that p is never 0.
            exchange[0] = False
        one, other = np.where(exchange, t, s), np.where(exchange, s, t)
        shown = np.broadcast_to(a, one.shape)
        values = batch.evaluate(one, shown)[metric]
        differences.append(values - batch.evaluate(other, shown)[metric])
    if not differences:
        return Comparison(float("nan"), float("nan"))
    total = np.mean(differences, axis=0)
    found = float(total[0])
    if np.isnan(found):
        return Comparison(found, found)
    known = total[~np.isnan(total)]
    p = float(np.mean(np.abs(known) >= abs(found) - 1e-9))
    return Comparison(found, p)
