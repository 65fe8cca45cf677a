"""The conclusion: what follows from a ranking, in sentences and four numbers."""

from __future__ import annotations

import dataclasses
import math

from rankckpt_jax import evaluation, measures
from rankckpt_jax.errors import some
from rankckpt_jax.results import verification
from rankckpt_jax.results.agreement import Agreement
from rankckpt_jax.results.formatting import (
    count,
    format_decimal,
    format_p_value,
    format_percent,
    format_points,
    format_probability,
    format_seconds,
    ordinal,
    printable,
)
from rankckpt_jax.results.ranking import Ranking

_SIGNIFICANCE_LEVEL = 0.05
_MIN_FOR_INTERVAL = 8
"""Bootstrap intervals over fewer checkpoints are too narrow."""


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """What follows from a ranking. All texts are printable.

    Attributes:
      answer: The checkpoint to use as a sentence in three parts; the middle one is the
        checkpoint's name, or empty if none can be recommended.
      support: At most three sentences on the evidence for it.
      verification: One sentence: whether fine-tuning verified the ranking, and how far.
      command: The command that fine-tunes the best two, or empty.
      against: The strongest evidence against it, in at most three sentences.
      details: Further sentences, such as ties, intervals and p-values.
      figures: The four main numbers as (name, value, note).
    """

    answer: tuple[str, str, str]
    support: tuple[str, ...] = ()
    verification: str = ""
    command: str = ""
    against: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    figures: tuple[tuple[str, str, str], ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """All sentences and the command in reading order."""
        evidence = *self.support, self.verification, self.command, *self.against
        return tuple(filter(None, ("".join(self.answer), *evidence, *self.details)))


def conclude(ranking: Ranking, agreement: Agreement) -> Conclusion:
    """Return the conclusion of a ranking."""
    answer, figures = _headline(ranking), _facts(ranking, agreement)
    num_scored = len(ranking.scored_rows)
    if not num_scored:
        return Conclusion(answer, figures=figures)
    if num_scored == 1:
        sentence = (
            "One checkpoint cannot be compared with others. Add checkpoints to the "
            "pool."
        )
        return Conclusion(answer, support=(sentence,), figures=figures)
    if ranking.ranks_nothing:
        return Conclusion(answer, support=(_other_measure(ranking),), figures=figures)
    is_verified = agreement.measures[ranking.measures[0]].n > 1
    of_agreement = _agreement(ranking, agreement)
    against = (
        _better_measure(ranking, agreement),
        _better_baseline(ranking, agreement),
        _narrow_lead(ranking),
    )
    details = (
        _ties(ranking),
        _interval(ranking, agreement),
        _probability_best(ranking, agreement),
    )
    return Conclusion(
        answer,
        support=(of_agreement,) if is_verified else (),
        verification="" if is_verified else of_agreement,
        command=_command(ranking, agreement),
        against=tuple(filter(None, against)),
        details=tuple(filter(None, details)),
        figures=figures,
    )


def _headline(ranking: Ranking) -> tuple[str, str, str]:
    """Return the main result as one sentence of printable text.

    Returns:
      The text before the name of the checkpoint ranked first, its name, and the text
      after it. The name is empty if no checkpoint is ranked first.
    """
    best, measure = ranking.best, printable(ranking.measures[0])
    if best is None:
        if not ranking.rows:
            return "There are no checkpoints to rank.", "", ""
        if len(ranking.failed) == len(ranking.rows):
            return "No checkpoint could be ranked: all of them failed.", "", ""
        return f"No checkpoint could be ranked: none has a score by {measure}.", "", ""
    name, n = printable(best.checkpoint), len(ranking.scored_rows)
    if ranking.ranks_nothing:
        text = f"{measure} ranks nothing: the scores of all {n} checkpoints are"
        return f"{text} saturated and equal.", "", ""
    if n == 1:
        start, end = "", " is the only checkpoint ranked"
    else:
        tied = ranking.ranks.count(1) - 1
        start, end = f"{measure} ranks ", f" first of {n}"
        end += f", tied with {count(tied, 'other')}" if tied else ""
    return start, name, f"{end}{_accuracy_of_first(ranking)}."


def _accuracy_of_first(ranking: Ranking) -> str:
    """Return the end of the headline: the accuracy of the checkpoint ranked first."""
    accuracy = ranking.best.finite_accuracy() if ranking.best else None
    if accuracy is None:
        return ""
    rows = ranking.evaluated_rows(ranking.measures[0])
    accuracies = [row.finite_accuracy() or 0.0 for row in rows]
    if len(rows) == 1:
        return f"; its accuracy after fine-tuning is {format_percent(accuracy)}"
    highest = max(accuracies)
    if accuracy == highest:
        return f", and so does fine-tuning ({format_percent(accuracy)})"
    rank = 1 + sum(other > accuracy for other in accuracies)
    name = printable(rows[accuracies.index(highest)].checkpoint)
    return (
        f"; fine-tuning ranks it {ordinal(rank)} of {len(rows)}, "
        f"{format_points(highest - accuracy)} below {name} ({format_percent(highest)})"
    )


def _other_measure(ranking: Ranking) -> str:
    """Return the sentence on the measures to use if the first one ranks nothing."""
    first, *others = ranking.measures
    ranks = [name for name in others if _orders(ranking, name)]
    # A measure that needs no care is better.
    warned = {name for row in ranking.rows for name in row.warnings}
    ranks = [name for name in ranks if name not in warned] or ranks
    if ranks:
        verb, one = ("ranks", "it") if len(ranks) == 1 else ("rank", "one of them")
        return (
            f"{some(map(printable, ranks))} still {verb} these checkpoints: put {one} "
            f"first in `config.measures`. The warning of {printable(first)} states the "
            "reason."
        )
    known = [name for name in _robust_measures() if name not in ranking.measures]
    fix = f"Rank by {known[0]} instead" if known else "Add images"
    return (
        f"No computed measure ranks these checkpoints. {fix}. The warning of "
        f"{printable(first)} states the reason."
    )


def _robust_measures() -> list[str]:
    """Return measures that also rank with few images, by their published evidence."""
    known = [
        (evidence.num_pairs, not measure.can_saturate, evidence.kendall, name)
        for name in measures.names()
        if (measure := measures.get(name)).reads_images
        and not measure.needs_logits
        and not measure.needs_more_images_than_dimensions
        and measure.combine is None
        and (evidence := measure.evidence) is not None
        and evidence.kendall > 0
    ]
    return [name for *_, name in sorted(known, reverse=True)]


def _orders(ranking: Ranking, measure: str) -> bool:
    """Return whether a measure that reads the images gives scores that differ."""
    rows = [row for row in ranking.rows if row.score(measure) is not None]
    return (
        _reads_images(measure)
        and len({row.score(measure) for row in rows}) > 1
        and any(measure not in row.saturated for row in rows)
    )


def _reads_images(measure: str) -> bool:
    """Return whether scores depend on the task, as those of other programs do."""
    return measure not in measures.names() or measures.get(measure).reads_images


def _facts(ranking: Ranking, agreement: Agreement) -> tuple[tuple[str, str, str], ...]:
    """Return the main numbers as (name, value, note)."""
    measure = ranking.measures[0]
    summary = agreement.measures[measure]
    num_ranked, num_failed = len(ranking.scored_rows), len(ranking.failed)
    num_unscored = len(ranking.rows) - num_ranked - num_failed
    notes = [f"{num_failed} failed"] if num_failed else []
    notes += [f"{num_unscored} without a score"] if num_unscored else []
    result = [("Checkpoints ranked", str(num_ranked), ", ".join(notes))]
    tau, rel = summary.scores["kendall"], summary.scores["rel@1"]
    if summary.n > 1 and not math.isnan(tau):
        is_significant = evaluation.is_significant(tau, summary.n)
        note = "significant" if is_significant else f"not significant for {summary.n}"
        result.append(("Kendall's tau", format_decimal(tau), note))
    if summary.n > 1 and not math.isnan(rel) and not ranking.ranks_nothing:
        note = "by fine-tuning only the first"
        result.append(("Best accuracy kept", format_percent(rel), note))
    if summary.n > 1 and ranking.num_test and not ranking.ranks_nothing:
        value = format_probability(summary.probability_best)
        result.append(("First is best", value, "probability, given all noise"))
    seconds = [row.ranking_seconds(measure) for row in ranking.scored_rows]
    known = [second for second in seconds if second is not None]
    if known:
        note = f"with {printable(measure)}"
        result.append(("Time to rank", format_seconds(sum(known)), note))
    return tuple(result)


def _command(ranking: Ranking, agreement: Agreement) -> str:
    """Return the command that verifies a ranking, or an empty text."""
    if agreement.measures[ranking.measures[0]].n:
        return ""
    return verification.command(ranking.provenance.get("config"))


def _agreement(ranking: Ranking, agreement: Agreement) -> str:
    """Return the sentence on Kendall's tau of the first measure."""
    name = printable(ranking.measures[0])
    n = agreement.measures[ranking.measures[0]].n
    if n == 0:
        advice = "give the accuracies of at least five checkpoints."
        if _command(ranking, agreement):
            advice = "run:"
        return (
            "This ranking has not been verified: no ranked checkpoint was fine-tuned. "
            f"To verify it, {advice}"
        )
    if n == 1:
        return (
            "This ranking has not been verified: only one ranked checkpoint was "
            "fine-tuned. Fine-tune at least five."
        )
    tau = ranking.evaluation[ranking.measures[0]]["kendall"]
    if math.isnan(tau):
        return (
            f"Kendall's tau of {name} is undefined: the scores or the accuracies of "
            f"these {n} checkpoints are all equal."
        )
    if n < 5:
        return (
            f"Kendall's tau of {name} is {tau:.2f}, but {n} checkpoints are too few "
            "for a significant result. Fine-tune at least five."
        )
    evidence = (
        f"Kendall's tau {tau:.2f} over {n} checkpoints (random orders: mean 0, "
        f"standard deviation {agreement.random_deviation:.2f})"
    )
    if not evaluation.is_significant(tau, n):
        return (
            f"The agreement of {name} with fine-tuning is not significant: {evidence}."
        )
    verb = "agrees with" if tau > 0 else "contradicts"
    return f"{name} {verb} fine-tuning: {evidence}."


def _ties(ranking: Ranking) -> str:
    """Return a sentence on the checkpoints that the first measure does not order."""
    by_rank: dict[int, list[str]] = {}
    for row, rank in zip(ranking.rows, ranking.ranks, strict=True):
        if rank is not None:
            by_rank.setdefault(rank, []).append(printable(row.checkpoint))
    ties = {rank: names for rank, names in by_rank.items() if len(names) > 1}
    if not ties:
        return ""
    measure = printable(ranking.measures[0])
    if len(by_rank) == 1:
        n = len(ranking.scored_rows)
        order = "the order is by name"
        return f"{measure} gives equal scores to all {n} checkpoints; {order}."
    groups = "; ".join(
        f"{some(names, most=4)} (all {ordinal(rank)})" for rank, names in ties.items()
    )
    return f"{measure} gives equal scores to: {groups}."


def _interval(ranking: Ranking, agreement: Agreement) -> str:
    """Return the sentence on the confidence interval of Kendall's tau."""
    summary = agreement.measures[ranking.measures[0]]
    low, high = summary.interval
    if summary.n < _MIN_FOR_INTERVAL or math.isnan(low):
        return ""
    return (
        f"Kendall's tau {summary.scores['kendall']:.2f}, 95 % confidence interval "
        f"[{low:.2f}, {high:.2f}] (bootstrap over checkpoints)."
    )


def _better_measure(ranking: Ranking, agreement: Agreement) -> str:
    """Return a sentence on the measure that agrees best, if it is not the first."""
    taus = {m: ranking.evaluation[m]["kendall"] for m in ranking.measures}
    better = {m: tau for m, tau in taus.items() if tau > taus[ranking.measures[0]]}
    if not better:
        return ""
    measure = max(better, key=better.__getitem__)
    summary = agreement.measures[measure]
    p = summary.p_value_versus_first
    sentence = f"{printable(measure)} agrees better (tau {better[measure]:.2f})"
    if p is not None and p <= _SIGNIFICANCE_LEVEL:
        return f"{sentence}, p-value {format_p_value(p)} (paired permutation test)."
    is_known = p is not None and not math.isnan(p)
    test = f" (p-value {format_p_value(p)})" if is_known else ""
    return (
        f"{sentence}, but over {summary.n} checkpoints the difference is not "
        f"significant{test}."
    )


def _better_baseline(ranking: Ranking, agreement: Agreement) -> str:
    """Return a sentence on the best baseline, if it does as well as the measure."""
    tau = ranking.evaluation[ranking.measures[0]]["kendall"]
    known = [b for b in agreement.baselines if b.n >= 5 and b.scores["kendall"] >= tau]
    if not known:
        return ""
    best = max(known, key=lambda baseline: baseline.scores["kendall"])
    well = "better" if best.scores["kendall"] > tau else "equally well"
    return (
        f"A trivial baseline does {well}: sorting by {best.name} gives tau "
        f"{best.scores['kendall']:.2f}."
    )


def _probability_best(ranking: Ranking, agreement: Agreement) -> str:
    """Return the sentence on the probability that the first checkpoint is the best."""
    summary = agreement.measures[ranking.measures[0]]
    if summary.n < 2 or not ranking.num_test:
        return ""
    return (
        "The checkpoint ranked first is the best of these with probability "
        f"{format_probability(summary.probability_best)}, given the noise of the "
        f"scores and of {ranking.num_test:,} test images."
    )


def _narrow_lead(ranking: Ranking) -> str:
    """Return a warning if the noise of the scores could swap the first two."""
    measure = ranking.measures[0]
    first, second = ranking.scored_rows[:2]
    lead = first.scores[measure] - second.scores[measure]
    # The scores vary independently, so the variances of their difference add up.
    noise = math.hypot(first.spread(measure) or 0, second.spread(measure) or 0)
    if lead == 0 or lead > 2 * noise:
        return ""
    return (
        f"The lead of {printable(first.checkpoint)} over "
        f"{printable(second.checkpoint)} ({lead:.2g}) is less than two standard "
        f"deviations of its noise ({2 * noise:.2g}), so another run could swap them."
    )
