"""The noise ceiling: the agreement that a perfect score reaches with noisy accuracies.

Accuracies of two fine-tunings with other seeds differ. Their agreement is what
fine-tuning once more would reach as a score. A perfect score is free of noise, so it
agrees better with one fine-tuning than two fine-tunings agree with each other.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.evaluation.intervals import Interval, fisher_interval
from rankckpt_jax.evaluation.scores import Values, align, score_ranking


@dataclasses.dataclass(frozen=True)
class NoiseCeiling:
    """The agreement of fine-tunings with each other, and the ceilings that follow.

    Attributes:
      n: Number of checkpoints.
      num_runs: Number of fine-tunings of each checkpoint, R.
      kendall: Mean Kendall's tau of two runs: the lower line of a plot.
      pearson: Mean Pearson's r of two runs, r_12.
      pearson_interval: 95 % interval of r_12 by Fisher's z; for more than two runs it
        is too wide.
      rel_1: Mean Rel@1 of the order of one run, judged by another.
      recall_1: Mean Recall@1 of the order of one run, judged by another.
      kendall_one: Kendall's tau of a perfect score, judged by one run.
      kendall_mean: The same, judged by the mean of all runs: the upper line of a plot.
      pearson_one: Pearson's r of a perfect score, judged by one run.
      pearson_mean: The same, judged by the mean of all runs.
    """

    n: int
    num_runs: int
    kendall: float
    pearson: float
    pearson_interval: Interval
    rel_1: float
    recall_1: float
    kendall_one: float
    kendall_mean: float
    pearson_one: float
    pearson_mean: float


def noise_ceiling(runs: Sequence[Values]) -> NoiseCeiling:
    """Return the noise ceiling of several fine-tunings of the same checkpoints.

    The runs must vary all that another user's run would: head, order of the images and
    the choice of hyperparameters. They share the test images, so the noise of those is
    not part of it. Sources: Spearman, "The Proof and Measurement of Association", 1904;
    noise ceilings as in Nili et al., "A Toolbox for Representational Similarity
    Analysis", 2014.

    Example:
      >>> first, second = [0.5, 0.6, 0.7, 0.8, 0.9], [0.6, 0.5, 0.7, 0.9, 0.8]
      >>> ceiling = noise_ceiling([first, second])
      >>> f"{ceiling.kendall:.2f} {ceiling.kendall_one:.2f}"
      '0.60 0.71'

    Args:
      runs: R >= 2 fine-tunings, each [n] accuracies in one order, or a mapping from
        checkpoint name.

    Raises:
      InputError: There are fewer than two runs, or they do not match; see
        `score_ranking`.
    """
    if len(runs) < 2:
        raise InputError(
            "The noise ceiling needs several fine-tunings",
            expected="at least two runs",
            found=f"{len(runs)}",
            fix="fine-tune with a second seed",
        )
    pairs = [score_ranking(a, b) for a, b in itertools.permutations(runs, 2)]

    def mean(metric: str) -> float:
        return math.fsum(pair[metric] for pair in pairs) / len(pairs)

    count, n = len(runs), len(align(runs[0], runs[1])[0])
    kendall, pearson = mean("kendall"), mean("pearson")
    return NoiseCeiling(
        n,
        count,
        kendall,
        pearson,
        fisher_interval(pearson, n),
        mean("rel@1"),
        mean("recall@1"),
        kendall_ceiling(kendall),
        kendall_ceiling(kendall, count),
        pearson_ceiling(pearson),
        pearson_ceiling(pearson, count),
    )


def pearson_ceiling(agreement: float, num_runs: int = 1) -> float:
    """Return Pearson's r of a perfect score with the mean of R noisy runs.

        sqrt(R r_12 / (1 + (R - 1) r_12)),

    which is sqrt(r_12) for one run. It is the square root of the reliability of the
    mean (correction for attenuation, Spearman 1904; Spearman-Brown formula, 1910).

    Args:
      agreement: r_12, Pearson's r of two runs.
      num_runs: R, the number of runs whose mean judges the score.

    Returns:
      A value in [0, 1]; 0 if the runs do not agree (r_12 <= 0), NaN for NaN.
    """
    if math.isnan(agreement):
        return math.nan
    r = min(max(agreement, 0.0), 1.0)
    return math.sqrt(num_runs * r / (1 + (num_runs - 1) * r))


def kendall_ceiling(agreement: float, num_runs: int = 1) -> float:
    """Return Kendall's tau of a perfect score with the mean of R noisy runs.

    Tau is converted to Pearson's r by r = sin(pi tau / 2), which holds for a bivariate
    normal distribution (Greiner 1909; Kendall, "Rank Correlation Methods"), then
    `pearson_ceiling` is applied, then r is converted back. Two runs with tau 0.6 give
    0.71 for one run and 0.79 for the mean of two.

    Args:
      agreement: Kendall's tau of two runs.
      num_runs: R, the number of runs whose mean judges the score.

    Returns:
      A value in [0, 1]; 0 if the runs do not agree (tau <= 0), NaN for NaN.
    """
    ceiling = pearson_ceiling(math.sin(math.pi * agreement / 2), num_runs)
    return 2 / math.pi * math.asin(ceiling)


def mean_of_runs(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean accuracy of each checkpoint that all runs have.

    Args:
      runs: Accuracies by checkpoint name, one mapping per run.
    """
    names = [name for name in runs[0] if all(name in run for run in runs)]
    return {name: float(np.mean([run[name] for run in runs])) for name in names}
