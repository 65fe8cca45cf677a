"""A test of whether one measure ranks better than another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from rankckpt_jax.evaluation import batch
from rankckpt_jax.evaluation.scores import Values, align

_MAX_EXACT = 12
"""With at most this many checkpoints, all 2^n exchanges are enumerated."""


class Comparison(NamedTuple):
    """The difference of two measures on the same checkpoints.

    Attributes:
      difference: Kendall's tau of the first measure minus that of the second.
      p_value: Two-sided p-value; NaN if the difference is undefined.
    """

    difference: float
    p_value: float


def compare(
    first: Values,
    second: Values,
    accuracies: Values,
    *,
    num_samples: int = 4000,
    seed: int = 0,
) -> Comparison:
    """Test whether two measures differ in Kendall's tau, by paired permutation.

    Under the null hypothesis, the scores of a checkpoint by the two measures can be
    exchanged. The scores of each measure are replaced by their ranks, then exchanged
    for a random half of the checkpoints. The p-value is the share of exchanges with at
    least the observed absolute difference.

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
        return Comparison(observed, observed)
    defined = differences[~np.isnan(differences)]
    # The tolerance treats values that differ by rounding as equal.
    p = float(np.mean(np.abs(defined) >= abs(observed) - 1e-9))
    return Comparison(observed, p)
