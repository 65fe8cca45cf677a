"""What chance alone does: the scores of a ranking that knows nothing."""

from __future__ import annotations

import math

import numpy as np

from rankckpt_jax.evaluation import batch
from rankckpt_jax.evaluation.scores import Values, align, score_ranking


def random_ranking(accuracies: Values) -> dict[str, float]:
    """What a measure that knows nothing gets on average, to hold a measure against.

    Recall@k and Rel@k are those of drawing k checkpoints at random, which is how
    `score_ranking` treats a tie between all of them. Every correlation is 0 on average.

    Args:
      accuracies: [n] finite accuracies, or a mapping from checkpoint name to accuracy.

    Returns:
      A dict with the keys of `score_ranking`. The correlations are NaN where those of
      every measure are: for constant accuracies or n < 2.

    Raises:
      InputError: If an accuracy is missing or not finite.
    """
    a, _ = align(accuracies, accuracies)
    drawn = score_ranking(np.zeros_like(a), a)
    # A perfect measure tells where a correlation is defined at all.
    perfect = score_ranking(a, a)
    correlations = {name: 0.0 * perfect[name] for name in drawn if "@" not in name}
    return drawn | correlations


def kendall_null_deviation(n: int) -> float:
    """The standard deviation of Kendall's tau over random orders without ties.

    sqrt(2 (2n + 5) / (9 n (n - 1))) for n checkpoints (Kendall, "A New Measure of Rank
    Correlation", 1938); its mean is 0. For the 16, 12 and 13 checkpoints of NeuCRaB's
    groups it is 0.185, 0.221 and 0.210: taus that differ by less tell little.

    Args:
      n: The number of checkpoints compared, >= 0.

    Returns:
      The standard deviation, in (0, 1]; NaN for n < 2, where there is no tau.
    """
    if n < 2:
        return math.nan
    return math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))


def is_significant(tau: float, n: int) -> bool:
    """Whether Kendall's tau is further from 0 than random orders plausibly reach.

    The rule is |tau| > 2 `kendall_null_deviation(n)`, about 5 % of random orders. It
    leans on a normal distribution, so below five checkpoints, where even a perfect
    order comes about by chance in one of 24 cases or more, nothing counts as beyond.

    Args:
      tau: Kendall's tau in [-1, 1]; NaN is never beyond chance.
      n: The number of checkpoints compared.

    Returns:
      True where chance alone is an unlikely explanation.
    """
    return n >= 5 and abs(tau) > 2 * kendall_null_deviation(n)


def null_distribution(
    accuracies: Values, num_samples: int = 2000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Scores of random rankings: what a measure that knows nothing may get by luck.

    Args:
      accuracies: [n] finite accuracies, or a mapping from checkpoint name to accuracy.
      num_samples: Random orders drawn, B; all orders alike where n = 0.
      seed: Decides which.

    Returns:
      For each of `batch.METRICS` float64 [B], in rising order; NaN, where a value is
      undefined, at the end.
    """
    a, _ = align(accuracies, accuracies)
    random = np.random.default_rng(seed)
    orders = random.permuted(np.tile(np.arange(len(a)), (num_samples, 1)), axis=1)
    found = batch.evaluate(orders.astype(float), np.broadcast_to(a, orders.shape))
    return {name: np.sort(values) for name, values in found.items()}


def p_values(
    scores: Values, accuracies: Values, num_samples: int = 2000, seed: int = 0
) -> dict[str, float]:
    """How often a random ranking does as well: one-sided permutation tests.

    p = (b + 1) / (B + 1) with b of B random pairings of these scores with these
    accuracies that reach at least the value found (Phipson & Smyth, 2010), ties of
    the scores kept.

    Args:
      scores: [n], as for `score_ranking`.
      accuracies: [n], as for `score_ranking`.
      num_samples: B.
      seed: Decides which pairings.

    Returns:
      For each of `batch.METRICS` a value in (0, 1]; NaN where it is undefined.
    """
    s, a = align(scores, accuracies)
    measured = batch.evaluate(s[None], a[None])
    random = np.random.default_rng(seed)
    shuffled = random.permuted(np.tile(s, (num_samples, 1)), axis=1)
    drawn = batch.evaluate(shuffled, np.broadcast_to(a, shuffled.shape))
    result = {}
    for name, values in drawn.items():
        value = measured[name][0]
        # Rounding must not tell equal values apart.
        reached = np.sum(values >= value - 1e-9)
        p = (reached + 1) / (num_samples + 1)
        result[name] = math.nan if math.isnan(value) else float(p)
    return result
