"""Prediction: the accuracies that checkpoints will have after fine-tuning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from rankckpt_jax.evaluation.intervals import Interval

LEVEL = 0.8
"""Confidence level of the intervals."""


@dataclasses.dataclass(frozen=True)
class CheckpointPrediction:
    """The prediction of one checkpoint.

    Attributes:
      checkpoint: Its name.
      standardized: Predicted accuracy on the scale of the pool: 0 is its mean, 1 is one
        standard deviation above.
      standardized_interval: 80 % interval of it.
      accuracy: Predicted accuracy in [0, 1], the median; NaN if the level of the task
        is unknown.
      interval: 80 % interval of the accuracy; NaN likewise.
      probability_best: Probability that no other checkpoint of the pool has a higher
        accuracy.
      probability_first_three: Probability that at most two have.
      contributions: By input, its part of `standardized`, relative to the mean of the
        pool; they add up to it. `history` stands for earlier results of the checkpoint
        and its relatives, `fine-tuned here` for accuracies measured on this task.
      measured: The accuracy that was measured on this task; None if there is none.
    """

    checkpoint: str
    standardized: float
    standardized_interval: Interval
    accuracy: float
    interval: Interval
    probability_best: float
    probability_first_three: float
    contributions: Mapping[str, float]
    measured: float | None = None


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction of a pool; `predict` makes it.

    Attributes:
      checkpoints: The checkpoints in the order of their predicted accuracy.
      regret: The k-th value is the expected loss of fine-tuning only the first k
        checkpoints, compared with fine-tuning all: as a fraction of 1 where the level
        is known, else in standard deviations of the pool's accuracies.
      is_level_known: Whether accuracies are predicted, or only their order.
      num_tasks: Number of recorded tasks that the weights of inputs rest on.
      num_earlier: Number of earlier tasks that a checkpoint of the pool was fine-tuned
        on.
      notes: Sentences on what to beware of.
    """

    checkpoints: tuple[CheckpointPrediction, ...]
    regret: tuple[float, ...]
    is_level_known: bool
    num_tasks: int
    num_earlier: int
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> CheckpointPrediction:
        """The checkpoint with the highest predicted accuracy."""
        return self.checkpoints[0]

    def by_name(self, name: str) -> CheckpointPrediction:
        """Return the prediction of a checkpoint; KeyError if there is none."""
        return {c.checkpoint: c for c in self.checkpoints}[name]

    def conclusion(self, k: int = 3) -> str:
        """Return the prediction of the best, and the loss of fine-tuning k, in words.

        Args:
          k: Number of checkpoints to fine-tune, >= 1.
        """
        best, k = self.best, min(k, len(self.checkpoints))
        if self.is_level_known and best.measured is None:
            low, high = (100 * x for x in best.interval)
            text = (
                f"{best.checkpoint}: about {100 * best.accuracy:.0f} % "
                f"({low:.0f} to {high:.0f}, 80 % interval) after fine-tuning"
            )
        elif best.measured is not None:
            text = f"{best.checkpoint}: {100 * best.measured:.1f} % after fine-tuning"
        else:
            text = f"{best.checkpoint} is predicted to be the best"
        text += f"; best of these with probability {best.probability_best:.2f}."
        first = "the first checkpoint" if k == 1 else f"the first {k} checkpoints"
        loss = self.regret[k - 1]
        lost = (
            f"{100 * loss:.1f} points"
            if self.is_level_known
            else f"{loss:.2f} standard deviations of the pool"
        )
        if not math.isnan(loss):
            text += f" Fine-tuning only {first} loses {lost} on average."
        return text
