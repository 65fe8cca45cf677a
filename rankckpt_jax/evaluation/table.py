"""A table of scores and accuracies, of measures from any code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

STATICS: Mapping[str, str] = {
    "parameters": "parameters",
    "feature_dim": "feature dimension",
    "source_accuracy": "source accuracy",
}
"""Properties of a checkpoint that need no images of the task, in words."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint apart from any task.

    Attributes:
      name: Its name.
      family: Checkpoints of one family are relatives, such as the ResNets of one
        author; may be empty.
      group: A group within which checkpoints are also compared; may be empty.
      statics: Values of some of `STATICS`.
    """

    name: str
    family: str = ""
    group: str = ""
    statics: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class TaskTable:
    """The accuracies and scores of n checkpoints on one task.

    Attributes:
      name: The task.
      checkpoints: Names of the checkpoints, n.
      runs: float64 [n, R], the accuracy of each checkpoint after each of R independent
        fine-tuning runs, in [0, 1]; NaN where a checkpoint lacks a run. Every
        checkpoint has at least one.
      scores: By measure, float64 [n]; NaN where the measure has no score.
      spreads: By measure, float64 [n], standard deviations of the scores; NaN where
        unknown.
      seconds: By measure, float64 [n], seconds that the score took; NaN where unknown.
      num_test: Number of test images; None if unknown.
    """

    name: str
    checkpoints: tuple[str, ...]
    runs: np.ndarray
    scores: Mapping[str, np.ndarray]
    spreads: Mapping[str, np.ndarray]
    seconds: Mapping[str, np.ndarray]
    num_test: int | None = None

    @property
    def accuracies(self) -> np.ndarray:
        """The mean accuracy of each checkpoint over its runs, float64 [n]."""
        return np.nanmean(self.runs, axis=1)

    def by_name(self, values: np.ndarray) -> dict[str, float]:
        """Return the values [n] that are not NaN by checkpoint."""
        pairs = zip(self.checkpoints, values, strict=True)
        return {name: float(value) for name, value in pairs if not np.isnan(value)}

    @property
    def complete_runs(self) -> np.ndarray:
        """The runs of all checkpoints, float64 [n, R'], for the noise ceiling."""
        return self.runs[:, ~np.isnan(self.runs).any(axis=0)]


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Scores of several measures and accuracies after fine-tuning, by task.

    Attributes:
      name: The table's name, such as that of its file without the extension.
      tasks: The tasks in the order of the file.
      measures: Names of the measures in the order of the file.
      checkpoints: All checkpoints by name.
      seeds: Names of the fine-tuning runs; one empty name if there is no `seed`.
      notes: Sentences on cells that were ignored, such as scores that are missing.
    """

    name: str
    tasks: tuple[TaskTable, ...]
    measures: tuple[str, ...]
    checkpoints: Mapping[str, Checkpoint]
    seeds: tuple[str, ...] = ("",)
    notes: tuple[str, ...] = ()

    @property
    def families(self) -> tuple[str, ...]:
        """Names of the families in alphabetical order."""
        return tuple(sorted({c.family for c in self.checkpoints.values()} - {""}))

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups in alphabetical order."""
        return tuple(sorted({c.group for c in self.checkpoints.values()} - {""}))

    def statics(self, task: TaskTable, key: str) -> np.ndarray:
        """Return one of `STATICS` of a task's checkpoints, float64 [n], or NaN."""
        known = (self.checkpoints[name].statics for name in task.checkpoints)
        return np.array([statics.get(key, np.nan) for statics in known])
