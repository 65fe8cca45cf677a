"""A ranking as data: what is known of every checkpoint, in order, and how far to trust.

Nothing here computes on images or features. `rank` puts finished rows in order and
evaluates each measure. `str(ranking)` is the numbered table for a terminal, and
`rankckpt_jax.report` makes files of a ranking.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import store

if TYPE_CHECKING:
    from rankckpt_jax.features import views as views_lib
    from rankckpt_jax.results import assessment as assessment_lib
    from rankckpt_jax.run import ablation as ablation_lib


@dataclasses.dataclass(frozen=True)
class Row:
    """Everything known of one checkpoint on one task; what is unknown stays empty.

    Attributes:
      checkpoint: Its name, unique within the task.
      architecture: The network's name, such as `"mobilenet_v1_025"`.
      group: The set it belongs to, such as NeuCRaB's `"group_i"`; several with commas
        between.
      scores: By measure; higher means better transfer. A measure that is absent or not
        finite has no score.
      spreads: By measure, the standard deviation of the score over repetitions.
      warnings: By measure or topic, one sentence that a reader should know.
      score_seconds: By measure, the time to compute it from features.
      terms: By measure that is relative to the pool, what its score is made of.
      accuracy: Test accuracy after fine-tuning, in [0, 1].
      accuracy_source: Where it is from, if it was not measured here.
      curve: (step, accuracy) on the way, of the chosen run of fine-tuning.
      extract_seconds: The time to extract the features that all measures share.
      finetune_seconds: The time of fine-tuning, with its search for settings.
      extract_images: Images that features were extracted from.
      finetune_images: Images trained on, each time counted, in all runs.
      multiply_adds: Of one forward pass of one image.
      num_parameters: Weights of the network without its source classifier.
      source_accuracy: Top-1 where it was pre-trained, in per cent, as published.
      feature_dim: D, the length of one feature vector.
      image_size: Side of the square input, in pixels.
      sketch: Distances between some of the feature vectors; those of equal weights
        under two names agree.
      images: How many images of how many classes were scored, and a digest of the
        classes' sizes; different ones were not scored on the same images.
      preprocessing: How images were brought to what the network takes, in words.
      failure: Why this checkpoint has no scores; empty when it has.
    """

    checkpoint: str
    architecture: str = ""
    group: str = ""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    spreads: Mapping[str, float] = dataclasses.field(default_factory=dict)
    warnings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    score_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    terms: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    accuracy: float | None = None
    accuracy_source: str = ""
    curve: tuple[tuple[int, float], ...] = ()
    extract_seconds: float | None = None
    finetune_seconds: float | None = None
    extract_images: int | None = None
    finetune_images: int | None = None
    multiply_adds: int | None = None
    num_parameters: int | None = None
    source_accuracy: float | None = None
    feature_dim: int | None = None
    image_size: int | None = None
    sketch: tuple[float, ...] = ()
    images: str = ""
    preprocessing: str = ""
    failure: str = ""

    @property
    def groups(self) -> tuple[str, ...]:
        """The sets it belongs to."""
        return tuple(name.strip() for name in self.group.split(",") if name.strip())

    def score(self, measure: str) -> float | None:
        """The finite score by `measure`, or None: failed, not computed, or NaN."""
        return None if self.failure else _finite(self.scores.get(measure))

    def spread(self, measure: str) -> float | None:
        """The finite spread of the score by `measure`, or None."""
        return None if self.failure else _finite(self.spreads.get(measure))

    def fine_tuned(self) -> float | None:
        """The accuracy in [0, 1], or None: not fine-tuned, or it diverged to NaN."""
        return _finite(self.accuracy)

    def ranking_seconds(self, measure: str) -> float | None:
        """Extraction and scoring by `measure` together, or None where one is unknown.

        This is what ranking by one measure costs; the other measures are not in it.
        """
        parts = self.extract_seconds, self.score_seconds.get(measure)
        known = [part for part in map(_finite, parts) if part is not None]
        return sum(known) if len(known) == len(parts) else None


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Checkpoints of one task in order, with the evidence. Made by `rank`.

    Attributes:
      task: The task's short name.
      task_description: What it is, in a phrase or sentence; may be empty.
      measures: Names of the measures; the first one orders the ranking.
      rows: Best first by the first measure; then rows without a score by it, then
        failures.
      evaluation: For every measure, `evaluation.score_ranking` over
        `evaluated_rows(measure)`.
      provenance: What made this ranking: configuration, versions, device.
      num_test: Images that accuracies were measured on, where they are known.
      views: What the features of some of the checkpoints look like.
      samples: Some images as the networks see them.
      ablations: How the ranking depends on options of the measure.
    """

    task: str
    task_description: str
    measures: tuple[str, ...]
    rows: tuple[Row, ...]
    evaluation: Mapping[str, Mapping[str, float]]
    provenance: Mapping[str, Any]
    num_test: int | None = None
    views: tuple["views_lib.FeatureSummary", ...] = ()
    samples: tuple["views_lib.Sample", ...] = ()
    ablations: tuple["ablation_lib.Ablation", ...] = ()

    @functools.cached_property
    def assessment(self) -> "assessment_lib.Assessment":
        """How sure one can be of the evaluation; computed when first asked for."""
        from rankckpt_jax.results import assessment

        return assessment.assess(self)

    @property
    def best(self) -> Row | None:
        """The row ranked first, or None where no checkpoint has a score."""
        return self.scored_rows[0] if self.scored_rows else None

    @property
    def scored_rows(self) -> tuple[Row, ...]:
        """The rows with a score by the first measure, best first."""
        return tuple(r for r in self.rows if r.score(self.measures[0]) is not None)

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows that name a failure."""
        return tuple(r for r in self.rows if r.failure)

    @property
    def ranks(self) -> tuple[int | None, ...]:
        """The rank of every row from 1; equal scores share one, None where unranked."""
        scores = [row.score(self.measures[0]) for row in self.rows]
        known = [score for score in scores if score is not None]
        return tuple(
            None if score is None else 1 + sum(other > score for other in known)
            for score in scores
        )

    def evaluated_rows(self, measure: str) -> tuple[Row, ...]:
        """The rows that have both a score by `measure` and a fine-tuned accuracy."""
        return _evaluated_rows(self.rows, measure)

    def append(self, other: "Ranking") -> "Ranking":
        """Adds the checkpoints of another ranking of the same task, ranked anew.

        A checkpoint of both is taken from `other`. Measures that are relative to the
        pool are combined over all of it.

        Args:
          other: Over the same images; that they are is not checked beyond the name.

        Returns:
          A new ranking, by the measures of both, in this one's order.

        Raises:
          InputError: It is of another task.
        """
        # Only a ranking that is added to needs the measures, and with them JAX.
        from rankckpt_jax.run import scoring

        if other.task != self.task:
            raise InputError(
                "Rankings of different tasks cannot be put together",
                expected=self.task,
                found=other.task,
            )
        measures = (
            *self.measures,
            *(m for m in other.measures if m not in self.measures),
        )
        rows = {row.checkpoint: row for row in (*self.rows, *other.rows)}
        return rank(
            self.task,
            measures,
            scoring.compare_rows(list(rows.values()), measures),
            task_description=self.task_description,
            provenance={**other.provenance, **self.provenance},
        )

    def to_csv(self, path: epath.PathLike | None = None) -> str:
        """The ranking as comma-separated values; see `report.table`.

        Args:
          path: A file to write it to as well.
        """
        from rankckpt_jax.report import columns as table

        return _written(table.to_csv(self), path)

    def to_html(self, path: epath.PathLike | None = None) -> str:
        """The ranking as one self-contained page; see `report.page`.

        Args:
          path: A file to write it to as well.
        """
        from rankckpt_jax.report import page

        return _written(page.to_html(self), path)

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        from rankckpt_jax.report import notebook

        return notebook.to_html(self)

    def __str__(self) -> str:
        """The ranking as a table for a terminal; see `report.terminal`."""
        # The report is built on this module; only a ranking that is printed needs it.
        from rankckpt_jax.report import terminal

        return terminal.format_table(self)


def rank(
    task: str,
    measures: Sequence[str],
    rows: Iterable[Row],
    *,
    task_description: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Ranking:
    """Orders checkpoints by the first measure and evaluates every measure.

    Equal scores are ordered by name, so the same rows always give the same ranking.

    Example:
      >>> rows = [
      ...     Row("a", scores={"nleep": -0.9}, accuracy=0.71),
      ...     Row("b", scores={"nleep": -0.4}, accuracy=0.84),
      ...     Row("c", failure="no such file"),
      ... ]
      >>> print(rank("pets", ["nleep"], rows))
      pets: 3 checkpoints, 1 failed
      <BLANKLINE>
      #  checkpoint    nleep  fine-tuned
      ----------------------------------
      1  b           -0.4000       84.0%
      2  a           -0.9000       71.0%
      -  c           failed: no such file
      <BLANKLINE>
      measure         n  recall@1  rel@1  recall@3  rel@3  pearson  kendall
      ---------------------------------------------------------------------
      nleep           2      1.00   1.00      1.00   1.00     1.00     1.00
      (random order)  2      0.50   0.92      1.00   1.00     0.00     0.00
      <BLANKLINE>
      nleep ranks b first of 2, and so does fine-tuning (84.0%).
      Too few to tell: nleep has Kendall's tau 1.00, but no order of 2 checkpoints is
      beyond chance; compare at least five.

    Args:
      task: The task's short name.
      measures: One or more measure names; the first one orders the ranking.
      rows: The checkpoints, in any order.
      task_description: What the task is, in a phrase or sentence.
      provenance: What made the rows, for the report: any nested plain data.

    Returns:
      The ranking.

    Raises:
      InputError: If no measure is given, or an accuracy lies outside [0, 1].
    """
    if not measures:
        raise InputError(
            "there is no measure to rank by", expected="at least one measure name"
        )
    rows = tuple(rows)
    for row in rows:
        accuracy = row.fine_tuned()
        if accuracy is not None and not 0 <= accuracy <= 1:
            raise InputError(
                "an accuracy is not a fraction",
                where=f"checkpoint {row.checkpoint!r}",
                expected="a value from 0 to 1",
                found=str(accuracy),
            )

    def order(row: Row) -> tuple[bool, bool, float, str]:
        score = row.score(measures[0])
        return bool(row.failure), score is None, -(score or 0.0), row.checkpoint

    return Ranking(
        task=task,
        task_description=task_description,
        measures=tuple(measures),
        rows=tuple(sorted(rows, key=order)),
        evaluation={m: _evaluate(_evaluated_rows(rows, m), m) for m in measures},
        provenance=dict(provenance or {}),
    )


def _written(text: str, path: epath.PathLike | None) -> str:
    """Returns `text`, written to `path` if there is one."""
    if path is not None:
        store.write_text_atomically(epath.Path(path).expanduser(), text)
    return text


def _finite(value: float | None) -> float | None:
    """Returns `value` as a Python float where it is finite, else None."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def _evaluated_rows(rows: Iterable[Row], measure: str) -> tuple[Row, ...]:
    return tuple(
        row
        for row in rows
        if row.score(measure) is not None and row.fine_tuned() is not None
    )


def _evaluate(pairs: Sequence[Row], measure: str) -> dict[str, float]:
    return evaluation.score_ranking(
        [row.scores[measure] for row in pairs], [row.fine_tuned() for row in pairs]
    )
