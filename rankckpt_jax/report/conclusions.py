"""What a ranking says in plain sentences: who won, and how far to trust it."""

import dataclasses
import math

from rankckpt_jax import evaluation
from rankckpt_jax.errors import some
from rankckpt_jax.report.text import (
    count,
    format_certainty,
    format_percent,
    format_points,
    ordinal,
    printable,
)
from rankckpt_jax.results.ranking import Ranking


@dataclasses.dataclass(frozen=True)
class Warned:
    """One warning and every checkpoint that it is about.

    Attributes:
      topic: The measure or topic that it was filed under.
      text: The warning.
      checkpoints: Names, in the order of the ranking.
    """

    topic: str
    text: str
    checkpoints: tuple[str, ...]


def headline(ranking: Ranking) -> str:
    """One sentence: what was ranked first, and what fine-tuning says of it.

    Args:
      ranking: The ranking.

    Returns:
      A sentence of plain text, names made printable.
    """
    best, measure = ranking.best, printable(ranking.measures[0])
    if best is None:
        if not ranking.rows:
            return "There was no checkpoint to rank."
        if len(ranking.failed) == len(ranking.rows):
            return "Nothing could be ranked: every checkpoint failed."
        return f"Nothing could be ranked: no checkpoint has a score by {measure}."
    name, n = printable(best.checkpoint), len(ranking.scored_rows)
    if n == 1:
        start = f"{name} is the only checkpoint ranked"
    else:
        tied = sum(position == 1 for position in ranking.ranks) - 1
        tie = f", tied with {count(tied, 'other')}" if tied else ""
        start = f"{measure} ranks {name} first of {n}{tie}"
    accuracy, pairs = (
        best.finite_accuracy(),
        ranking.evaluated_rows(ranking.measures[0]),
    )
    if accuracy is None:
        return f"{start}."
    if len(pairs) == 1:
        return f"{start}; fine-tuned, it reaches {format_percent(accuracy)}."
    top = max(pairs, key=lambda row: row.finite_accuracy() or 0.0)
    top_accuracy = top.finite_accuracy() or 0.0
    if accuracy == top_accuracy:
        return f"{start}, and so does fine-tuning ({format_percent(accuracy)})."
    place = 1 + sum((row.finite_accuracy() or 0.0) > accuracy for row in pairs)
    return (
        f"{start}; fine-tuning puts it {ordinal(place)} of {len(pairs)}, "
        f"{format_points(top_accuracy - accuracy)} below "
        f"{printable(top.checkpoint)} ({format_percent(top_accuracy)})."
    )


def conclusions(ranking: Ranking) -> tuple[str, ...]:
    """Plain sentences on how far the ranking can be trusted, the main one first.

    A tau within chance is said to be so (`evaluation.is_significant`), and so is a lead
    of the first over the second that twice the spread of their scores could explain.

    Args:
      ranking: The ranking.

    Returns:
      None to seven sentences of plain text, names made printable.
    """
    if not ranking.scored_rows:
        return ()
    if len(ranking.scored_rows) < 2:
        return (
            "One checkpoint alone can be compared with nothing: that it is ranked says "
            "neither that it is good nor that it is bad.",
        )
    sentences = [_agreement(ranking)]
    for more in (
        _ties,
        _range,
        _better_measure,
        _better_baseline,
        _certainty,
        _narrow_lead,
    ):
        sentences += more(ranking)
    return tuple(sentences)


def grouped_warnings(ranking: Ranking) -> tuple[Warned, ...]:
    """Collects the warnings of all rows, each said once for all it is about.

    A warning about the task itself comes with every checkpoint; forty-one repetitions
    would hide the others.

    Args:
      ranking: The ranking.

    Returns:
      The distinct warnings in the order they first occur, all text printable.
    """
    names: dict[tuple[str, str], list[str]] = {}
    for row in ranking.rows:
        for topic, text in row.warnings.items():
            key = printable(topic), printable(text)
            names.setdefault(key, []).append(printable(row.checkpoint))
    return tuple(Warned(*key, tuple(value)) for key, value in names.items())


def _agreement(ranking: Ranking) -> str:
    """What the first measure's tau says, for a ranking of two or more."""
    measure = ranking.measures[0]
    name, n = printable(measure), len(ranking.evaluated_rows(measure))
    if n == 0:
        return (
            "No ranked checkpoint was fine-tuned, so nothing here says how far "
            f"{name} can be trusted."
        )
    if n == 1:
        return (
            "Only one ranked checkpoint was fine-tuned; fine-tune more to see whether "
            f"{name} orders them rightly."
        )
    tau = ranking.evaluation[measure]["kendall"]
    if math.isnan(tau):
        return (
            f"Whether {name} agrees with fine-tuning is undefined: its scores or the "
            f"accuracies of these {n} checkpoints are all equal."
        )
    if n < 5:
        return (
            f"Too few to tell: {name} has Kendall's tau {tau:.2f}, but no order of {n} "
            "checkpoints is beyond chance; compare at least five."
        )
    spread = f"random orders spread by {evaluation.kendall_null_deviation(n):.2f}"
    evidence = f"Kendall's tau {tau:.2f} over {n} checkpoints"
    if not evaluation.is_significant(tau, n):
        return f"{evidence} is within chance for {name} ({spread} around 0)."
    verb = "agrees with" if tau > 0 else "contradicts"
    return f"{name} {verb} fine-tuning: {evidence} ({spread} around 0)."


def _ties(ranking: Ranking) -> list[str]:
    """Says which of the ranked have one score, so that their order means nothing."""
    groups: dict[int, list[str]] = {}
    for row, position in zip(ranking.rows, ranking.ranks, strict=True):
        if position is not None:
            groups.setdefault(position, []).append(printable(row.checkpoint))
    tied = {place: names for place, names in groups.items() if len(names) > 1}
    if not tied:
        return []
    measure = printable(ranking.measures[0])
    if len(groups) == 1:
        return [
            f"{measure} tells none of the {len(ranking.scored_rows)} checkpoints from "
            "another: their scores are equal, and they stand in the order of their "
            "names."
        ]
    told = "; ".join(
        f"{some(names, most=4)} (all {ordinal(place)})" for place, names in tied.items()
    )
    return [
        f"{measure} cannot tell these from each other, their scores are equal: {told}."
    ]


def _better_measure(ranking: Ranking) -> list[str]:
    """Names the measure that agrees better than the first, if any."""
    first = ranking.evaluation[ranking.measures[0]]["kendall"]
    taus = {m: ranking.evaluation[m]["kendall"] for m in ranking.measures}
    better = {m: tau for m, tau in taus.items() if tau > first}
    if not better:
        return []
    measure = max(better, key=better.__getitem__)
    n = len(ranking.evaluated_rows(measure))
    sentence = f"{printable(measure)} agrees better (tau {better[measure]:.2f})"
    versus = ranking.assessment.measures[measure].versus_first
    if versus is None or not versus.p_value <= 0.05:
        sentence += f", but over {n} checkpoints that difference may be chance"
    return [f"{sentence}."]


def _range(ranking: Ranking) -> list[str]:
    """Says how far the tau would move with other checkpoints."""
    measured = ranking.assessment.measures.get(ranking.measures[0])
    # Resampling fewer says little.
    if measured is None or len(ranking.evaluated_rows(ranking.measures[0])) < 8:
        return []
    low, high = measured.intervals["kendall"]
    if math.isnan(low):
        return []
    return [
        f"With other checkpoints of the kind tau would lie between {low:.2f} and "
        f"{high:.2f} in 95 of 100 cases."
    ]


def _better_baseline(ranking: Ranking) -> list[str]:
    """Names what ranks as well without looking at an image, if anything does."""
    tau = ranking.evaluation[ranking.measures[0]]["kendall"]
    as_well = {
        name: baseline
        for name, baseline in ranking.assessment.baselines.items()
        if baseline.n >= 5 and baseline.scores["kendall"] >= tau
    }
    if not as_well:
        return []
    name = max(as_well, key=lambda name: as_well[name].scores["kendall"])
    return [
        f"The {name} alone, without looking at an image, orders the "
        f"{as_well[name].n} checkpoints no worse "
        f"(tau {as_well[name].scores['kendall']:.2f})."
    ]


def _certainty(ranking: Ranking) -> list[str]:
    """Says how likely the first is to be truly the best."""
    measured = ranking.assessment.measures.get(ranking.measures[0])
    best = ranking.best
    if measured is None or best is None or not ranking.num_test:
        return []
    return [
        f"Given the noise of the scores and of {ranking.num_test:,} test images, the "
        "checkpoint ranked first is truly the best of these with probability "
        f"{format_certainty(measured.probability_best)}."
    ]


def _narrow_lead(ranking: Ranking) -> list[str]:
    """Says so where the spread of the scores could swap the first two."""
    measure = ranking.measures[0]
    first, second = ranking.scored_rows[:2]
    lead = first.scores[measure] - second.scores[measure]
    # The scores vary independently, so the variances of their difference add up.
    noise = math.hypot(first.spread(measure) or 0, second.spread(measure) or 0)
    if lead == 0 or lead > 2 * noise:
        return []
    return [
        f"The lead of {printable(first.checkpoint)} over "
        f"{printable(second.checkpoint)} ({lead:.2g}) is less than two standard "
        f"deviations of its noise ({2 * noise:.2g}): another run could swap them."
    ]
