"""Metrics of random orders, and the significance of a measure compared with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping

import numpy as np

from rankckpt_jax.evaluation import batch
from rankckpt_jax.evaluation.intervals import family_codes
from rankckpt_jax.evaluation.scores import Values, align, score_ranking
from rankckpt_jax.evaluation.static_list import Tables


def random_ranking(accuracies: Values) -> dict[str, float]:
    """Return the expected metrics of a random order.

    Recall@k and Rel@k are those of k checkpoints drawn at random, which is how
    `score_ranking` treats a tie of all checkpoints. Every correlation is 0 on average.

    Args:
      accuracies: [n] finite accuracies, or a mapping from checkpoint name to accuracy.

    Returns:
      A dict with the keys of `score_ranking`. The correlations are NaN for constant
      accuracies and for n < 2.

    Raises:
      InputError: An accuracy is missing or not finite.
    """
    a, _ = align(accuracies, accuracies)
    drawn = score_ranking(np.zeros_like(a), a)
    # If the correlation of a perfect order is undefined, all are.
    perfect = score_ranking(a, a)
    correlations = {name: 0.0 * perfect[name] for name in drawn if "@" not in name}
    return drawn | correlations


def kendall_null_deviation(n: int) -> float:
    """Return the standard deviation of Kendall's tau over random orders without ties.

    It is sqrt(2 (2n + 5) / (9 n (n - 1))) for n checkpoints (Kendall, "A New Measure of
    Rank Correlation", 1938); the mean is 0. For the 16, 12 and 13 checkpoints of
    NeuCRaB's groups it is 0.185, 0.221 and 0.210.

    Args:
      n: Number of checkpoints, >= 0.

    Returns:
      The standard deviation in (0, 1]; NaN for n < 2.
    """
    if n < 2:
        return math.nan
    return math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))


def is_significant(tau: float, n: int) -> bool:
    """Return whether Kendall's tau differs significantly from 0, at about 5 %.

    The rule is |tau| > 2 `kendall_null_deviation(n)`. It assumes a normal distribution.
    With fewer than five checkpoints nothing is significant, because the p-value of a
    perfect order is at least 1/24.

    Args:
      tau: Kendall's tau in [-1, 1]; NaN is not significant.
      n: Number of checkpoints.
    """
    return n >= 5 and abs(tau) > 2 * kendall_null_deviation(n)


def p_values(
    scores: Values,
    accuracies: Values,
    *,
    metrics: Collection[str] = batch.METRICS,
    num_samples: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Return the p-value of each metric, from one-sided permutation tests.

    p = (b + 1) / (B + 1), where b of B random permutations of the scores give at least
    the observed value (Phipson & Smyth, "Permutation P-values Should Never Be Zero",
    2010).

    Args:
      scores: [n], as for `score_ranking`.
      accuracies: [n], as for `score_ranking`.
      metrics: Names of the metrics, some of `batch.METRICS`.
      num_samples: Number of permutations, B.
      seed: Seed of the permutations.

    Returns:
      For each metric a value in (0, 1], or NaN if the metric is undefined.
    """
    s, a = align(scores, accuracies)
    observed = batch.evaluate(s[None], a[None], metrics)
    random = np.random.default_rng(seed)
    shuffled = random.permuted(np.tile(s, (num_samples, 1)), axis=1)
    drawn = batch.evaluate(shuffled, np.broadcast_to(a, shuffled.shape), metrics)
    result = {}
    for name, values in drawn.items():
        value = observed[name][0]
        # The tolerance treats values that differ by rounding as equal.
        reached = np.sum(values >= value - 1e-9)
        p = (reached + 1) / (num_samples + 1)
        result[name] = math.nan if math.isnan(value) else float(p)
    return result


def p_value_over_tasks(
    scores: Tables,
    accuracies: Tables,
    families: Mapping[str, Hashable] | None = None,
    *,
    num_samples: int = 2000,
    seed: int = 0,
) -> float:
    """Return the p-value of the mean of Kendall's tau over tasks.

    It is a one-sided permutation test as in `p_values`. Scores are permuted within each
    task. With `families` they are permuted within families only, which keeps what a
    measure knows about families: the test asks for skill beyond telling them apart.

    Args:
      scores: By task, the score of each checkpoint.
      accuracies: By task, the accuracy of each checkpoint, with the same names.
      families: The family of each checkpoint.
      num_samples: Number of permutations, B.
      seed: Seed of the permutations.

    Returns:
      A value in (0, 1]; NaN if tau is undefined on all tasks. It is 1 if no family has
      two checkpoints.

    Raises:
      InputError: As for `score_ranking`; or a checkpoint has no family.
    """
    random = np.random.default_rng(seed)
    total = np.zeros(num_samples + 1)
    is_known = False
    for task, by_name in scores.items():
        s, a = align(by_name, accuracies[task])
        codes = np.zeros(len(s), int)
        if families is not None:
            codes, _ = family_codes(by_name, families)
        drawn = np.tile(s, (num_samples + 1, 1))
        for code in np.unique(codes):
            inside = np.flatnonzero(codes == code)
            # The first row stays the observed one.
            drawn[1:, inside] = random.permuted(drawn[1:, inside], axis=1)
        taus = batch.kendall(drawn, np.broadcast_to(a, drawn.shape))
        if not math.isnan(taus[0]):
            total += taus
            is_known = True
    if not is_known:
        return math.nan
    # The tolerance treats values that differ by rounding as equal.
    return float(np.mean(total >= total[0] - 1e-9))
