"""Ranking: the checkpoints of one task in order, as plain data, and `rank`."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from rankckpt_jax import evaluation
from rankckpt_jax.data.metrics import METRICS
from rankckpt_jax.errors import InputError
from rankckpt_jax.results.kept_model import KeptModel
from rankckpt_jax.results.row import Row
from rankckpt_jax.storage import files

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from rankckpt_jax.evaluation.table import Table
    from rankckpt_jax.features import views as views_lib
    from rankckpt_jax.prediction import Prediction
    from rankckpt_jax.results.ablation import Ablation
    from rankckpt_jax.results.summary import Summary


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The checkpoints of one task in order, with their evaluation. Made by `rank`.

    Attributes:
      task: The task's short name.
      task_description: The task in a phrase or sentence; may be empty.
      measures: Names of the measures; the first one orders the ranking.
      rows: Best first by the first measure; then rows that a race dropped, the last
        dropped first; then rows without a score by it, then failures.
      evaluation: For each measure, the result of `evaluation.score_ranking` over
        `evaluated_rows(measure)`.
      provenance: Configuration, versions and devices of the run.
      group_titles: Title of each group of checkpoints; a group without a title is
        shown by its name.
      num_test: Number of test images that the accuracies were measured on, if they are
        shares of these; otherwise None.
      views: Summaries of the features of some checkpoints.
      samples: Some preprocessed images.
      ablations: How the ranking depends on options of the measure.
      metric: Name of the metric of `data.metrics` that accuracies are values of.
      kept: The model of the best checkpoint, if its weights were kept.
      prediction: The predicted accuracies, if they serve the ranking; they leave its
        order as it is. See `results.predicted.add_prediction`.
    """

    task: str
    task_description: str
    measures: tuple[str, ...]
    rows: tuple[Row, ...]
    evaluation: Mapping[str, Mapping[str, float]]
    provenance: Mapping[str, Any]
    group_titles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    num_test: int | None = None
    views: tuple["views_lib.FeatureSummary", ...] = ()
    samples: tuple["views_lib.Sample", ...] = ()
    ablations: tuple["Ablation", ...] = ()
    metric: str = "accuracy"
    kept: KeptModel | None = None
    prediction: "Prediction | None" = None

    @property
    def metric_title(self) -> str:
        """The name of the metric in sentences."""
        return METRICS[self.metric].title

    @property
    def best(self) -> Row | None:
        """The row ranked first, or None if no checkpoint has a score.

        If several are ranked first, as in a ranking that `ranks_nothing`, it is the
        first of them by name.
        """
        return self.scored_rows[0] if self.scored_rows else None

    @property
    def scored_rows(self) -> tuple[Row, ...]:
        """The rows with a score by the first measure, best first."""
        return tuple(r for r in self.rows if r.score(self.measures[0]) is not None)

    @property
    def ranks_nothing(self) -> bool:
        """Whether all scores by the first measure are saturated and equal."""
        rows, first = self.scored_rows, self.measures[0]
        return (
            len(rows) > 1
            and all(first in row.saturated for row in rows)
            and len({row.score(first) for row in rows}) == 1
        )

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows of checkpoints that failed."""
        return tuple(r for r in self.rows if r.failure)

    @property
    def ranks(self) -> tuple[int | None, ...]:
        """The rank of each row from 1. Equal scores share a rank; None if unranked."""
        scores = [row.score(self.measures[0]) for row in self.rows]
        finite = [score for score in scores if score is not None]
        return tuple(
            None if score is None else 1 + sum(other > score for other in finite)
            for score in scores
        )

    def evaluated_rows(self, measure: str, group: str = "") -> tuple[Row, ...]:
        """Return the rows with both a score by `measure` and an accuracy.

        Args:
          measure: Name of a measure.
          group: Name of the group that the rows must belong to; any if empty.
        """
        rows = [row for row in self.rows if not group or group in row.groups]
        return _evaluated_rows(rows, measure)

    def group_title(self, group: str) -> str:
        """Return the title of a group, by default its name."""
        return self.group_titles.get(group, group)

    def predict(self, tables: Iterable["Table"] = ()) -> "Prediction":
        """Predict accuracies after fine-tuning; docs/predicting.md describes how.

        Accuracies that were measured in this run are taken as known.

        Args:
          tables: Tables of earlier tasks, such as `evaluation.read_table` returns. By
            default those of the history of the run; a ranking of `rank_features` has
            none. Published tasks are always added.

        Raises:
          InputError: Accuracies are of another metric, fewer than two checkpoints did
            not fail, two have the same name, or the tables contradict each other.
        """
        # Imported here for start-up time.
        from rankckpt_jax.results import predicted

        tables = tuple(tables)
        if self.prediction is not None and not tables:
            return self.prediction
        return predicted.predict(self, tables, self.num_test)

    def append(self, other: "Ranking") -> "Ranking":
        """Return this ranking with the checkpoints of another, ranked again.

        A checkpoint in both is taken from `other`. Scores of measures that are relative
        to the pool are combined again.

        Args:
          other: A ranking of the same task over the same images. Only the task's name
            is checked.

        Raises:
          InputError: The other ranking is of another task.
        """
        # Imported here for start-up time: comparing rows needs the measures and JAX.
        from rankckpt_jax.results import comparison

        if other.task != self.task:
            raise InputError(
                "Rankings of different tasks cannot be combined",
                expected=self.task,
                found=other.task,
                fix="append a ranking of the same task",
            )
        if other.metric != self.metric:
            raise InputError(
                "Rankings with different metrics cannot be combined",
                expected=self.metric,
                found=other.metric,
                fix="fine-tune both with the same config.finetune.metric",
            )
        measures = tuple(dict.fromkeys((*self.measures, *other.measures)))
        rows = {row.checkpoint: row for row in (*self.rows, *other.rows)}
        return rank(
            self.task,
            measures,
            comparison.compare_rows(list(rows.values()), measures),
            task_description=self.task_description,
            provenance={**other.provenance, **self.provenance},
            group_titles={**other.group_titles, **self.group_titles},
            metric=self.metric,
        )

    def to_csv(self, path: epath.PathLike | None = None) -> str | None:
        """Write all columns as comma-separated values; see `report.csv`.

        Args:
          path: The file to write; None to return the text.
        """
        # Imported here: a convenience method; the report imports this module.
        from rankckpt_jax.report import csv

        return _deliver(csv.to_csv(self), path)

    def to_json(self, path: epath.PathLike | None = None) -> str | None:
        """Write the ranking and its conclusion as JSON.

        docs/reading-a-ranking.md describes every key.

        Args:
          path: The file to write; None to return the text.
        """
        # Imported here: a convenience method; the report imports this module.
        from rankckpt_jax.report import json

        return _deliver(json.to_json(self.summarize()), path)

    def to_html(self, path: epath.PathLike | None = None) -> str | None:
        """Write the ranking as one self-contained page; see `report.page`.

        Args:
          path: The file to write; None to return the text.
        """
        # Imported here: a convenience method; the report imports this module.
        from rankckpt_jax.report import page

        return _deliver(page.to_html(self.summarize()), path)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return all columns as a DataFrame, with one row for each checkpoint.

        Raises:
          InputError: pandas is not installed.
        """
        # Imported here: a convenience method; the report imports this module.
        from rankckpt_jax.report import dataframe

        return dataframe.to_pandas(self)

    def plot(self, measure: str = "") -> "Figure":
        """Draw accuracies against scores, or the scores if there are no accuracies.

        Args:
          measure: One of the measures; the first one by default.

        Returns:
          A Matplotlib figure, for `savefig`; a notebook shows it.

        Raises:
          InputError: The ranking has no such measure.
        """
        # Imported here: a convenience method; the report imports this module.
        from rankckpt_jax.report import figure

        return figure.plot(self, measure or self.measures[0])

    def summarize(self) -> "Summary":
        """Compute the conclusion and the evaluation that reports print."""
        # Imported here: a convenience method; the summary imports this module.
        from rankckpt_jax.results.summary import summarize

        return summarize(self)

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        # Imported here: a convenience method; the report imports this module.
        from rankckpt_jax.report import notebook

        return notebook.to_html(self.summarize())

    def __repr__(self) -> str:
        """Return the first rows as a table."""
        # Imported here: a convenience method; the report imports this module.
        from rankckpt_jax.report import terminal

        return terminal.to_short_text(self)

    def __str__(self) -> str:
        """Return the ranking as a table for a terminal; see `report.terminal`."""
        # Imported here: a convenience method; the report imports this module.
        from rankckpt_jax.report import terminal

        return terminal.to_text(self.summarize())


def rank(
    task: str,
    measures: Sequence[str],
    rows: Iterable[Row],
    *,
    task_description: str = "",
    provenance: Mapping[str, Any] | None = None,
    group_titles: Mapping[str, str] | None = None,
    metric: str = "accuracy",
) -> Ranking:
    """Order checkpoints by the first measure and evaluate every measure.

    Scores that differ by rounding error only get one value first, the highest of them;
    see `measures.Tolerance`. Equal scores are ordered by name, so the same rows always
    give the same ranking.

    Example:
      >>> rows = [
      ...     Row("a", scores={"nleep": -0.9}, accuracy=0.71),
      ...     Row("b", scores={"nleep": -0.4}, accuracy=0.84),
      ...     Row("c", failure="no such file"),
      ... ]
      >>> print(rank("pets", ["nleep"], rows))  # doctest: +ELLIPSIS
      pets: 3 checkpoints, 1 failed
      <BLANKLINE>
      Use b.
      Fine-tuned, it reaches 84.0%, the highest of 2; following nleep loses nothing.
      ...
      #  checkpoint    nleep  fine-tuned
      ----------------------------------
      1  b           -0.4000       84.0%
      2  a           -0.9000       71.0%
      -  c           failed: no such file
      Higher scores are better; fine-tuned is the test accuracy after fine-tuning.
      <BLANKLINE>
      measure         n  kendall  recall@1  rel@1  pearson  recall@3  rel@3
      ---------------------------------------------------------------------
      nleep           2     1.00      1.00   1.00     1.00      1.00   1.00
      (random order)  2     0.00      0.50   0.92     0.00      1.00   1.00
      ...

    Args:
      task: The task's short name.
      measures: One or more names of measures; the first one orders the ranking.
      rows: The checkpoints, in any order.
      task_description: The task in a phrase or sentence.
      provenance: Configuration, versions and devices, as nested plain data.
      group_titles: Title of each group of checkpoints.
      metric: Name of the metric that accuracies are values of.

    Raises:
      InputError: There is no measure, or an accuracy is not a value of the metric.
    """
    if not measures:
        raise InputError(
            "There is no measure to rank by",
            expected="at least one name of a measure",
            found="none",
            fix='name one, such as "nleep"',
        )
    # Imported here for start-up time: the tolerances need the measures and JAX.
    from rankckpt_jax.results import comparison

    # A prediction is of one pool.
    rows = [dataclasses.replace(r, predicted=None) if r.predicted else r for r in rows]
    rows = tuple(comparison.resolve_scores(rows, measures))
    for row in rows:
        accuracy = row.finite_accuracy()
        lowest = METRICS[metric].lowest
        if accuracy is not None and not lowest <= accuracy <= 1:
            raise InputError(
                "An accuracy is not a fraction",
                where=f"checkpoint {row.checkpoint!r}",
                expected=f"a value from {lowest:g} to 1",
                found=str(accuracy),
                fix="divide percentages by 100",
            )

    def order(row: Row) -> tuple[bool, bool, bool, int, float, str]:
        score, images = row.score(measures[0]), 0
        if row.dropped is not None:
            score, images = row.dropped.score, row.dropped.images
        return (
            bool(row.failure),
            score is None,
            row.dropped is not None,
            # Scores of different numbers of images cannot be compared.
            -images,
            -(score or 0.0),
            row.checkpoint,
        )

    return Ranking(
        task=task,
        task_description=task_description,
        measures=tuple(measures),
        rows=tuple(sorted(rows, key=order)),
        evaluation={m: _evaluate(_evaluated_rows(rows, m), m) for m in measures},
        provenance=dict(provenance or {}),
        group_titles=dict(group_titles or {}),
        metric=metric,
    )


def _deliver(text: str, path: epath.PathLike | None) -> str | None:
    """Write `text` to `path`, or return it if there is none."""
    if path is None:
        return text
    files.write_text_atomically(files.to_path(path), text)
    return None


def _evaluated_rows(rows: Iterable[Row], measure: str) -> tuple[Row, ...]:
    return tuple(
        row
        for row in rows
        if row.score(measure) is not None and row.finite_accuracy() is not None
    )


def _evaluate(rows: Sequence[Row], measure: str) -> dict[str, float]:
    return evaluation.score_ranking(
        [row.scores[measure] for row in rows], [row.finite_accuracy() for row in rows]
    )
