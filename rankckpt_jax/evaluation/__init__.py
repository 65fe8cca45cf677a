"""How good is a ranking: its scores, what chance does, and how sure one can be.

`score_ranking` compares a measure's scores with fine-tuned accuracies as the paper
does; `chance` has what a random order gets, `uncertainty` intervals, and `comparison`
the difference between two measures.
"""

from rankckpt_jax.evaluation.batch import DEPTHS, METRICS
from rankckpt_jax.evaluation.comparison import Comparison, compare
from rankckpt_jax.evaluation.null_distribution import (
    is_significant,
    kendall_null_deviation,
    null_distribution,
    p_values,
    random_ranking,
)
from rankckpt_jax.evaluation.scores import (
    Values,
    mean_over_tasks,
    num_tied,
    score_ranking,
)
from rankckpt_jax.evaluation.uncertainty import (
    Interval,
    first_probabilities,
    intervals,
    probability_best,
)

__all__ = [
    "DEPTHS",
    "METRICS",
    "Comparison",
    "Interval",
    "Values",
    "is_significant",
    "compare",
    "first_probabilities",
    "intervals",
    "kendall_null_deviation",
    "mean_over_tasks",
    "null_distribution",
    "num_tied",
    "p_values",
    "probability_best",
    "random_ranking",
    "score_ranking",
]
