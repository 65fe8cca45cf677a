"""Summary: everything that a report prints about a ranking, computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rankckpt_jax.results import conclusions
from rankckpt_jax.results.agreement import Agreement, measure_agreement
from rankckpt_jax.results.costs import Costs, compare_costs
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.ranking import Ranking


@dataclasses.dataclass(frozen=True)
class GroupedWarning:
    """One warning and all checkpoints that have it.

    Attributes:
      topic: The measure or topic of the warning.
      text: The warning.
      checkpoints: Names, in the order of the ranking.
    """

    topic: str
    text: str
    checkpoints: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What follows from a ranking. All sentences are printable text.

    Attributes:
      ranking: The ranking.
      headline: The main result as a sentence in three parts; the middle one is the name
        of the checkpoint ranked first, or empty.
      conclusions: Sentences on how reliable the ranking is.
      facts: The main numbers as (name, value, note).
      agreement: The agreement of each measure and baseline with fine-tuning.
      ranks: For each measure, and first for the accuracy as `"fine-tuned"`, the rank of
        each of `ranking.scored_rows`; None where there is no value.
      costs: The costs of ranking and of fine-tuning; None if no time is known.
      warnings: The warnings of all rows; each text occurs once.
    """

    ranking: Ranking
    headline: tuple[str, str, str]
    conclusions: tuple[str, ...]
    facts: tuple[tuple[str, str, str], ...]
    agreement: Agreement
    ranks: Mapping[str, tuple[int | None, ...]]
    costs: Costs | None
    warnings: tuple[GroupedWarning, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """The headline and the conclusions."""
        return "".join(self.headline), *self.conclusions


def summarize(ranking: Ranking) -> Summary:
    """Compute everything that a report prints about a ranking."""
    agreement = measure_agreement(ranking)
    return Summary(
        ranking,
        conclusions.headline(ranking),
        conclusions.conclusions(ranking, agreement),
        conclusions.facts(ranking, agreement),
        agreement,
        _ranks(ranking),
        compare_costs(ranking),
        _group_warnings(ranking),
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


def _group_warnings(ranking: Ranking) -> tuple[GroupedWarning, ...]:
    """Collect the warnings of all rows, in the order in which they first occur."""
    names: dict[tuple[str, str], list[str]] = {}
    for row in ranking.rows:
        for topic, text in row.warnings.items():
            key = printable(topic), printable(text)
            names.setdefault(key, []).append(printable(row.checkpoint))
    return tuple(GroupedWarning(*key, tuple(value)) for key, value in names.items())
