"""How far the scores of a ranking would move with other checkpoints or other noise.

Two things are uncertain. A measure with a random start, or over resampled images, has
a spread: its score would differ in another run. And the checkpoints compared are a
sample: twelve others might have been in better or worse order. Both are resampled
(Efron's percentile bootstrap, 1979).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rankckpt_jax.errors import InputError
from rankckpt_jax.evaluation import batch
from rankckpt_jax.evaluation.scores import Values, align


class Interval(NamedTuple):
    """Where a value lies with the level asked for; NaN where it is undefined."""

    low: float
    high: float


def intervals(
    scores: Values,
    accuracies: Values,
    spreads: Values | None = None,
    *,
    over: tuple[str, ...] = ("checkpoints", "spread"),
    level: float = 0.95,
    num_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Bootstrap intervals of what `score_ranking` says.

    A resample draws n checkpoints with replacement ("checkpoints"), adds to each score
    normal noise of its spread ("spread"), or both. A resample in which a value is
    undefined (one checkpoint n times) is left out of its interval. With fewer than
    about eight checkpoints such intervals are known to be too narrow.

    Args:
      scores: [n], as for `score_ranking`.
      accuracies: [n], as for `score_ranking`.
      spreads: [n], standard deviations of the scores; none if None.
      over: What is resampled.
      level: Share of the resamples within the interval.
      num_samples: Resamples.
      seed: Decides which.

    Returns:
      For each of `batch.METRICS` its interval.

    Raises:
      InputError: As `score_ranking`, or `over` names something else.
    """
    s, a = align(scores, accuracies)
    s, a = _resample(s, a, _spreads(scores, spreads), over, num_samples, seed)
    tail = (1 - level) / 2
    result = {}
    for name, values in batch.evaluate(s, a).items():
        known = values[~np.isnan(values)]
        ends = np.quantile(known, [tail, 1 - tail]) if len(known) else [np.nan] * 2
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
    """The probability that the checkpoint ranked first is truly the best.

    P(argmax_i s_i* = argmax_i a_i*) with s* the scores plus normal noise of their
    spreads, and a* the accuracies plus that of measuring them on M test images,
    standard deviation sqrt(a (1 - a) / M). Two networks of one test set err on the
    same images, so their difference is more certain than this supposes. Ties count in
    equal parts.

    Args:
      scores: [n], as for `score_ranking`.
      accuracies: [n], fractions in [0, 1] where `num_test` is given.
      spreads: [n], standard deviations of the scores; none if None.
      num_test: M; accuracies are taken as exact if None.
      num_samples: Draws of the noise.
      seed: Decides which.

    Returns:
      A value in [0, 1]; NaN where n = 0.

    Raises:
      InputError: As `score_ranking`.
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


def first_probabilities(
    scores: Values,
    spreads: Values | None = None,
    *,
    num_samples: int = 4000,
    seed: int = 0,
) -> np.ndarray:
    """How likely each checkpoint is to be ranked first in another run of the measure.

    Args:
      scores: [n] finite scores, or a mapping from name to score.
      spreads: [n], standard deviations of the scores; none if None.
      num_samples: Draws of the noise.
      seed: Decides which.

    Returns:
      float64 [n], which sums to 1.
    """
    s, _ = align(scores, scores)
    if not len(s):
        return np.zeros(0)
    random = np.random.default_rng(seed)
    noise = random.standard_normal((num_samples, len(s)))
    noisy = s + _spreads(scores, spreads) * noise
    first = noisy == noisy.max(1, keepdims=True)
    return (first / first.sum(1, keepdims=True)).mean(0)


def _spreads(scores: Values, spreads: Values | None) -> np.ndarray:
    if spreads is None:
        return np.zeros(len(scores))
    _, d = align(scores, spreads)
    return np.abs(d)


def _resample(
    s: np.ndarray,
    a: np.ndarray,
    spreads: np.ndarray,
    over: tuple[str, ...],
    num_samples: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Resampled scores and accuracies, each [B, n]."""
    if unknown := set(over) - {"checkpoints", "spread"}:
        raise InputError(
            "An interval is over checkpoints, over the measure's spread, or both",
            expected='"checkpoints", "spread"',
            found=", ".join(sorted(unknown)),
        )
    random = np.random.default_rng(seed)
    n = len(s)
    rows = np.tile(np.arange(n), (num_samples, 1))
    if "checkpoints" in over and n:
        rows = random.integers(0, n, (num_samples, n))
    # A checkpoint drawn twice keeps one score: its noise is its own, not the draw's.
    noise = random.standard_normal((num_samples, n)) * spreads
    if "spread" not in over:
        noise = np.zeros((num_samples, n))
    noisy = s + noise
    return np.take_along_axis(noisy, rows, axis=1), a[rows]
