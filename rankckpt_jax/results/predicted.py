"""Predicts the accuracies of a ranking from the scores and properties of its rows.

docs/predicting.md describes the prediction and states its evidence.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence

from rankckpt_jax import prediction
from rankckpt_jax.data.metrics import METRICS
from rankckpt_jax.errors import InputError
from rankckpt_jax.evaluation.table import Table
from rankckpt_jax.prediction import Prediction
from rankckpt_jax.prediction.families import family
from rankckpt_jax.results.formatting import one_line
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import Row, finite

METRIC = "accuracy"
"""The recorded tasks have accuracies. Other metrics have other levels and scales."""

_DRAWS, _NUMBERS = 10_000, 400_000
"""Draws of a prediction, and the numbers in all of them together at most.

With 400 checkpoints there are 1,000 draws. A probability then has a standard error of
at most 0.016, and the prediction takes less than half a second.
"""

_log = logging.getLogger(__name__)


def predict(
    ranking: Ranking, tables: Iterable[Table] = (), num_test: int | None = None
) -> Prediction:
    """Predict the accuracies of the checkpoints that did not fail.

    Args:
      ranking: Scores and properties of its rows are the inputs. Saturated scores are
        left out, because they mean nothing. Accuracies that were measured in this run
        are taken as known, and those of fine-tunings that were only begun as a sign.
      tables: Tables of earlier tasks, which are added to the published ones.
      num_test: Number of test images of the accuracies; they are exact if None.

    Raises:
      InputError: Accuracies are of another metric, fewer than two checkpoints did not
        fail, two have the same name, or the tables contradict each other.
    """
    if ranking.metric != METRIC:
        raise InputError(
            "Only accuracies can be predicted",
            where=f"ranking of {ranking.task!r}",
            expected=f"the metric {METRIC!r}, which recorded tasks have",
            found=METRICS[ranking.metric].title,
            fix="fine-tune with config.finetune.metric=accuracy, for tasks with one "
            "class per image",
        )
    rows = [row for row in ranking.rows if not row.failure]
    return prediction.predict(
        prediction.fit(tables),
        [_candidate(row) for row in rows],
        {row.checkpoint: a for row in rows if (a := _measured(row)) is not None},
        early={
            row.checkpoint: prediction.Early(start.accuracy, start.num_images)
            for row in rows
            if (start := row.started) is not None and start.accuracy is not None
        },
        num_test=num_test,
        num_samples=min(_DRAWS, max(_NUMBERS // max(len(rows), 1), 100)),
    )


def add_prediction(
    ranking: Ranking,
    tables: Callable[[], Sequence[Table]] = tuple,
    num_test: int | None = None,
) -> Ranking:
    """Return the ranking with its prediction, or unchanged if that serves nobody.

    That is so for metrics other than accuracy, for fewer than two checkpoints, if
    nothing usable is known of them, and if all accuracies are known already. A failure
    is logged, because a prediction is not worth a run.

    Args:
      ranking: A ranking of `rank`.
      tables: Returns tables of earlier tasks. It is only called if they are needed.
      num_test: Number of test images of the accuracies; they are exact if None.
    """
    rows = [row for row in ranking.rows if not row.failure]
    if ranking.metric != METRIC or len(rows) < 2:
        return ranking
    if all(row.finite_accuracy() is not None for row in rows):
        return ranking
    try:
        predicted = predict(ranking, tables(), num_test)
    except InputError as error:
        _log.warning("Accuracies not predicted: %s", one_line(str(error)))
        return ranking
    # A defect of the prediction must not cost the results of a long run.
    except Exception as error:
        _log.warning("Accuracies not predicted: %r", error)
        return ranking
    if all(abs(c.standardized) < 1e-9 for c in predicted.checkpoints):
        return ranking
    return _attach(ranking, predicted)


def _candidate(row: Row) -> prediction.Candidate:
    properties = {
        "parameters": row.num_parameters,
        "feature_dim": row.feature_dim,
        "source_accuracy": row.source_accuracy,
    }
    return prediction.Candidate(
        row.checkpoint,
        family(row.architecture),
        {k: x for k, v in properties.items() if (x := finite(v)) is not None},
        {m: s for m in row.scores if (s := _usable_score(row, m)) is not None},
        {m: s for m in row.spreads if (s := row.spread(m)) is not None},
    )


def _usable_score(row: Row, measure: str) -> float | None:
    return None if measure in row.saturated else row.score(measure)


def _measured(row: Row) -> float | None:
    """Return the accuracy if it was measured in this run, else None."""
    return None if row.accuracy_source else row.finite_accuracy()


def _attach(ranking: Ranking, predicted: Prediction) -> Ranking:
    by_name = {c.checkpoint: c for c in predicted.checkpoints}
    rows = tuple(
        row
        if row.failure
        else dataclasses.replace(row, predicted=by_name[row.checkpoint])
        for row in ranking.rows
    )
    return dataclasses.replace(ranking, rows=rows, prediction=predicted)
