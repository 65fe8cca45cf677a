"""Metrics of a ranking: the scores of a measure compared with accuracies.

Notation: a task has n checkpoints. s_i is the score of checkpoint i by a measure, a_i
is its test accuracy after fine-tuning. T_k are the k checkpoints with the highest
scores. Higher is better for both.

Recall@k, Kendall, Spearman and the weighted Kendall depend only on the order. Rel@k
depends only on the order and on ratios of accuracies. Accuracies may therefore be
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
"""A mapping from names to numbers, or a list, NumPy or JAX array of numbers."""


def score_ranking(scores: Values, accuracies: Values) -> dict[str, float]:
    """Compare the scores of one measure with accuracies after fine-tuning.

    - `recall@k`: 1 if the checkpoint with the highest accuracy is in T_k, else 0 (Li et
      al., "Ranking Neural Checkpoints", 2021, averaged there over tasks). This is also
      the definition of Google's `stable_transfer`; SFDA's code exchanges s and a.
    - `rel@k`: max_{i in T_k} a_i / max_i a_i, the share of the best accuracy that
      fine-tuning only T_k reaches. PARC's appendix uses the mean over T_k instead.
    - `pearson`: sum_i (s_i - mean s)(a_i - mean a) / (n std(s) std(a)).
    - `kendall`: tau-b = (P - Q) / sqrt((P + Q + S)(P + Q + A)), where P pairs have the
      same order in s and a, Q have opposite orders, S are tied only in s, A only in a.
    - `spearman`: Pearson's r of the ranks; tied values get their mean rank.
    - `weighted_kendall`: Vigna's tau with additive hyperbolic weights 1 / (rank + 1),
      where rank 0 is the best, averaged over the ranks by s and by a (2015). Errors
      near the top weigh most. It is not in the paper, but in later work. It is not
      symmetric: negated scores and accuracies give another value. Random orders spread
      more than with `kendall`: of 11 checkpoints, 0.4 is chance.

    Ties: if several checkpoints share the highest accuracy, any of them is the best. If
    scores tie at place k, T_k is not unique. `recall@k` and `rel@k` are then the means
    over all ways to complete T_k from the tied checkpoints. So the order of the input
    does not matter, and constant scores give the metrics of k checkpoints drawn at
    random, `recall@k` = k / n.

    Undefined values are NaN: correlations if s or a is constant or n < 2, `rel@k` if no
    accuracy is positive, everything if n = 0. For k >= n, T_k contains all
    checkpoints, and `recall@k` and `rel@k` are 1.

    Example:
      >>> result = score_ranking([-0.4, -0.9, -0.5, -1.3], [0.8, 0.6, 0.9, 0.5])
      >>> result["recall@1"], result["recall@3"]
      (0.0, 1.0)
      >>> f"{result['rel@1']:.3f} {result['kendall']:.3f}"
      '0.889 0.667'

    Args:
      scores: [n] finite scores, or a mapping from checkpoint name to score.
      accuracies: [n] finite accuracies in the same order, or a mapping with the same
        names.

    Returns:
      A dict of Python floats with the keys `recall@1`, `recall@3`, `rel@1`, `rel@3`
      (in [0, 1] for accuracies >= 0) and `pearson`, `kendall`, `spearman`,
      `weighted_kendall` (in [-1, 1]).

    Raises:
      InputError: Names or lengths differ, or a value is missing or not finite.
    """
    # Imported here for start-up time: it takes a second.
    import scipy.stats

    s, a = align(scores, accuracies)
    tops = batch.top_metrics(s[None], a[None])
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
    """Return the mean of each metric over several tasks, as the paper does.

    Args:
      evaluations: The result of `score_ranking` by task.

    Returns:
      A dict with the same keys. Each value is the mean over the tasks in which it is
      defined, or NaN if there are none.
    """
    keys = next(iter(evaluations.values()), {}).keys()
    result = {}
    for key in keys:
        known = [e[key] for e in evaluations.values() if not math.isnan(e[key])]
        result[key] = sum(known) / len(known) if known else math.nan
    return result


def num_tied(values: Values) -> int:
    """Return the number of values that occur more than once.

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
    """Return both inputs as float64 arrays [n] in the same order."""
    if isinstance(scores, Mapping) and isinstance(accuracies, Mapping):
        if scores.keys() != accuracies.keys():
            raise InputError(
                "Scores and accuracies are of different checkpoints",
                expected="the same names in both",
                found=f"only in one: {sorted(scores.keys() ^ accuracies.keys())}",
                fix="omit the checkpoints that are only in one",
            )
        accuracies = [accuracies[name] for name in scores]
        scores = list(scores.values())
    elif isinstance(scores, Mapping) or isinstance(accuracies, Mapping):
        raise InputError(
            "Scores and accuracies cannot be matched",
            expected="two mappings from names, or two lists in the same order",
            found=f"{type(scores).__name__} and {type(accuracies).__name__}",
        )
    s = _vector(scores, "Scores")
    a = _vector(accuracies, "Accuracies")
    if len(s) != len(a):
        raise InputError(
            "Scores and accuracies differ in length",
            expected="one accuracy for every score",
            found=f"{len(s)} scores and {len(a)} accuracies",
        )
    return s, a


def _vector(values: Any, what: str) -> np.ndarray:
    """Return `values` as float64 [n]; `what` is their name in errors."""
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} are not all numbers", expected="finite numbers", found=str(error)
        ) from error
    if vector.ndim != 1:
        raise InputError(
            f"{what} have too many dimensions",
            expected="one dimension",
            found=f"shape {vector.shape}",
        )
    unfit = np.flatnonzero(~np.isfinite(vector))
    if unfit.size:
        raise InputError(
            f"{what} are not all finite",
            expected="finite numbers",
            found=f"{vector[unfit[0]]} at index {unfit[0]}",
            fix="omit the checkpoints without a finite value",
        )
    return vector


def _correlate(correlation: Callable[..., Any], s: np.ndarray, a: np.ndarray) -> float:
    """Return a correlation by SciPy, or NaN if it is undefined."""
    if len(s) < 2 or np.ptp(s) == 0 or np.ptp(a) == 0:
        return math.nan
    with warnings.catch_warnings():
        # SciPy warns of nearly constant input, but the value is still meaningful.
        warnings.simplefilter("ignore")
        return float(correlation(s, a).statistic)
