"""Row: everything known about one checkpoint on one task, as plain data."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rankckpt_jax.results.formatting import one_line, printable

if TYPE_CHECKING:
    from rankckpt_jax.evaluation.intervals import Interval
    from rankckpt_jax.finetune import Start
    from rankckpt_jax.prediction import CheckpointPrediction


@dataclasses.dataclass(frozen=True)
class Dropped:
    """The last score of a checkpoint that a race dropped; see `run.race`.

    It is not among `Row.scores`, because scores change with the number of images.

    Attributes:
      measure: The measure of the race.
      score: The score of the images up to then.
      spread: Its standard deviation.
      images: Number of these images.
      place: Place that the checkpoint was found not to reach, such as 3.
      behind: Confidence interval of the difference to the score of that place.
    """

    measure: str
    score: float
    spread: float
    images: int
    place: int
    behind: tuple[float, float]

    def __str__(self) -> str:
        """Describe it in one line."""
        low, high = self.behind
        return (
            f"dropped after {self.images:,} images: {printable(self.measure)} "
            f"{self.score:.4g} ±{self.spread:.2g}, {low:.2g} to {high:.2g} below "
            f"place {self.place}"
        )


@dataclasses.dataclass(frozen=True)
class Tried:
    """How far successive halving fine-tuned a checkpoint; see `finetune.halving`.

    Its accuracy is not among those that rankings are compared with, because it is of
    fewer steps or of held-out training images.

    Attributes:
      learning_rate: The rate of its best trial.
      steps: Number of steps of this trial.
      total_steps: Number of steps of the trial that was left.
      accuracy: The metric on held-out images after `steps`; None if it diverged.
      is_left: Whether this trial was left.
      trials: Number of trials of this checkpoint at the start.
    """

    learning_rate: float
    steps: int
    total_steps: int
    accuracy: float | None
    is_left: bool
    trials: int = 1


@dataclasses.dataclass(frozen=True)
class Row:
    """The results of one checkpoint on one task. Unknown values stay empty.

    Attributes:
      checkpoint: Its name, unique within the task.
      architecture: The network's name, such as `"mobilenet_v1_025"`.
      group: The group it belongs to, such as NeuCRaB's `"group_i"`; several groups are
        separated by commas.
      scores: Score by measure; higher means better transfer. A measure that is missing
        or not finite has no score.
      spreads: Standard deviation of the score, by measure. For a mean over random
        starts it is that of a single start, divided by the root of their number.
      intervals: By measure, the 95 % confidence interval of the score of all training
        images, if it was computed from a subset; see `results.all_images`.
      half_scores: By measure, the scores of random halves of the images, which are the
        same for all checkpoints with the same images.
      dropped: Its last score if a race dropped it, else None.
      warnings: One warning by measure or topic.
      saturated: For measures whose score means nothing here, the regime's name; see
        `measures.Regime`.
      score_seconds: Time to compute the score from features, by measure.
      blocks: Names of the network's last blocks, if they were scored.
      layers: For measures of features, the layer whose features gave the score:
        `"last"`, the name of a block, or `"blocks"` for all of them side by side. Empty
        with the default, the last features.
      layer_scores: Score by layer, by measure, where the score is the best of them.
        None stands for no score or a saturated one.
      terms: For measures that are relative to the pool, the terms of the score.
      accuracy: Value of `Ranking.metric` on the test images after fine-tuning; NaN if
        training diverged.
      accuracy_source: The source of an accuracy that was not measured in this run.
      metrics: All metrics on the test images after fine-tuning, by their name in
        `data.metrics`; empty for an accuracy that was not measured in this run.
      curve: (step, accuracy) during fine-tuning with the chosen hyperparameters.
      tried: How far successive halving fine-tuned it, else None. Only the checkpoint
        that was left has an accuracy.
      started: The first part of its fine-tuning within a budget of time, else None. It
        may have been left at that, and then there is no accuracy.
      extract_seconds: Time to extract the features, which all measures share.
      finetune_seconds: Time of fine-tuning, including the hyperparameter search.
      compile_seconds: The part of these times that was spent on compiling, for
        `"features"`, each measure and `"fine-tuning"`.
      extract_images: Number of images that features were extracted from.
      train_images: Number of training images that they were chosen from; None if
        unknown.
      finetune_images: Number of images that all fine-tuning runs trained on; an image
        counts each time it is used.
      multiply_adds: Multiply-adds of one forward pass with one image.
      num_parameters: Parameters of the network without its classification head.
      source_accuracy: Published top-1 accuracy on the source data set, in percent.
      feature_dim: D, the dimension of a feature vector.
      image_size: Side of the square input, in pixels.
      own_image_size: Side of the images that the checkpoint was made for, in pixels.
      fingerprint: Distances between some of the feature vectors. They agree for the
        same weights under two names.
      images: Number of scored images and classes, and a digest of the class sizes.
      order: A digest of the sequence of labels.
      feature_tensor: The tensor of a converted graph that holds the features.
      engine: What extracted the features of a PyTorch network: "jax", or "torch" for
        PyTorch itself. Empty for other checkpoints.
      preprocess: Rule of `preprocess.resize`; empty for given features.
      preprocessing: A phrase that describes how images are preprocessed.
      weights: Digest of the checkpoint's bytes; empty for given features.
      predicted: Its part of `Ranking.prediction`; None if there is none. Rows are
        compared without it, because it depends on the other checkpoints.
      failure: The reason why this checkpoint has no scores, or empty.
    """

    checkpoint: str
    architecture: str = ""
    group: str = ""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    spreads: Mapping[str, float] = dataclasses.field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = dataclasses.field(
        default_factory=dict
    )
    half_scores: Mapping[str, tuple[float, ...]] = dataclasses.field(
        default_factory=dict
    )
    dropped: Dropped | None = None
    warnings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    saturated: Mapping[str, str] = dataclasses.field(default_factory=dict)
    score_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    layers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    layer_scores: Mapping[str, Mapping[str, float | None]] = dataclasses.field(
        default_factory=dict
    )
    terms: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    accuracy: float | None = None
    accuracy_source: str = ""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()
    tried: Tried | None = None
    started: Start | None = None
    extract_seconds: float | None = None
    finetune_seconds: float | None = None
    compile_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    extract_images: int | None = None
    train_images: int | None = None
    finetune_images: int | None = None
    multiply_adds: int | None = None
    num_parameters: int | None = None
    source_accuracy: float | None = None
    feature_dim: int | None = None
    image_size: int | None = None
    own_image_size: int | None = None
    fingerprint: tuple[float, ...] = ()
    images: str = ""
    order: str = ""
    feature_tensor: str = ""
    engine: str = ""
    preprocess: str = ""
    preprocessing: str = ""
    weights: str = ""
    predicted: CheckpointPrediction | None = dataclasses.field(
        default=None, compare=False
    )
    failure: str = ""

    def __repr__(self) -> str:
        """Return its name with its scores and accuracy, or its failure, on one line."""
        parts = [repr(self.checkpoint)]
        if self.failure:
            parts.append(f"failure={textwrap.shorten(printable(self.failure), 60)!r}")
        else:
            parts += [f"{printable(m)}={score:.4g}" for m, score in self.scores.items()]
        if self.accuracy is not None:
            parts.append(f"accuracy={self.accuracy:.4g}")
        return f"Row({', '.join(parts)})"

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups it belongs to."""
        return tuple(name.strip() for name in self.group.split(",") if name.strip())

    @property
    def excuse(self) -> str:
        """Say in one line why it failed or was dropped; empty otherwise."""
        if self.failure:
            return f"failed: {one_line(self.failure)}"
        return str(self.dropped or "")

    def score(self, measure: str) -> float | None:
        """Return the score by `measure`, or None if there is no finite one."""
        return None if self.failure else finite(self.scores.get(measure))

    def spread(self, measure: str) -> float | None:
        """Return the standard deviation of the score by `measure`, or None."""
        return None if self.failure else finite(self.spreads.get(measure))

    def finite_accuracy(self) -> float | None:
        """Return the accuracy, or None if it is unknown or if training diverged."""
        return finite(self.accuracy)

    @property
    def predicted_accuracy(self) -> float | None:
        """The predicted accuracy after fine-tuning, in [0, 1], or None.

        It is None if there is no prediction, if predictions are ranks only, and if the
        accuracy was measured in this run, because it is no prediction then.
        """
        predicted = self.predicted
        if predicted is None or predicted.measured is not None:
            return None
        return finite(predicted.accuracy)

    @property
    def predicted_interval(self) -> Interval | None:
        """The 80 % interval of `predicted_accuracy`, or None like it."""
        if self.predicted is None or self.predicted_accuracy is None:
            return None
        return self.predicted.interval

    def ranking_seconds(self, measure: str) -> float | None:
        """Return the time of extraction and scoring by `measure`, or None if unknown.

        The time of other measures is not included.
        """
        extract = finite(self.extract_seconds)
        score = finite(self.score_seconds.get(measure))
        return None if extract is None or score is None else extract + score

    def ranking_compile_seconds(self, measure: str) -> float | None:
        """Return the part of `ranking_seconds` spent on compiling; None if unknown."""
        parts = [finite(self.compile_seconds.get(w)) for w in ("features", measure)]
        known = [seconds for seconds in parts if seconds is not None]
        return sum(known) if known else None


def finite(value: float | None) -> float | None:
    """Return the value as a Python float if it is a finite number, else None."""
    return float(value) if value is not None and math.isfinite(value) else None
