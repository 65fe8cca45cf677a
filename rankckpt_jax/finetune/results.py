"""Results of fine-tuning, and the choice of the best trial."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

Curve = tuple[tuple[int, float], ...]
"""(step, value) pairs."""


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """Result of one trial.

    Its accuracies are values of one metric of `data.metrics`, by default that of the
    kind of target. They are None if the trial diverged. A trial that was dropped before
    its last step has no `accuracy`, and its other values are of its own last step.

    Attributes:
      learning_rate: Its learning rate.
      num_steps: Its number of steps.
      trained_on: Name of the training split.
      validated_on: Name of the split that accuracy was measured on during training.
      accuracy: Accuracy on the test images after the last step.
      validation_accuracy: Accuracy on `validated_on` after the last step.
      best_accuracy: Highest accuracy on `validated_on` during training.
      early_stop_accuracy: Accuracy on `validated_on` after `early_stop_step` steps.
      early_stop_step: See `Recipe.early_stop`.
      curve: (step, accuracy on `validated_on`) pairs, up to the last step.
      diverged_at: First step with a loss that was not finite; -1 if all were finite.
      final_loss: Training loss of the last batch; None if the trial diverged.
      seconds: Time for training and evaluation, over all processes that contributed;
        divided evenly among trials that shared their steps.
      compile_seconds: The part of it that was spent on compiling. 0 in results of older
        versions, which did not measure it.
      images: Number of training images, counted once per epoch.
      metrics: The CSV file of the trial; see `metrics`.
      values: All metrics on the test images after the last step, by name. Empty in
        results of older versions, like `curves`.
      curves: By metric, (step, value on `validated_on`) pairs.
    """

    learning_rate: float
    num_steps: int
    trained_on: str
    validated_on: str
    accuracy: float | None
    validation_accuracy: float | None
    best_accuracy: float | None
    early_stop_accuracy: float | None
    early_stop_step: int
    curve: Curve
    diverged_at: int
    final_loss: float | None
    seconds: float
    images: int
    metrics: str
    compile_seconds: float = 0.0
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Curve] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """Result of a sweep: the chosen trial's values, and all trials.

    Attributes:
      recipe: Name of the sweep.
      seed: Seed of the order of images and of augmentation.
      selection: Split that chose the trial, "val" or "test"; "none" for one trial.
      accuracy: The chosen trial's, like the next five; see `TrialResult`.
      seconds: Sum over all trials.
      compile_seconds: Sum over all trials.
      images: Sum over all trials.
      trials: All trials of the grid, followed by the trial of the chosen setting on
        train and val if there was one.
      metric: Name of the metric that accuracies are values of, and that chose the
        trial.
      values: The chosen trial's metrics on the test images, by name.
    """

    recipe: str
    seed: int
    selection: str
    accuracy: float | None
    best_accuracy: float | None
    early_stop_accuracy: float | None
    learning_rate: float
    num_steps: int
    diverged_at: int
    seconds: float
    images: int
    trials: tuple[TrialResult, ...]
    compile_seconds: float = 0.0
    metric: str = "accuracy"
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def curve(self) -> Curve:
        """The curve with the most points of a trial with the chosen setting."""
        chosen = (self.learning_rate, self.num_steps)
        curves = [
            trial.curve
            for trial in self.trials
            if (trial.learning_rate, trial.num_steps) == chosen
        ]
        return max(curves, key=len, default=())

    @property
    def warning(self) -> str:
        """A sentence about trials that diverged; empty if none did."""
        diverged = sum(trial.diverged_at >= 0 for trial in self.trials)
        if self.accuracy is None:
            step = self.diverged_at
            return (
                f"fine-tuning diverged at step {step}; lower "
                "config.finetune.learning_rate"
            )
        if diverged:
            count = len(self.trials)
            return (
                f"{diverged} of {count} fine-tuning trials diverged and were ignored; "
                "to avoid them, lower config.finetune.learning_rate"
            )
        return ""


@dataclasses.dataclass(frozen=True)
class Start:
    """The first part of a sweep, up to the choice of the learning rate.

    Attributes:
      learning_rate: The best rate so far.
      steps: Number of steps that it was trained for.
      num_steps: Number of steps of the complete trial.
      accuracy: The metric on validation images after `steps`; None if all trials
        diverged.
      num_images: Number of validation images.
      seconds: Time of all trials.
      compile_seconds: The part of it that was spent on compiling.
    """

    learning_rate: float
    steps: int
    num_steps: int
    accuracy: float | None
    num_images: int
    seconds: float
    compile_seconds: float


def summarize(
    chosen: TrialResult,
    trials: Sequence[TrialResult],
    *,
    recipe: str,
    seed: int,
    selection: str,
    metric: str,
) -> SweepResult:
    """Return the result of a sweep.

    Args:
      chosen: The trial whose values it has.
      trials: All trials, whose times and images are summed.
      recipe: As in `SweepResult`, like the other arguments.
      seed: See there.
      selection: See there.
      metric: See there.
    """
    return SweepResult(
        recipe=recipe,
        seed=seed,
        selection=selection,
        accuracy=chosen.accuracy,
        best_accuracy=chosen.best_accuracy,
        early_stop_accuracy=chosen.early_stop_accuracy,
        learning_rate=chosen.learning_rate,
        num_steps=chosen.num_steps,
        diverged_at=chosen.diverged_at,
        seconds=sum(trial.seconds for trial in trials),
        compile_seconds=sum(trial.compile_seconds for trial in trials),
        images=sum(trial.images for trial in trials),
        trials=tuple(trials),
        metric=metric,
        values=chosen.values,
    )


def choose(trials: Sequence[TrialResult]) -> TrialResult:
    """Return the trial with the highest validation accuracy after its last step.

    The first one wins a tie. If all diverged, the one that diverged last is returned.
    """

    def order(trial: TrialResult) -> tuple[float, int]:
        accuracy = trial.validation_accuracy
        return (-math.inf if accuracy is None else accuracy), trial.diverged_at

    return max(trials, key=order)


def by_metric(trial: TrialResult, metric: str) -> TrialResult | None:
    """Return a trial whose accuracies are values of a metric; None if it has none.

    A trial that diverged is returned unchanged.
    """
    if trial.diverged_at >= 0:
        return trial
    curve = trial.curves.get(metric, ())
    if metric not in trial.values or not curve:
        # Older versions stored accuracies alone.
        return trial if metric == "accuracy" and trial.accuracy is not None else None
    at = dict(curve)
    return dataclasses.replace(
        trial,
        accuracy=trial.values[metric],
        validation_accuracy=curve[-1][1],
        best_accuracy=max(at.values()),
        early_stop_accuracy=at.get(trial.early_stop_step),
        curve=curve,
    )


def trial_from_store(stored: Mapping[str, Any]) -> TrialResult:
    """Rebuild a `TrialResult` from stored JSON."""
    curves = {
        name: _to_curve(curve) for name, curve in stored.get("curves", {}).items()
    }
    curve = _to_curve(stored["curve"])
    return TrialResult(**{**stored, "curve": curve, "curves": curves})


def _to_curve(stored: Sequence[Sequence[float]]) -> Curve:
    return tuple((int(step), float(value)) for step, value in stored)


def sweep_from_store(stored: Mapping[str, Any]) -> SweepResult:
    """Rebuild a `SweepResult` from stored JSON."""
    trials = tuple(map(trial_from_store, stored["trials"]))
    return SweepResult(**{**stored, "trials": trials})
