"""Prediction: the accuracies that checkpoints will have after fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from rankckpt_jax.evaluation.intervals import Interval

LEVEL = 0.8
"""Confidence level of the intervals."""

_FIRST = 3
"""Number of checkpoints to fine-tune, in sentences."""


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
      gain: By how much fine-tuning this checkpoint too is expected to raise the best
        measured accuracy, in the unit of `Prediction.regret`; 0 if it is measured
        already, None if none is.
      contributions: By input, its part of `standardized`, relative to the mean of the
        pool; they add up to it. `history` stands for earlier results of the checkpoint
        and its relatives, `fine-tuned here` for accuracies of this task, also of
        fine-tunings that were only begun.
      measured: The accuracy that was measured on this task; None if there is none.
    """

    checkpoint: str
    standardized: float
    standardized_interval: Interval
    accuracy: float
    interval: Interval
    probability_best: float
    probability_first_three: float
    gain: float | None
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
      notes: Warnings about the prediction.
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

    def conclusion(self) -> str:
        """Return the prediction of the best, and the loss of fine-tuning few, in words.

        Example:
          >>> from rankckpt_jax.prediction import Candidate, fit, predict
          >>> scores = {"a": 1, "b": 2, "c": 4}
          >>> pool = [Candidate(n, scores={"logme": s}) for n, s in scores.items()]
          >>> predict(fit(), pool).conclusion().partition(".")[0]
          'c is predicted to be the best, with a probability of 60%'
        """
        best = self.best
        name, chance = best.checkpoint, _percent(best.probability_best)
        if best.measured is not None:
            first = (
                f"{name} reached {100 * best.measured:.1f}% and is the best of these "
                f"with a probability of {chance}."
            )
        elif self.is_level_known:
            low, high = (100 * x for x in best.interval)
            first = (
                f"{name} is predicted to reach about {100 * best.accuracy:.0f}% "
                f"({low:.0f} to {high:.0f}, 80 % interval), and to be the best of "
                f"these with a probability of {chance}."
            )
        else:
            first = (
                f"{name} is predicted to be the best, with a probability of {chance}."
            )
        losses = self.regret[: min(_FIRST, len(self.regret) - 1)]
        if self.is_level_known:
            texts, unit = [_points(loss) for loss in losses], "points"
        else:
            texts = [f"{loss:.2f}" for loss in losses]
            unit = "standard deviations of the pool"
        which = _join(("one", "two", "three")[: len(losses)])
        second = (
            f"Fine-tuning only the first {which} by this prediction loses "
            f"{_join(texts)} {unit} on average."
        )
        if self.is_level_known:
            return f"{first} {second}"
        return f"{first} {second} Predictions are ranks only here."


def _percent(probability: float) -> str:
    """Return an estimated probability, never as 0% or 100%."""
    if probability < 0.01:
        return "<1%"
    return ">99%" if probability > 0.99 else f"{100 * probability:.0f}%"


def _points(loss: float) -> str:
    points = 100 * loss
    return f"{points:.1f}" if points >= 0.05 else "<0.1"


def _join(words: Sequence[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} or {words[-1]}"
