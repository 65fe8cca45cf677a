"""Summary: everything that a report prints about a ranking, computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rankckpt_jax.results.agreement import Agreement, measure_agreement
from rankckpt_jax.results.conclusions import Conclusion, conclude
from rankckpt_jax.results.costs import Costs, compare_costs
from rankckpt_jax.results.grouped_warnings import GroupedWarning, group_warnings
from rankckpt_jax.results.other_metrics import OtherMetric, compare_metrics
from rankckpt_jax.results.ranking import Ranking


@dataclasses.dataclass(frozen=True)
class Summary:
    """What follows from a ranking. All sentences are printable text.

    Attributes:
      ranking: The ranking.
      conclusion: What follows from it in sentences and numbers.
      agreement: The agreement of each measure and baseline with fine-tuning.
      ranks: For each measure, and first for the accuracy as `"fine-tuned"`, the rank of
        each of `ranking.scored_rows`; None where there is no value.
      costs: The costs of ranking and of fine-tuning; None if no time is known.
      warnings: The warnings of all rows; each kind occurs once.
      other_metrics: The agreement with the other metrics of fine-tuning.
    """

    ranking: Ranking
    conclusion: Conclusion
    agreement: Agreement
    ranks: Mapping[str, tuple[int | None, ...]]
    costs: Costs | None
    warnings: tuple[GroupedWarning, ...]
    other_metrics: tuple[OtherMetric, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """All sentences of the conclusion in reading order."""
        return self.conclusion.sentences


def summarize(ranking: Ranking) -> Summary:
    """Compute everything that a report prints about a ranking."""
    agreement, costs = measure_agreement(ranking), compare_costs(ranking)
    warnings = group_warnings(ranking.rows)
    others = compare_metrics(ranking)
    return Summary(
        ranking,
        conclude(ranking, agreement, costs, warnings, others),
        agreement,
        _ranks(ranking),
        costs,
        warnings,
        others,
    )


def _ranks(ranking: Ranking) -> dict[str, tuple[int | None, ...]]:
    rows = ranking.scored_rows
    columns = {m: [row.score(m) for row in rows] for m in ranking.measures}
    accuracies = [row.finite_accuracy() for row in rows]
    if any(accuracy is not None for accuracy in accuracies):
        columns = {"fine-tuned": accuracies, **columns}
    result = {}
    for name, values in columns.items():
        known = [value for value in values if value is not None]
        result[name] = tuple(
            None if value is None else 1 + sum(other > value for other in known)
            for value in values
        )
    return result
