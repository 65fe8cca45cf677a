"""The other metrics of fine-tuning: do checkpoints have another order by them?"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

from rankckpt_jax import evaluation
from rankckpt_jax.data.metrics import METRICS
from rankckpt_jax.results.formatting import format_metric, printable
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import finite


@dataclasses.dataclass(frozen=True)
class OtherMetric:
    """One metric besides `Ranking.metric`.

    Attributes:
      name: Its name in `data.metrics`.
      title: Its name in sentences.
      n: Number of checkpoints with values of both metrics.
      best: The checkpoint with the highest value, printable.
      value: Its value as a text.
      kendall: Kendall's tau of the two orders of the checkpoints; NaN if undefined.
      differs: Whether a pair of checkpoints has opposite orders.
      measures: Kendall's tau of each measure with this metric.
      sentence: A sentence on the difference; empty without one.
    """

    name: str
    title: str
    n: int
    best: str
    value: str
    kendall: float
    differs: bool
    measures: Mapping[str, float]
    sentence: str = ""


def compare_metrics(ranking: Ranking) -> tuple[OtherMetric, ...]:
    """Return the other metrics that at least two checkpoints have."""
    known = dict.fromkeys(name for row in ranking.rows for name in row.metrics)
    names = [n for n in METRICS if n in known and n != ranking.metric]
    found = (_compare(ranking, name) for name in names)
    return tuple(other for other in found if other is not None)


def _compare(ranking: Ranking, name: str) -> OtherMetric | None:
    known = [
        (row, accuracy, value)
        for row in ranking.rows
        if not row.failure
        and (accuracy := row.finite_accuracy()) is not None
        and (value := finite(row.metrics.get(name))) is not None
    ]
    if len(known) < 2:
        return None
    _, accuracies, values = zip(*known, strict=True)
    differs = any(
        (a - b) * (c - d) < 0
        for (_, a, c), (_, b, d) in itertools.combinations(known, 2)
    )
    measures = {}
    for measure in ranking.measures:
        scored = [
            (score, value)
            for row, _, value in known
            if (score := row.score(measure)) is not None
        ]
        scores, others = zip(*scored, strict=True) if scored else ((), ())
        measures[measure] = evaluation.score_ranking(scores, others)["kendall"]
    best, _, highest = max(known, key=lambda found: found[2])
    own, _, _ = max(known, key=lambda found: found[1])
    other = OtherMetric(
        name,
        METRICS[name].title,
        len(known),
        printable(best.checkpoint),
        format_metric(highest, name),
        evaluation.score_ranking(values, accuracies)["kendall"],
        differs,
        measures,
    )
    return dataclasses.replace(
        other, sentence=_describe(ranking, other, own.checkpoint)
    )


def _describe(ranking: Ranking, other: OtherMetric, best: str) -> str:
    """Return a sentence if the order of the checkpoints depends on the metric."""
    if not other.differs:
        return ""
    tau = "" if math.isnan(other.kendall) else f" (Kendall's tau {other.kendall:.2f})"
    own, first = ranking.metric_title, ranking.measures[0]
    sentence = (
        f"By {other.title}, the fine-tuned checkpoints have another order than by {own}"
        f"{tau}"
    )
    if other.best != printable(best):
        sentence += f", and {other.best} is the best ({other.value})"
    taus = ranking.evaluation[first]["kendall"], other.measures[first]
    if not any(map(math.isnan, taus)):
        sentence += (
            f"; {printable(first)} has Kendall's tau {taus[0]:.2f} with {own} and "
            f"{taus[1]:.2f} with {other.title}"
        )
    return f"{sentence}."
