"""Ablation: how a ranking depends on one option of its measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Ablation:
    """The rankings that several values of one option give.

    Attributes:
      option: The option's name.
      title: The option in words, for the axis of a plot.
      values: The values of the option.
      scores: For each value, the score of each checkpoint.
      evaluations: For each value, the result of `evaluation.score_ranking` against the
        accuracies. Without accuracies it is against the scores of the default value.
      against_accuracy: Whether `evaluations` are against accuracies.
      default: The value that the ranking uses.
    """

    option: str
    title: str
    values: tuple[float, ...]
    scores: tuple[Mapping[str, float], ...]
    evaluations: tuple[Mapping[str, float], ...]
    against_accuracy: bool
    default: float
