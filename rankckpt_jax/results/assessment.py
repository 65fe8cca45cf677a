"""What a ranking's evaluation is worth: intervals, chance, baselines and groups.

Computed once for a ranking, when a report first asks; see `Ranking.assessment`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rankckpt_jax import evaluation

if TYPE_CHECKING:
    from rankckpt_jax.results.ranking import Ranking
    from rankckpt_jax.results.row import Row

BASELINES: Mapping[str, Callable[[Row], float | None]] = {
    "number of parameters": lambda row: row.num_parameters,
    "feature dimension": lambda row: row.feature_dim,
    "source accuracy": lambda row: row.source_accuracy,
}
"""What ranks checkpoints without looking at an image; a measure must do better."""

ALL = "all"
"""Stands for a group where checkpoints are in none."""

_SAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class MeasureSummary:
    """How sure one can be of what a measure's ranking scored.

    Attributes:
      intervals: Of each metric, with other checkpoints and other noise of the measure.
      by_spread: The same with these checkpoints: noise of the measure alone; None
        where no spread is known.
      p_values: Of each metric, how often a random order does as well.
      probability_best: That the checkpoint ranked first is truly the best.
      tied: Checkpoints whose score is that of another.
      versus_first: Against the measure that orders the ranking, by Kendall's tau over
        the checkpoints that both score; None for that measure itself.
    """

    intervals: Mapping[str, evaluation.Interval]
    by_spread: Mapping[str, evaluation.Interval] | None
    p_values: Mapping[str, float]
    probability_best: float
    tied: int
    versus_first: evaluation.Comparison | None


@dataclasses.dataclass(frozen=True)
class Baseline:
    """How well something that is no measure ranks.

    Attributes:
      n: Checkpoints for which it and the accuracy are known.
      scores: What `evaluation.score_ranking` says.
    """

    n: int
    scores: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Assessment:
    """Everything about a ranking.

    Attributes:
      measures: By measure that has at least two pairs.
      baselines: By name; those with at least two pairs.
      groups: By group, then by measure: (pairs, what `score_ranking` says).
    """

    measures: Mapping[str, MeasureSummary]
    baselines: Mapping[str, Baseline]
    groups: Mapping[str, Mapping[str, tuple[int, Mapping[str, float]]]]


def assess(ranking: Ranking) -> Assessment:
    """Assesses every measure of a ranking whose rows have accuracies.

    Args:
      ranking: The ranking.
    """
    measures = {
        measure: _measured(ranking, measure)
        for measure in ranking.measures
        if len(ranking.evaluated_rows(measure)) > 1
    }
    return Assessment(measures, _baselines(ranking), _groups(ranking))


def _measured(ranking: Ranking, measure: str) -> MeasureSummary:
    rows = ranking.evaluated_rows(measure)
    scores = [row.scores[measure] for row in rows]
    accuracies = [row.finite_accuracy() for row in rows]
    spreads = [row.spread(measure) or 0.0 for row in rows]
    noisy = any(spreads)
    first = ranking.measures[0]
    both = [row for row in rows if row.score(first) is not None]
    versus = None
    if measure != first and len(both) > 1:
        pair = (
            [row.scores[measure] for row in both],
            [row.scores[first] for row in both],
            [row.finite_accuracy() for row in both],
        )
        versus = evaluation.compare([pair], num_samples=_SAMPLES)
    return MeasureSummary(
        evaluation.intervals(scores, accuracies, spreads, num_samples=_SAMPLES),
        evaluation.intervals(
            scores, accuracies, spreads, over=("spread",), num_samples=_SAMPLES
        )
        if noisy
        else None,
        evaluation.p_values(scores, accuracies, num_samples=_SAMPLES),
        evaluation.probability_best(
            scores, accuracies, spreads, num_test=ranking.num_test
        ),
        evaluation.num_tied(scores),
        versus,
    )


def _baselines(ranking: Ranking) -> dict[str, Baseline]:
    found = {}
    for name, value in BASELINES.items():
        pairs = [
            (float(known), accuracy)
            for row in ranking.rows
            if not row.failure
            and (known := value(row)) is not None
            and (accuracy := row.finite_accuracy()) is not None
        ]
        if len(pairs) > 1:
            scores = evaluation.score_ranking(
                [known for known, _ in pairs], [accuracy for _, accuracy in pairs]
            )
            found[name] = Baseline(len(pairs), scores)
    return found


def _groups(
    ranking: Ranking,
) -> dict[str, dict[str, tuple[int, Mapping[str, float]]]]:
    """Each measure within each group, where there are two groups or more."""
    names = sorted({group for row in ranking.rows for group in row.groups})
    if not names:
        return {}
    return {
        group: {
            measure: within(ranking.rows, group, measure)
            for measure in ranking.measures
        }
        for group in names
    }


def pairs_within(
    rows: Sequence[Row], group: str, measure: str
) -> list[tuple[float, float]]:
    """(score, accuracy) of the checkpoints of a group; ALL are those in none."""
    return [
        (score, accuracy)
        for row in rows
        if (group in row.groups or (group == ALL and not row.groups))
        and (score := row.score(measure)) is not None
        and (accuracy := row.finite_accuracy()) is not None
    ]


def within(
    rows: Sequence[Row], group: str, measure: str
) -> tuple[int, dict[str, float]]:
    """(pairs, what `score_ranking` says) of a measure within one group."""
    pairs = pairs_within(rows, group, measure)
    scores = evaluation.score_ranking([s for s, _ in pairs], [a for _, a in pairs])
    return len(pairs), scores if pairs else dict.fromkeys(scores, math.nan)
