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
from rankckpt_jax.evaluation import batch

Values = Mapping[str, float] | Sequence[float] | np.ndarray | Any
"""Numbers by name, or a one-dimensional list, NumPy or JAX array of them."""


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

    s, a = align(scores, accuracies)
    tops = batch.tops(s[None], a[None])
    result = {name: float(values[0]) for name, values in tops.items()}
    correlations: dict[str, Callable[..., Any]] = {
        "pearson": scipy.stats.pearsonr,
        "kendall": scipy.stats.kendalltau,
        "spearman": scipy.stats.spearmanr,
        "weighted_kendall": scipy.stats.weightedtau,
    }
    for name, correlation in correlations.items():
        result[name] = _correlate(correlation, s, a)
    return result


def mean_over_tasks(
    evaluations: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:
    """Averages what `score_ranking` says of several tasks, as the paper does.

    Recall@k of single tasks is 0 or 1; the paper's figures are means over its four.

    Args:
      evaluations: By task, what `score_ranking` returned.

    Returns:
      A dict with the same keys: the mean over the tasks where a value is defined, NaN
      where it is in none.
    """
    keys = next(iter(evaluations.values()), {}).keys()
    result = {}
    for key in keys:
        known = [e[key] for e in evaluations.values() if not math.isnan(e[key])]
        result[key] = sum(known) / len(known) if known else math.nan
    return result


def num_tied(values: Values) -> int:
    """How many of the values are shared by another: ties that hide an order.

    Example:
      >>> num_tied([0.5, 0.7, 0.7, 0.1])
      2

    Args:
      values: [n] finite scores or accuracies.
    """
    vector, _ = align(values, values)
    _, counts = np.unique(vector, return_counts=True)
    return int(counts[counts > 1].sum())


def align(scores: Values, accuracies: Values) -> tuple[np.ndarray, np.ndarray]:
    """Brings both inputs to float64 arrays [n] in one order; refuses what is unfit."""
    if isinstance(scores, Mapping) and isinstance(accuracies, Mapping):
        if scores.keys() != accuracies.keys():
            raise InputError(
                "scores and accuracies name different checkpoints",
                expected="the same names in both",
                found=f"only in one: {sorted(scores.keys() ^ accuracies.keys())}",
                fix="compare only the checkpoints that have both",
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
            fix="leave out the checkpoints without a usable value",
        )
    return vector


def _correlate(correlation: Callable[..., Any], s: np.ndarray, a: np.ndarray) -> float:
    """Applies one of SciPy's correlations; NaN where it is undefined."""
    if len(s) < 2 or np.ptp(s) == 0 or np.ptp(a) == 0:
        return math.nan
    with warnings.catch_warnings():
        # SciPy warns of nearly constant input; the value it gives is still the best.
        warnings.simplefilter("ignore")
        return float(correlation(s, a).statistic)
