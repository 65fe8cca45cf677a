"""The four main numbers of a ranking."""

from __future__ import annotations

import math

from rankckpt_jax import evaluation
from rankckpt_jax.results.agreement import Agreement
from rankckpt_jax.results.costs import Costs, sum_measures, sum_rows
from rankckpt_jax.results.formatting import (
    LEAST_COMPILING,
    NONE,
    format_decimal,
    format_metric,
    format_points,
    format_seconds,
    printable,
)
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.recommendation import Recommendation

Figure = tuple[str, str, str]
"""Name, value and note of a number."""


def main_figures(
    ranking: Ranking,
    agreement: Agreement,
    costs: Costs | None,
    recommendation: Recommendation,
) -> tuple[Figure, Figure, Figure, Figure]:
    """Return how many measures agree, the lead or the loss, verification and time."""
    return (
        _votes(ranking, recommendation),
        _loss(ranking, recommendation) or _lead(recommendation),
        _verified(ranking, agreement),
        _time(costs),
    )


def _votes(ranking: Ranking, recommendation: Recommendation) -> Figure:
    name, n = "Measures that agree", len(ranking.scored_rows)
    if n < 2 or not recommendation.counted:
        return name, NONE, ""
    value = f"{len(recommendation.agreeing)} of {len(recommendation.counted)}"
    return name, value, f"rank it first of {n}"


def _loss(ranking: Ranking, recommendation: Recommendation) -> Figure | None:
    loss, picked = recommendation.loss, recommendation.picked
    if loss is None or picked is None:
        return None
    return (
        f"Loss from following {printable(ranking.measures[0])}",
        format_points(loss, True, ranking.metric) if loss else "none",
        "its first reaches "
        + format_metric(picked.finite_accuracy() or 0.0, ranking.metric),
    )


def _lead(recommendation: Recommendation) -> Figure:
    name, lead = "Lead over the second", recommendation.lead
    if lead is None:
        return name, NONE, ""
    if lead.noise is None:
        return name, NONE, "the noise of the score is unknown"
    if lead.ratio is None:
        return name, NONE, "the score has no noise"
    return name, f"{lead.text} ×", "the noise of the score"


def _verified(ranking: Ranking, agreement: Agreement) -> Figure:
    total, summary = len(ranking.scored_rows), agreement.measures[ranking.measures[0]]
    if not total:
        return "Verified", NONE, ""
    value, tau = f"{summary.n} of {total}", summary.scores["kendall"]
    if summary.n < 2 or math.isnan(tau):
        return "Verified", value, "checkpoints fine-tuned"
    is_significant = evaluation.is_significant(tau, summary.n)
    how = "significant" if is_significant else "not significant"
    return "Verified", value, f"fine-tuned; Kendall's tau {format_decimal(tau)}, {how}"


def _time(costs: Costs | None) -> Figure:
    """Return the time that features and scores of all measures took."""
    name = "Time to rank"
    if costs is None:
        return name, NONE, "not recorded"
    features, scores, _ = sum_rows(sum_measures(costs.seconds))
    compiling = [s or 0.0 for s in sum_rows(sum_measures(costs.compile_seconds))]
    times = [("features", features, compiling[0]), ("scores", scores, compiling[1])]
    known = [(what, total, part) for what, total, part in times if total is not None]
    if not known:
        return name, NONE, "not recorded"
    value = format_seconds(sum(total for _, total, _ in known))
    notes = []
    if (part := sum(part for _, _, part in known)) >= LEAST_COMPILING:
        notes.append(f"{format_seconds(part)} compiling")
        known = [(what, max(total - part, 0.0), 0.0) for what, total, part in known]
    notes += [f"{format_seconds(total)} {what}" for what, total, _ in known]
    return name, value, ", ".join(notes)
