"""The probability that the checkpoint ranked first is the best one."""

from __future__ import annotations

import numpy as np

from rankckpt_jax.evaluation.scores import Values, align


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
