"""How well each measure, baseline and random order agrees with fine-tuning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from rankckpt_jax import evaluation, measures
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import Row

BASELINES: Mapping[str, tuple[str, Callable[[Row], float | None]]] = {
    "num_parameters": ("number of parameters", lambda row: row.num_parameters),
    "feature_dim": ("feature dimension", lambda row: row.feature_dim),
    "source_accuracy": ("source accuracy", lambda row: row.source_accuracy),
}
"""By the name of its measure, a baseline in words and its value.

Baselines rank checkpoints without images; a useful measure does better.
"""

_SAMPLES = 1000
"""Number of permutations."""


@dataclasses.dataclass(frozen=True)
class Judgment:
    """What a user loses by a score, and how its gaps follow those of the accuracies.

    Attributes:
      regret_1: Accuracy lost by fine-tuning only the first; NaN if unknown.
      regret_3: Accuracy lost by fine-tuning only the first three.
      gap_fidelity: See `evaluation.gap_fidelity`; NaN if undefined.
    """

    regret_1: float
    regret_3: float
    gap_fidelity: float


@dataclasses.dataclass(frozen=True)
class MeasureSummary:
    """The agreement of one measure with fine-tuning.

    Attributes:
      n: Number of checkpoints with both a score and an accuracy.
      scores: The result of `evaluation.score_ranking` for them.
      interval: 95 % confidence interval of Kendall's tau, from a jackknife over the
        checkpoints. NaN for fewer than six, and for a perfect order.
      p_value: Share of random orders with at least this Kendall's tau.
      judgment: Its regret and its gap fidelity.
      probability_best: Probability that the checkpoint ranked first is the best one.
      num_tied: Number of checkpoints that share their score with another.
      p_value_versus_first: P-value of the difference in Kendall's tau from the first
        measure. None for the first measure and with fewer than two common checkpoints.
    """

    n: int
    scores: Mapping[str, float]
    judgment: Judgment
    interval: evaluation.Interval
    p_value: float
    probability_best: float
    num_tied: int | None
    p_value_versus_first: float | None


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The agreement of a baseline or of a random order with fine-tuning.

    Attributes:
      name: The baseline in words.
      n: Number of checkpoints for which its value and the accuracy are known.
      scores: The result of `evaluation.score_ranking` for them.
      judgment: Its regret and its gap fidelity.
    """

    name: str
    n: int
    scores: Mapping[str, float]
    judgment: Judgment


@dataclasses.dataclass(frozen=True)
class Group:
    """The agreement of each measure within one group of checkpoints.

    Attributes:
      title: The group's title.
      measures: By measure, the number of checkpoints and the result of
        `evaluation.score_ranking`.
    """

    title: str
    measures: Mapping[str, tuple[int, Mapping[str, float]]]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The agreement of a ranking with fine-tuning.

    Attributes:
      measures: By measure, in the order of the ranking.
      baselines: The baselines that are known for at least two checkpoints and are not
        among the measures.
      random_order: Expected values for a random order of the checkpoints that the
        first measure ranks.
      random_deviation: Standard deviation of Kendall's tau over such orders.
      groups: The groups, if there are at least two, that have at least two checkpoints
        with both a score and an accuracy.
    """

    measures: Mapping[str, MeasureSummary]
    baselines: tuple[Baseline, ...]
    random_order: Baseline
    random_deviation: float
    groups: tuple[Group, ...]

    @property
    def all_baselines(self) -> tuple[Baseline, ...]:
        """The baselines, and the measures that do not read the images."""
        known = (
            Baseline(
                _baseline_in_words(name), summary.n, summary.scores, summary.judgment
            )
            for name, summary in self.measures.items()
            if not measures.reads_images(name) and summary.n > 1
        )
        return *known, *self.baselines

    @property
    def by_agreement(self) -> tuple[str, ...]:
        """The measures in the order to show them, baselines last.

        They are ordered by Kendall's tau; those without a tau keep the ranking's order.
        """

        def key(name: str) -> tuple[bool, float]:
            tau = self.measures[name].scores["kendall"]
            return not measures.reads_images(name), math.inf if math.isnan(
                tau
            ) else -tau

        return tuple(sorted(self.measures, key=key))

    @property
    def is_known(self) -> bool:
        """Whether any measure can be compared with at least two accuracies."""
        return any(summary.n > 1 for summary in self.measures.values())


def measure_agreement(ranking: Ranking) -> Agreement:
    """Compare the order of each measure and baseline with the accuracies."""
    accuracies = _accuracies(ranking.evaluated_rows(ranking.measures[0]))
    n = len(accuracies)
    return Agreement(
        {measure: _summarize(ranking, measure) for measure in ranking.measures},
        _baselines(ranking),
        Baseline(
            "random order",
            n,
            evaluation.random_ranking(accuracies),
            dataclasses.replace(judge([0.0] * n, accuracies), gap_fidelity=0.0),
        ),
        evaluation.kendall_null_deviation(n),
        _groups(ranking),
    )


def judge(scores: evaluation.Values, accuracies: evaluation.Values) -> Judgment:
    """Return the regret and the gap fidelity of scores."""
    return Judgment(
        evaluation.regret(scores, accuracies).value,
        evaluation.regret(scores, accuracies, 3).value,
        evaluation.gap_fidelity(scores, accuracies),
    )


def _baseline_in_words(measure: str) -> str:
    return BASELINES[measure][0] if measure in BASELINES else measure


def _summarize(ranking: Ranking, measure: str) -> MeasureSummary:
    rows = ranking.evaluated_rows(measure)
    n, evaluated = len(rows), ranking.evaluation[measure]
    if n < 2:
        nan = math.nan
        interval, judgment = evaluation.Interval(nan, nan), Judgment(nan, nan, nan)
        return MeasureSummary(n, evaluated, judgment, interval, nan, nan, None, None)
    scores = [row.scores[measure] for row in rows]
    accuracies = _accuracies(rows)
    spreads = [row.spread(measure) or 0.0 for row in rows]
    options: dict[str, Any] = {"metrics": ["kendall"], "num_samples": _SAMPLES}
    intervals = evaluation.intervals(scores, accuracies, metrics=["kendall"])
    p_values = evaluation.p_values(scores, accuracies, **options)
    return MeasureSummary(
        n,
        evaluated,
        judge(scores, accuracies),
        intervals["kendall"],
        p_values["kendall"],
        evaluation.probability_best(
            scores, accuracies, spreads, num_test=ranking.num_test
        ),
        evaluation.num_tied(scores),
        _compare_with_first(ranking, measure),
    )


def _compare_with_first(ranking: Ranking, measure: str) -> float | None:
    first = ranking.measures[0]
    rows = [r for r in ranking.evaluated_rows(measure) if r.score(first) is not None]
    if measure == first or len(rows) < 2:
        return None
    comparison = evaluation.compare(
        [row.scores[measure] for row in rows],
        [row.scores[first] for row in rows],
        _accuracies(rows),
        num_samples=_SAMPLES,
    )
    return comparison.p_value


def _baselines(ranking: Ranking) -> tuple[Baseline, ...]:
    result = []
    for measure, (name, value) in BASELINES.items():
        if measure in ranking.measures:
            continue
        pairs = [
            (float(known), accuracy)
            for row in ranking.rows
            if not row.failure
            and (known := value(row)) is not None
            and (accuracy := row.finite_accuracy()) is not None
        ]
        if len(pairs) > 1:
            values, accuracies = map(list, zip(*pairs, strict=True))
            scores = evaluation.score_ranking(values, accuracies)
            judgment = judge(values, accuracies)
            result.append(Baseline(name, len(pairs), scores, judgment))
    return tuple(result)


def _groups(ranking: Ranking) -> tuple[Group, ...]:
    names = sorted({group for row in ranking.rows for group in row.groups})
    result = []
    for name in names if len(names) > 1 else ():
        by_measure = {}
        for measure in ranking.measures:
            rows = ranking.evaluated_rows(measure, name)
            scores = evaluation.score_ranking(
                [row.scores[measure] for row in rows], _accuracies(rows)
            )
            by_measure[measure] = len(rows), scores
        if max(n for n, _ in by_measure.values()) > 1:
            result.append(Group(ranking.group_title(name), by_measure))
    return tuple(result)


def _accuracies(rows) -> list[float | None]:
    return [row.finite_accuracy() for row in rows]
