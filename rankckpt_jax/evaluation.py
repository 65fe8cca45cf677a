"""How good is a ranking: a measure's scores held against fine-tuned accuracies.

Notation, used throughout: a task has n checkpoints, s_i is the score that a measure
gives to checkpoint i and a_i its test accuracy after fine-tuning. T_k are the k
best-scored checkpoints. Higher is better for both.

Only the order matters to Recall@k, Kendall, Spearman and the weighted Kendall, and
only the order and the ratio of accuracies to Rel@k. Accuracies may therefore be
fractions or percentages.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rankckpt_jax.errors import InputError

Values = Mapping[str, float] | Sequence[float] | np.ndarray | Any
"""Numbers by name, or a one-dimensional list, NumPy or JAX array of them."""

DEPTHS = (1, 3)
"""The k of Recall@k and Rel@k."""


def score_ranking(scores: Values, accuracies: Values) -> dict[str, float]:
    """Compares the scores of one measure with the fine-tuned accuracies.

    - `recall@k`: 1 if the checkpoint of highest accuracy is among T_k, else 0 (Li et
      al., "Ranking Neural Checkpoints", 2021, averaged there over tasks; read as in
      Google's `stable_transfer`. SFDA's code has the roles of s and a exchanged).
    - `rel@k`: max_{i in T_k} a_i / max_i a_i, the share of the best accuracy that is
      kept by fine-tuning only the k best-scored (the maximum, not the mean over T_k
      that PARC's appendix uses).
    - `pearson`: sum_i (s_i - mean s)(a_i - mean a) / (n std(s) std(a)).
    - `kendall`: tau-b = (P - Q) / sqrt((P + Q + S)(P + Q + A)) for P pairs that s and
      a put in the same order, Q in opposite orders, S tied in s alone, A in a alone.
    - `spearman`: Pearson's r of the ranks, ties given their mean rank.
    - `weighted_kendall`: Vigna's tau with additive hyperbolic weights 1 / (rank + 1),
      rank 0 the best, averaged over ranking by s and by a (2015). Errors at the top
      cost most. It is not in the paper; later work reports it.

    Ties. If several checkpoints share the highest accuracy, any of them counts as the
    best. If a tie in the scores straddles place k, T_k is not unique; `recall@k` and
    `rel@k` are then the mean over all ways to fill the open places from the tied ones.
    So the order of the input never matters, and a measure that scores all checkpoints
    alike gets what drawing k of them at random gets, `recall@k` = k / n.

    Undefined is NaN: every correlation where s or a is constant or n < 2, `rel@k` where
    no accuracy is positive, everything where n = 0. For k >= n, T_k is every checkpoint
    and both `recall@k` and `rel@k` are 1.

    Example:
      >>> result = score_ranking([-0.4, -0.9, -0.5, -1.3], [0.8, 0.6, 0.9, 0.5])
      >>> result["recall@1"], result["recall@3"]
      (0.0, 1.0)
      >>> f"{result['rel@1']:.3f} {result['kendall']:.3f}"
      '0.889 0.667'

    Args:
      scores: [n] finite scores, or a mapping from checkpoint name to score.
      accuracies: [n] finite accuracies in the same order, or a mapping with the very
        same names.

    Returns:
      A dict of Python floats with the keys `recall@1`, `recall@3`, `rel@1`, `rel@3`
      (in [0, 1] for accuracies >= 0) and `pearson`, `kendall`, `spearman`,
      `weighted_kendall` (in [-1, 1]).

    Raises:
      InputError: If names or lengths differ, or a value is missing or not finite.
    """
    # Imported here: it takes a second, which a program that only shows help lacks.
    import scipy.stats

    s, a = _align(scores, accuracies)
    result = {f"recall@{k}": _recall(s, a, k) for k in DEPTHS}
    result |= {f"rel@{k}": _rel(s, a, k) for k in DEPTHS}
    correlations: dict[str, Callable[..., Any]] = {
        "pearson": scipy.stats.pearsonr,
        "kendall": scipy.stats.kendalltau,
        "spearman": scipy.stats.spearmanr,
        "weighted_kendall": scipy.stats.weightedtau,
    }
    for name, correlation in correlations.items():
        result[name] = _correlate(correlation, s, a)
    return result


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
    a, _ = _align(accuracies, accuracies)
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


def beyond_chance(tau: float, n: int) -> bool:
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


def _align(scores: Values, accuracies: Values) -> tuple[np.ndarray, np.ndarray]:
    """Brings both inputs to float64 arrays [n] in one order; refuses what is unfit."""
    if isinstance(scores, Mapping) and isinstance(accuracies, Mapping):
        if scores.keys() != accuracies.keys():
            raise InputError(
                "scores and accuracies name different checkpoints",
                expected="the same names in both",
                found=f"only in one: {sorted(scores.keys() ^ accuracies.keys())}",
                mend="compare only the checkpoints that have both",
            )
        accuracies = [accuracies[name] for name in scores]
        scores = list(scores.values())
    elif isinstance(scores, Mapping) or isinstance(accuracies, Mapping):
        raise InputError(
            "scores and accuracies cannot be matched",
            expected="two mappings from names, or two lists in the same order",
            found=f"{type(scores).__name__} and {type(accuracies).__name__}",
        )
    s = _vector(scores, "scores")
    a = _vector(accuracies, "accuracies")
    if len(s) != len(a):
        raise InputError(
            "scores and accuracies differ in length",
            expected="one accuracy for every score",
            found=f"{len(s)} scores and {len(a)} accuracies",
        )
    return s, a


def _vector(values: Any, what: str) -> np.ndarray:
    """Returns `values` as float64 [n]; `what` names them in an error."""
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} are not all numbers", expected="finite numbers", found=str(error)
        ) from error
    if vector.ndim != 1:
        raise InputError(
            f"{what} are not a plain list",
            expected="one dimension",
            found=f"shape {vector.shape}",
        )
    unfit = np.flatnonzero(~np.isfinite(vector))
    if unfit.size:
        raise InputError(
            f"{what} are not all finite",
            expected="finite numbers",
            found=f"{vector[unfit[0]]} at place {unfit[0]}",
            mend="leave out the checkpoints without a usable value",
        )
    return vector


def _cut(s: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Splits at place k: masks of the surely chosen and the tied, and open places."""
    threshold = np.sort(s)[::-1][k - 1]
    chosen = s > threshold
    return chosen, s == threshold, k - int(chosen.sum())


def _recall(s: np.ndarray, a: np.ndarray, k: int) -> float:
    """Recall@k: the chance that T_k holds a checkpoint of the highest accuracy."""
    if not len(s):
        return math.nan
    chosen, tied, places = _cut(s, min(k, len(s)))
    best = a == a.max()
    if (chosen & best).any():
        return 1.0
    # Of the comb(t, m) ways to fill the m open places, these hold no best checkpoint.
    t, others = int(tied.sum()), int((tied & ~best).sum())
    return 1.0 - math.comb(others, places) / math.comb(t, places)


def _rel(s: np.ndarray, a: np.ndarray, k: int) -> float:
    """Rel@k: the mean best accuracy within T_k, as a share of the best of all."""
    if not len(s) or a.max() <= 0:
        return math.nan
    chosen, tied, places = _cut(s, min(k, len(s)))
    base = a[chosen].max(initial=-np.inf)
    # The j-th best (from 0) of the t tied is the best of the m drawn in
    # comb(t - j - 1, m - 1) of comb(t, m) cases: the other m - 1 come from below it.
    t, ways = int(tied.sum()), math.comb(int(tied.sum()), places)
    mean_best = sum(
        math.comb(t - j - 1, places - 1) / ways * max(base, value)
        for j, value in enumerate(np.sort(a[tied])[::-1])
    )
    return float(mean_best / a.max())


def _correlate(correlation: Callable[..., Any], s: np.ndarray, a: np.ndarray) -> float:
    """Applies one of SciPy's correlations; NaN where it is undefined."""
    if len(s) < 2 or np.ptp(s) == 0 or np.ptp(a) == 0:
        return math.nan
    with warnings.catch_warnings():
        # SciPy warns of nearly constant input; the value it gives is still the best.
        warnings.simplefilter("ignore")
        return float(correlation(s, a).statistic)
