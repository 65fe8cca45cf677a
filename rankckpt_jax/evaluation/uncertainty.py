"""Confidence intervals of the metrics, and the probability that the first is best.

There are two sources of uncertainty. The score of a measure with a random start or with
resampled images varies between runs. And the checkpoints are a sample of possible
checkpoints. Both are resampled (Efron's percentile bootstrap, 1979).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from rankckpt_jax.evaluation import batch
from rankckpt_jax.evaluation.scores import Values, align


class Interval(NamedTuple):
    """A confidence interval; NaN if the metric is undefined."""

    low: float
    high: float


def intervals(
    scores: Values,
    accuracies: Values,
    spreads: Values | None = None,
    *,
    metrics: Collection[str] = batch.METRICS,
    level: float = 0.95,
    num_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return a bootstrap confidence interval of each metric.

    A resample draws n checkpoints with replacement and adds normal noise with standard
    deviation `spreads` to the scores. Resamples in which a metric is undefined, such as
    n copies of one checkpoint, are ignored. With fewer than about eight checkpoints,
    the intervals are too narrow.

    Args:
      scores: [n], as for `score_ranking`.
      accuracies: [n], as for `score_ranking`.
      spreads: [n], standard deviations of the scores; 0 if None.
      metrics: Names of the metrics, some of `batch.METRICS`.
      level: Confidence level in (0, 1).
      num_samples: Number of resamples, B.
      seed: Seed of the resamples.

    Returns:
      An interval for each metric.

    Raises:
      InputError: As for `score_ranking`.
    """
    s, a = align(scores, accuracies)
    random = np.random.default_rng(seed)
    shape = (num_samples, len(s))
    rows = random.integers(0, len(s), shape) if len(s) else np.zeros(shape, int)
    # A checkpoint that is drawn twice keeps its score: the noise is per checkpoint.
    noisy = s + random.standard_normal(shape) * _spreads(scores, spreads)
    s, a = np.take_along_axis(noisy, rows, axis=1), a[rows]
    tail = (1 - level) / 2
    result = {}
    for name, values in batch.evaluate(s, a, metrics).items():
        defined = values[~np.isnan(values)]
        ends = np.quantile(defined, [tail, 1 - tail]) if len(defined) else [np.nan] * 2
        result[name] = Interval(float(ends[0]), float(ends[1]))
    return result


def probability_best(
    scores: Values,
    accuracies: Values,
    spreads: Values | None = None,
    *,
    num_test: int | None = None,
    num_samples: int = 4000,
    seed: int = 0,
) -> float:
    """Return the probability that the checkpoint ranked first is the best one.

    P(argmax_i s_i* = argmax_i a_i*), where s* are the scores plus normal noise with
    standard deviation `spreads`, and a* are the accuracies plus normal noise with
    standard deviation sqrt(a (1 - a) / M) for M test images. This is conservative: two
    networks often fail on the same images, so their difference is more certain. Ties
    count in equal parts.

    Args:
      scores: [n], as for `score_ranking`.
      accuracies: [n], fractions in [0, 1] where `num_test` is given.
      spreads: [n], standard deviations of the scores; 0 if None.
      num_test: Number of test images, M; accuracies are exact if None.
      num_samples: Number of samples of the noise.
      seed: Seed of the noise.

    Returns:
      A value in [0, 1]; NaN if n = 0.

    Raises:
      InputError: As for `score_ranking`.
    """
    s, a = align(scores, accuracies)
    if not len(s):
        return float("nan")
    random = np.random.default_rng(seed)
    shape = (num_samples, len(s))
    noisy_s = s + _spreads(scores, spreads) * random.standard_normal(shape)
    error = np.zeros_like(a)
    if num_test:
        error = np.sqrt(np.clip(a * (1 - a), 0, None) / num_test)
    noisy_a = a + error * random.standard_normal(shape)
    first = noisy_s == noisy_s.max(1, keepdims=True)
    best = noisy_a == noisy_a.max(1, keepdims=True)
    return float(((first & best).sum(1) / first.sum(1)).mean())


def _spreads(scores: Values, spreads: Values | None) -> np.ndarray:
    if spreads is None:
        return np.zeros(len(scores))
    _, d = align(scores, spreads)
    return np.abs(d)
