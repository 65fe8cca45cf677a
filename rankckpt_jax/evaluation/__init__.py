"""The quality of a ranking: metrics, null distribution and confidence intervals.

`score_ranking` compares the scores of a measure with accuracies after fine-tuning, as
the paper does. `random_ranking`, `p_values` and `is_significant` compare a measure with
random orders, `intervals` and `probability_best` quantify uncertainty, and `compare`
tests whether two measures differ.
"""

from rankckpt_jax.evaluation.batch import METRICS
from rankckpt_jax.evaluation.comparison import Comparison, compare
from rankckpt_jax.evaluation.null_distribution import (
    is_significant,
    kendall_null_deviation,
    p_values,
    random_ranking,
)
from rankckpt_jax.evaluation.scores import (
    Values,
    mean_over_tasks,
    num_tied,
    score_ranking,
)
from rankckpt_jax.evaluation.uncertainty import Interval, intervals, probability_best

__all__ = [
    "METRICS",
    "Comparison",
    "Interval",
    "Values",
    "compare",
    "intervals",
    "is_significant",
    "kendall_null_deviation",
    "mean_over_tasks",
    "num_tied",
    "p_values",
    "probability_best",
    "random_ranking",
    "score_ranking",
]
