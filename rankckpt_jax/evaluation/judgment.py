"""Judgment: how well each measure of a table agrees with fine-tuning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rankckpt_jax.evaluation.comparison import TaskComparison
from rankckpt_jax.evaluation.dropping import DroppingPoint
from rankckpt_jax.evaluation.intervals import UNDEFINED, Interval
from rankckpt_jax.evaluation.noise_ceiling import NoiseCeiling
from rankckpt_jax.evaluation.table import Table

if TYPE_CHECKING:
    from etils import epath

FIGURES = (
    *("kendall", "weighted_kendall", "spearman", "pearson", "gap_fidelity"),
    *("recall@1", "recall@3", "rel@1", "rel@3", "regret@1", "regret@3"),
    *("regret@1_other_run", "regret@3_other_run"),
)
"""The figures of agreement, in order.

Regret is a fraction of 1, and lower is better. `regret@k_other_run` names the
checkpoints by one fine-tuning run and measures them by another, which is free of the
winner's curse; it is NaN with a single run.
"""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A mean over tasks.

    Attributes:
      value: The mean over the tasks in which it is defined; NaN if there are none.
      pool: 95 % interval for other checkpoints: a jackknife over families where there
        are at least six, over checkpoints where no families are known. NaN for figures
        that depend on single checkpoints (Recall, Rel, regret).
      tasks: 95 % interval for other tasks: a bootstrap over at least six tasks, or
        Wilson's interval for Recall.
      random: Mean of the expected values of a random order.
    """

    value: float
    pool: Interval
    tasks: Interval
    random: float


@dataclasses.dataclass(frozen=True)
class TaskAgreement:
    """The agreement of one measure with fine-tuning on one task.

    Attributes:
      n: Number of checkpoints with a score.
      num_families: Number of their families; 0 if unknown.
      values: Value of each of `FIGURES`.
      random: Expected value of each for a random order of the same checkpoints.
      interval: 95 % interval of Kendall's tau; see `Figure.pool`.
      resolvable: Kendall's tau over pairs that the test images can resolve, and the
        number of these pairs; None if the number of images is unknown.
      partial: Kendall's partial tau given the best baseline; NaN without one.
      dropping: Kendall's tau after dropping the easiest checkpoints; empty if there is
        no criterion.
    """

    n: int
    num_families: int
    values: Mapping[str, float]
    random: Mapping[str, float]
    interval: Interval
    resolvable: tuple[float, int] | None
    partial: float
    dropping: tuple[DroppingPoint, ...]


@dataclasses.dataclass(frozen=True)
class Versus:
    """A measure compared with another, over tasks that both have scores for.

    On each task, both are compared on the checkpoints that both have scores for.

    Attributes:
      other: The other measure or baseline.
      over_tasks: The mean difference of Kendall's tau and its p-value by sign flips.
      pool: 95 % interval of the difference for other checkpoints, by a paired
        jackknife; see `Figure.pool`.
      tasks: 95 % interval of the difference for other tasks.
      adjusted: The p-value adjusted for all measures that are compared with `other`, by
        Holm's method; NaN if the tasks are too few to decide.
    """

    other: str
    over_tasks: TaskComparison
    pool: Interval = UNDEFINED
    tasks: Interval = UNDEFINED
    adjusted: float = math.nan


@dataclasses.dataclass(frozen=True)
class Within:
    """Agreement within groups of checkpoints; means over tasks.

    Attributes:
      pooled: Kendall's tau over the pairs within a group; see `within_groups`.
      by_group: Kendall's tau within each group of at least four checkpoints.
    """

    pooled: float
    by_group: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class MeasureJudgment:
    """The agreement of one measure, or baseline, over all tasks.

    Attributes:
      name: Name of the measure, or the baseline in words.
      is_baseline: Whether it reads no image of the task.
      by_task: Its agreement on each task that it has scores for.
      figures: Each of `FIGURES` as a mean over these tasks.
      num_won: Number of tasks on which no other measure has a higher Kendall's tau;
        baselines are not counted among the others.
      p_value: Share of random orders of the checkpoints within each task whose mean of
        Kendall's tau is at least as high.
      p_value_in_families: The same for orders within families: skill beyond telling
        families apart. NaN without families.
      partial: Mean over tasks of the partial tau given the best baseline.
      versus: Comparisons with the best baseline and the default measure.
      within: Agreement within groups, by their kind: `size` (tertiles of parameters),
        `family`, `group`.
      without_family: By family, the mean of Kendall's tau without its checkpoints.
      seconds: Mean seconds for a checkpoint; NaN if unknown.
    """

    name: str
    is_baseline: bool
    by_task: Mapping[str, TaskAgreement]
    figures: Mapping[str, Figure]
    num_won: int
    p_value: float
    p_value_in_families: float
    partial: float
    versus: tuple[Versus, ...]
    within: Mapping[str, Within]
    without_family: Mapping[str, float]
    seconds: float

    @property
    def kendall(self) -> float:
        """Mean of Kendall's tau over tasks."""
        return self.figures["kendall"].value


@dataclasses.dataclass(frozen=True, eq=False)
class Judgment:
    """How well each measure of a table agrees with fine-tuning; made by `judge`.

    Attributes:
      table: The table.
      measures: The measures by falling mean of Kendall's tau.
      baselines: The baselines, likewise.
      default: The measure that others are compared with: NLEEP if the table has it,
        else the first one.
      best_baseline: The baseline with the highest mean of Kendall's tau; empty if there
        is none.
      criterion: The baseline by which the dropping curves drop checkpoints.
      ceilings: The noise ceiling by task, of tasks with at least two runs.
      dispersion: How much the order of the checkpoints differs between tasks; see
        `rank_dispersion`.
      deviation: By task, the standard deviation of Kendall's tau of random orders.
    """

    table: Table
    measures: tuple[MeasureJudgment, ...]
    baselines: tuple[MeasureJudgment, ...]
    default: str
    best_baseline: str
    criterion: str
    ceilings: Mapping[str, NoiseCeiling]
    dispersion: float
    deviation: Mapping[str, float]

    @property
    def all_rows(self) -> tuple[MeasureJudgment, ...]:
        """Measures and baselines together, by falling mean of Kendall's tau."""
        return tuple(sorted((*self.measures, *self.baselines), key=order))

    def ceiling(self, field: str) -> float:
        """Return the mean over tasks of a field of `NoiseCeiling`; NaN if unknown."""
        values = [getattr(ceiling, field) for ceiling in self.ceilings.values()]
        known = [value for value in values if not math.isnan(value)]
        return math.fsum(known) / len(known) if known else math.nan

    def measure(self, name: str) -> MeasureJudgment:
        """Return the judgment of a measure or baseline."""
        return next(m for m in self.all_rows if m.name == name)

    def to_html(self, path: epath.PathLike | None = None) -> str | None:
        """Write the judgment as one self-contained page, or return it."""
        # Imported here: a convenience method; the report imports this module.
        from rankckpt_jax.report.judgment import page

        return _deliver(page.to_html(self), path)

    def to_csv(self, path: epath.PathLike | None = None) -> str | None:
        """Write every figure as comma-separated values, or return them."""
        # Imported here: a convenience method; the report imports this module.
        from rankckpt_jax.report.judgment import data

        return _deliver(data.to_csv(self), path)

    def to_json(self, path: epath.PathLike | None = None) -> str | None:
        """Write the whole judgment as JSON, or return it without a path."""
        # Imported here: a convenience method; the report imports this module.
        from rankckpt_jax.report.judgment import data

        return _deliver(data.to_json(self), path)

    def __str__(self) -> str:
        """Return the judgment as tables for a terminal."""
        # Imported here: a convenience method; the report imports this module.
        from rankckpt_jax.report.judgment import text

        return text.to_text(self)

    __repr__ = __str__


def order(measure: MeasureJudgment) -> tuple[bool, float, str]:
    """Return the key that sorts by falling Kendall's tau, then by name."""
    tau = measure.kendall
    return math.isnan(tau), -tau if not math.isnan(tau) else 0.0, measure.name


def _deliver(text: str, path: Any) -> str | None:
    # Imported here for start-up time.
    from rankckpt_jax.storage import files

    if path is None:
        return text
    files.write_text_atomically(files.to_path(path), text)
    return None
