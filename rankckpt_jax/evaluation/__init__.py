"""The quality of a ranking: metrics, intervals, tests, controls and the noise ceiling.

`score_ranking` compares the scores of a measure with accuracies after fine-tuning, as
the paper does. `judge` applies all of them to a table of scores of many tasks, which
`read_table` reads. docs/judging.md explains each judgment with its formula and source.
"""

from rankckpt_jax.evaluation.batch import CORRELATIONS, METRICS
from rankckpt_jax.evaluation.comparison import (
    Comparison,
    TaskComparison,
    compare,
    compare_over_tasks,
    holm,
)
from rankckpt_jax.evaluation.consensus import kemeny, mean_rank
from rankckpt_jax.evaluation.dropping import DroppingPoint, dropping_curve
from rankckpt_jax.evaluation.fidelity import Calibration, calibrate_gaps, gap_fidelity
from rankckpt_jax.evaluation.intervals import (
    MIN_UNITS,
    Interval,
    fisher_interval,
    interval_over_tasks,
    intervals,
    jackknife,
    wilson_interval,
)
from rankckpt_jax.evaluation.judge_table import judge
from rankckpt_jax.evaluation.judgment import FIGURES, Judgment, MeasureJudgment
from rankckpt_jax.evaluation.noise_ceiling import (
    NoiseCeiling,
    kendall_ceiling,
    mean_of_runs,
    noise_ceiling,
    pearson_ceiling,
)
from rankckpt_jax.evaluation.null_distribution import (
    is_significant,
    kendall_null_deviation,
    p_value_over_tasks,
    p_values,
    random_ranking,
)
from rankckpt_jax.evaluation.pairs import (
    GroupKendall,
    ResolvableKendall,
    pooled_kendall,
    resolvable_kendall,
    size_groups,
    within_groups,
)
from rankckpt_jax.evaluation.probability_best import probability_best
from rankckpt_jax.evaluation.regret import Regret, regret
from rankckpt_jax.evaluation.score_lists import ELSEWHERE
from rankckpt_jax.evaluation.scores import (
    Values,
    mean_over_tasks,
    num_tied,
    score_ranking,
)
from rankckpt_jax.evaluation.static_list import (
    BeyondStatic,
    beyond_static,
    mean_rank_elsewhere,
    rank_dispersion,
)
from rankckpt_jax.evaluation.table import STATICS, Checkpoint, Table, TaskTable
from rankckpt_jax.evaluation.table_file import parse_table, read_table

__all__ = [
    "CORRELATIONS",
    "ELSEWHERE",
    "FIGURES",
    "METRICS",
    "MIN_UNITS",
    "STATICS",
    "BeyondStatic",
    "Calibration",
    "Checkpoint",
    "Comparison",
    "DroppingPoint",
    "GroupKendall",
    "Interval",
    "Judgment",
    "MeasureJudgment",
    "NoiseCeiling",
    "Regret",
    "ResolvableKendall",
    "Table",
    "TaskComparison",
    "TaskTable",
    "Values",
    "beyond_static",
    "calibrate_gaps",
    "compare",
    "compare_over_tasks",
    "dropping_curve",
    "fisher_interval",
    "gap_fidelity",
    "holm",
    "interval_over_tasks",
    "intervals",
    "is_significant",
    "jackknife",
    "judge",
    "kemeny",
    "kendall_ceiling",
    "kendall_null_deviation",
    "mean_of_runs",
    "mean_over_tasks",
    "mean_rank",
    "mean_rank_elsewhere",
    "noise_ceiling",
    "num_tied",
    "p_value_over_tasks",
    "p_values",
    "parse_table",
    "pearson_ceiling",
    "pooled_kendall",
    "probability_best",
    "random_ranking",
    "rank_dispersion",
    "read_table",
    "regret",
    "resolvable_kendall",
    "score_ranking",
    "size_groups",
    "wilson_interval",
    "within_groups",
]
