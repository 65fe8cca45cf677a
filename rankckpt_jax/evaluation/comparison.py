"""Tests of whether one measure ranks better than another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from rankckpt_jax.evaluation import batch
from rankckpt_jax.evaluation.intervals import Interval, jackknife
from rankckpt_jax.evaluation.scores import Values, align

_MAX_EXACT = 12
"""With at most this many checkpoints, all 2^n exchanges are enumerated."""

MIN_TASKS = 6
"""Fewer tasks cannot decide at 5 %, because the least p-value is 2 / 2^T."""

_MAX_EXACT_TASKS = 40
"""With at most this many tasks, all 2^T flips are counted."""


class Comparison(NamedTuple):
    """The difference of two measures on the same checkpoints.

    Attributes:
      difference: Kendall's tau of the first measure minus that of the second.
      p_value: Two-sided p-value; NaN if the difference is undefined.
      interval: 95 % confidence interval of the difference, from a paired jackknife.
    """

    difference: float
    p_value: float
    interval: Interval


class TaskComparison(NamedTuple):
    """The difference of two measures over several tasks.

    Attributes:
      difference: Mean over tasks of the first value minus the second.
      p_value: Two-sided p-value; NaN without tasks.
      num_tasks: Number of tasks with both values, T.
    """

    difference: float
    p_value: float
    num_tasks: int

    @property
    def is_decidable(self) -> bool:
        """Whether so many tasks can give a p-value below 5 %."""
        return self.num_tasks >= MIN_TASKS


def compare(
    first: Values,
    second: Values,
    accuracies: Values,
    *,
    num_samples: int = 4000,
    seed: int = 0,
) -> Comparison:
    """Test whether two measures differ in Kendall's tau on one task.

    Under the null hypothesis, the scores of a checkpoint by the two measures can be
    exchanged. The scores of each measure are replaced by their ranks, then exchanged
    for a random half of the checkpoints. The p-value is the share of exchanges with at
    least the observed absolute difference. The interval is a jackknife that leaves the
    same checkpoint out of both; see `intervals.jackknife`.

    Args:
      first: [n] scores of the first measure, or a mapping from checkpoint name.
      second: [n] scores of the second measure, or a mapping with the same names.
      accuracies: [n] accuracies, or a mapping with the same names.
      num_samples: Number of random exchanges. With at most twelve checkpoints, all
        exchanges are tried instead.
      seed: Seed of the random exchanges.

    Raises:
      InputError: As for `score_ranking`.
    """
    # Imported here for start-up time.
    from scipy.stats import rankdata

    s, a = align(first, accuracies)
    t, _ = align(second, accuracies)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        t = np.asarray([second[name] for name in first], np.float64)
    n = len(a)

    def difference(kept: np.ndarray) -> float:
        taus = batch.kendall(np.stack([s[kept], t[kept]]), np.stack([a[kept]] * 2))
        return float(taus[0] - taus[1])

    interval = jackknife(difference, np.arange(n), bounds=(-2.0, 2.0))
    s, t = rankdata(s), rankdata(t)
    if n <= _MAX_EXACT:
        exchange = np.array(list(itertools.product([False, True], repeat=n)))
    else:
        exchange = np.random.default_rng(seed).random((num_samples, n)) < 0.5
        # Including the observed order keeps the p-value above 0.
        exchange[0] = False
    accuracies = np.broadcast_to(a, exchange.shape)
    differences = batch.kendall(np.where(exchange, t, s), accuracies)
    differences = differences - batch.kendall(np.where(exchange, s, t), accuracies)
    observed = float(differences[0])
    if np.isnan(observed):
        return Comparison(observed, observed, interval)
    defined = differences[~np.isnan(differences)]
    # The tolerance treats values that differ by rounding as equal.
    p = float(np.mean(np.abs(defined) >= abs(observed) - 1e-9))
    return Comparison(observed, p, interval)


def compare_over_tasks(
    first: Mapping[str, float],
    second: Mapping[str, float],
    *,
    num_samples: int = 100_000,
    seed: int = 0,
) -> TaskComparison:
    """Test whether two measures differ over tasks, by sign flips.

    With d_t the difference of the two values of task t, the p-value is the share of all
    2^T ways to flip the signs of d_t whose absolute sum is at least the observed one
    (Fisher, "The Design of Experiments", 1935). It is at least 2 / 2^T, so four tasks
    (0.125) cannot decide and six can (0.031). Tasks of one pool share checkpoints, so
    the p-value does not describe the choice of the pool.

    Example:
      >>> taus = {"a": 0.5, "b": 0.4, "c": 0.6, "d": 0.7, "e": 0.5, "f": 0.6}
      >>> compare_over_tasks(taus, dict.fromkeys(taus, 0.3)).p_value
      0.03125

    Args:
      first: By task, the value of the first measure, such as Kendall's tau.
      second: By task, that of the second. Tasks that only one has, or that have NaN,
        are left out.
      num_samples: Number of random flips for more than 40 tasks; all flips are counted
        for fewer.
      seed: Seed of the random flips.
    """
    tasks = [task for task in first if task in second]
    d = np.array([first[task] - second[task] for task in tasks], np.float64)
    d = d[~np.isnan(d)]
    if not len(d):
        return TaskComparison(math.nan, math.nan, 0)
    # The tolerance treats sums that differ by rounding as equal.
    observed = abs(d.sum()) - 1e-9
    if len(d) <= _MAX_EXACT_TASKS:
        one, other = _all_sums(d[::2]), np.sort(_all_sums(d[1::2]))
        # one + other >= observed or <= -observed, which are equally many.
        above = len(other) - np.searchsorted(other, observed - one)
        p = 1.0 if observed <= 0 else 2 * int(above.sum()) / 2.0 ** len(d)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (num_samples, len(d)))
        # Including the observed signs keeps the p-value above 0.
        signs[0] = 1.0
        p = float(np.mean(np.abs(signs @ d) >= observed))
    return TaskComparison(float(d.mean()), p, len(d))


def _all_sums(d: np.ndarray) -> np.ndarray:
    """Return the sums of d for all 2^T choices of signs."""
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for several comparisons by Holm's method.

    The j-th smallest of m p-values is multiplied by m - j + 1, and is at least the
    adjusted one before it (Holm, 1979). Name the comparisons before looking at results.

    Example:
      >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
      {'a': 0.03, 'b': 0.06, 'c': 0.06}

    Args:
      p_values: By name of the comparison; NaN stays NaN and does not count.
    """
    known = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    result = dict(p_values)
    highest = 0.0
    for i, (p, name) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - i) * p))
        result[name] = highest
    return result
