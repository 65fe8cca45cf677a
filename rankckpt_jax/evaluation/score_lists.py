"""Scores and accuracies by task and checkpoint, the form in which a table is judged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rankckpt_jax.evaluation import batch
from rankckpt_jax.evaluation.intervals import Interval, jackknife
from rankckpt_jax.evaluation.static_list import mean_rank_elsewhere
from rankckpt_jax.evaluation.table import STATICS, Table

ELSEWHERE = "mean rank elsewhere"
"""The baseline that orders by the accuracies on all other tasks of the table."""

ByName = Mapping[str, float]
"""A value by checkpoint."""

Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A correlation of `batch`."""


@dataclasses.dataclass(frozen=True)
class ScoreList:
    """The finite scores of a measure or baseline.

    Attributes:
      name: Name of the measure, or the baseline in words.
      by_task: The scores by task and checkpoint. Each task has at least two.
      is_baseline: Whether it is a baseline.
      seconds: Mean seconds for a checkpoint; NaN if unknown.
    """

    name: str
    by_task: Mapping[str, ByName]
    is_baseline: bool = False
    seconds: float = math.nan


class Pool:
    """The accuracies and the lists of scores of a table.

    Attributes:
      table: The table.
      tasks: Its tasks by name.
      accuracies: By task, the mean accuracy of each checkpoint.
      runs: By task, the accuracies of each fine-tuning run of all checkpoints.
      families: The family of each checkpoint, one of its own if it has none; empty if
        the table has no families.
    """

    def __init__(self, table: Table):
        """Collect the accuracies, runs and families of a table by name."""
        self.table = table
        self.tasks = {task.name: task for task in table.tasks}
        self.accuracies = {t.name: t.by_name(t.accuracies) for t in table.tasks}
        self.runs = {
            task.name: [task.by_name(run) for run in task.complete_runs.T]
            for task in table.tasks
        }
        self.families = {
            c.name: c.family or f"\0{c.name}" for c in table.checkpoints.values()
        }
        if not table.families:
            self.families = {}

    def score_list(self, measure: str) -> ScoreList:
        """Return the scores of a measure."""
        seconds = np.concatenate([t.seconds[measure] for t in self.table.tasks])
        by_task = {t.name: t.by_name(t.scores[measure]) for t in self.table.tasks}
        return ScoreList(measure, _comparable(by_task), seconds=mean(seconds))

    def baselines(self) -> list[ScoreList]:
        """Return the baselines that at least one task has values for."""
        result = []
        for key, words in STATICS.items():
            by_task = {
                task: {
                    name: value
                    for name in known
                    if (value := self.table.checkpoints[name].statics.get(key))
                    is not None
                }
                for task, known in self.accuracies.items()
            }
            result.append(ScoreList(words, _comparable(by_task), is_baseline=True))
        elsewhere = mean_rank_elsewhere(self.accuracies)
        result.append(ScoreList(ELSEWHERE, _comparable(elsewhere), is_baseline=True))
        return [scores for scores in result if scores.by_task]

    def taus(self, by_task: Mapping[str, ByName]) -> dict[str, float]:
        """Return Kendall's tau of scores on each task."""
        return {
            task: kendall(by_name, self.accuracies[task])
            for task, by_name in by_task.items()
        }

    def select(self, task: str, scores: ByName) -> dict[str, float]:
        """Return the accuracies of the checkpoints that have a score."""
        return {name: self.accuracies[task][name] for name in scores}

    def interval(
        self,
        metric: Metric,
        signed: Sequence[tuple[float, Mapping[str, ByName]]],
        bounds: tuple[float, float] = (-1.0, 1.0),
    ) -> Interval:
        """Return the jackknife interval of a mean over tasks, for other checkpoints.

        A checkpoint, or a family, is left out of all tasks at once.

        Args:
          metric: A correlation of `batch`.
          signed: Sign and scores by task of each list. The statistic is the mean over
            tasks of the signed sum of their correlations with the accuracies. All lists
            have the same tasks and checkpoints.
          bounds: Range of the statistic.
        """
        _, first = signed[0]
        names = list(dict.fromkeys(name for known in first.values() for name in known))
        labels = [self.families.get(name, name) for name in names]
        place = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        codes = np.array([place[label] for label in labels], int)
        of_name = dict(zip(names, codes, strict=True))
        values = np.zeros((len(first), 1 + len(place)))
        for row, (task, known) in zip(values, first.items(), strict=True):
            units = np.array([of_name[name] for name in known])
            a = np.array([self.accuracies[task][name] for name in known])
            for sign, by_task in signed:
                s = np.array([by_task[task][name] for name in known])
                row += sign * _leave_out(metric, s, a, units, len(place))
        means = [mean(column) for column in values.T]

        def statistic(kept: np.ndarray) -> float:
            left = np.zeros(len(place), bool)
            left[codes[kept]] = True
            return means[0 if left.all() else 1 + int(np.argmin(left))]

        return jackknife(statistic, codes, bounds=bounds)


def _leave_out(
    metric: Metric, s: np.ndarray, a: np.ndarray, units: np.ndarray, count: int
) -> np.ndarray:
    """Return a correlation of all, then without each unit, float64 [1 + count]."""
    kept = np.vstack([units >= 0, units != np.arange(count)[:, None]])
    result = np.empty(1 + count)
    sizes = kept.sum(axis=1)
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        columns = np.nonzero(kept[rows])[1].reshape(len(rows), size)
        result[rows] = metric(s[columns], a[columns])
    return result


def _comparable(by_task: Mapping[str, ByName]) -> dict[str, ByName]:
    """Return the tasks in which at least two checkpoints have a value."""
    return {task: known for task, known in by_task.items() if len(known) > 1}


def common(first: ByName, *others: ByName) -> list[str]:
    """Return the names that all have."""
    return [name for name in first if all(name in other for other in others)]


def kendall(scores: ByName, accuracies: ByName) -> float:
    """Return Kendall's tau-b of scores with the accuracies of the same names."""
    return correlate(batch.kendall, scores, accuracies)


def correlate(
    metric: Metric,
    scores: ByName,
    accuracies: ByName,
) -> float:
    """Return a correlation of `batch` of scores with accuracies."""
    s = np.array(list(scores.values()), float)
    a = np.array([accuracies[name] for name in scores], float)
    return float(metric(s[None], a[None])[0])


def mean(values: Mapping[str, float] | Sequence[float] | np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    numbers = values.values() if isinstance(values, Mapping) else values
    known = [float(value) for value in numbers if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
