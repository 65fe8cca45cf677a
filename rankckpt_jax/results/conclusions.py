"""The conclusion: which checkpoint to use and how sure that is, in plain sentences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from rankckpt_jax import evaluation, measures
from rankckpt_jax.errors import some
from rankckpt_jax.results import verification
from rankckpt_jax.results.agreement import Agreement
from rankckpt_jax.results.costs import Costs
from rankckpt_jax.results.dropped import describe_dropped, describe_started
from rankckpt_jax.results.figures import Figure, main_figures
from rankckpt_jax.results.formatting import (
    format_metric,
    format_points,
    format_probability,
    ordinal,
    printable,
)
from rankckpt_jax.results.grouped_warnings import GroupedWarning
from rankckpt_jax.results.objections import MIN_SIGNIFICANT, find_objections
from rankckpt_jax.results.other_metrics import OtherMetric
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.recommendation import (
    Recommendation,
    orders,
    rank_of,
    recommend,
)
from rankckpt_jax.results.saved_images import describe_saved_images

_MIN_FOR_REGRET = 6
"""Of fewer checkpoints, fine-tuning three is at least half of the work."""

_MOST_AGAINST = 3
"""Further objections are among the details."""


@dataclasses.dataclass(frozen=True)
class Conclusion:
    """What follows from a ranking. All texts are printable.

    Attributes:
      answer: The checkpoint to use as a sentence in three parts; the middle one is the
        checkpoint's name, or empty if none can be recommended.
      support: At most three sentences on the evidence for it.
      verification: One sentence: whether fine-tuning verified the ranking, and how far.
      command: The command that fine-tunes the best two, or empty.
      against: The strongest evidence against it, at most three statements.
      details: Further sentences, such as ties and intervals.
      figures: The four main numbers as (name, value, note).
    """

    answer: tuple[str, str, str]
    support: tuple[str, ...] = ()
    verification: str = ""
    command: str = ""
    against: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """All sentences in reading order, without the command."""
        evidence = *self.support, self.verification, *self.against, *self.details
        return tuple(filter(None, ("".join(self.answer), *evidence)))


def conclude(
    ranking: Ranking,
    agreement: Agreement,
    costs: Costs | None,
    warnings: Sequence[GroupedWarning],
    others: Sequence[OtherMetric] = (),
) -> Conclusion:
    """Return the conclusion of a ranking.

    Args:
      ranking: The ranking.
      agreement: Its agreement with fine-tuning.
      costs: Its costs, if known.
      warnings: The warnings of its rows.
      others: The other metrics of fine-tuning.
    """
    recommendation = recommend(ranking)
    figures = main_figures(ranking, agreement, costs, recommendation)
    if recommendation.use is None:
        is_pool = len(ranking.rows) - len(ranking.failed) > 1
        support = [_other_measure(ranking)] if is_pool else []
        return Conclusion(
            _no_answer(ranking),
            tuple(support),
            details=describe_saved_images(ranking),
            figures=figures,
        )
    evidence = (
        _accuracy(ranking, recommendation),
        _votes(ranking, recommendation),
        _lead(ranking, recommendation),
    )
    against = find_objections(ranking, agreement, warnings, recommendation)
    details = (
        *against[_MOST_AGAINST:],
        *describe_saved_images(ranking),
        describe_dropped(ranking),
        describe_started(ranking),
        _layers(ranking),
        _ties(ranking),
        _interval(ranking, agreement),
        _regret(ranking, agreement),
        _probability_best(ranking, agreement),
        *(other.sentence for other in others),
    )
    command = ""
    if len(ranking.scored_rows) > 1 and agreement.measures[ranking.measures[0]].n < 2:
        command = verification.command(ranking.provenance.get("config"))
    return Conclusion(
        _answer(ranking, recommendation),
        tuple(filter(None, evidence)),
        _verification(ranking, agreement, command),
        command,
        against[:_MOST_AGAINST],
        tuple(filter(None, details)),
        figures,
    )


def _no_answer(ranking: Ranking) -> tuple[str, str, str]:
    measure, n = printable(ranking.measures[0]), len(ranking.scored_rows)
    if not ranking.rows:
        text = "There are no checkpoints to rank."
    elif len(ranking.failed) == len(ranking.rows):
        text = "No checkpoint could be ranked: all of them failed."
    elif not n:
        text = f"No checkpoint could be ranked: none has a score by {measure}."
    else:
        how = "saturated and equal" if ranking.ranks_nothing else "equal"
        text = f"{measure} ranks nothing: the scores of all {n} checkpoints are {how}."
    return text, "", ""


def _answer(ranking: Ranking, recommendation: Recommendation) -> tuple[str, str, str]:
    use = recommendation.use
    assert use is not None
    name = printable(use.checkpoint)
    if recommendation.is_measured or recommendation.is_left:
        return "Use ", name, "."
    if len(ranking.scored_rows) == 1:
        return "", name, " is the only checkpoint ranked."
    first = ranking.ranks.count(1)
    tied = [printable(row.checkpoint) for row in ranking.scored_rows[1:first]]
    if not tied:
        return "Use ", name, "."
    others = tied[0] if len(tied) == 1 else f"{len(tied)} others"
    return "Use ", name, f", tied with {others}."


def _accuracy(ranking: Ranking, recommendation: Recommendation) -> str:
    """Return the sentence on the accuracy, and on the loss of the measure's choice."""
    use, picked = recommendation.use, recommendation.picked
    if use is None or (accuracy := use.finite_accuracy()) is None:
        return ""
    metric = ranking.metric
    sentence = f"Fine-tuned, it reaches {format_metric(accuracy, metric)}"
    if metric != "accuracy":
        sentence += f" {ranking.metric_title}"
    if recommendation.is_left and use.tried is not None:
        tried = [row for row in ranking.rows if row.tried is not None]
        return (
            f"{sentence}. Successive halving left it of {len(tried)} checkpoints, "
            f"after {use.tried.steps:,} steps."
        )
    if not recommendation.is_measured:
        return f"{sentence}."
    n = len(recommendation.measured)
    if n == 1:
        return f"{sentence}, the only one that was fine-tuned."
    is_all = n == len(ranking.rows) - len(ranking.failed)
    sentence += f", the highest of {n}{'' if is_all else ' fine-tuned'}"
    loss, measure = recommendation.loss, printable(ranking.measures[0])
    if loss is None or picked is None:
        return f"{sentence}."
    if not loss:
        return f"{sentence}; following {measure} loses nothing."
    return (
        f"{sentence}; following {measure} would lose "
        f"{format_points(loss, metric=metric)} ({printable(picked.checkpoint)}, "
        f"{format_metric(accuracy - loss, metric)})."
    )


def _votes(ranking: Ranking, recommendation: Recommendation) -> str:
    """Return the sentence on how many measures rank the checkpoint first."""
    n, first = len(ranking.scored_rows), printable(ranking.measures[0])
    use, counted = recommendation.use, recommendation.counted
    assert use is not None
    if n == 1:
        return (
            "One checkpoint cannot be compared with others. Add checkpoints to the "
            "pool."
        )
    if not counted:
        if measures.reads_images(ranking.measures[0]) or use is not ranking.best:
            return ""
        return f"{first} ranks it first of {n}, without reading the images."
    k, agreeing = len(counted), recommendation.agreeing
    rank = rank_of(ranking, use, counted[0]) or 1
    place = "first" if rank == 1 else ordinal(rank)
    if k == 1:
        other = "no other measure of the images orders the checkpoints"
        return f"{printable(counted[0])} ranks it {place} of {n}; {other}."
    if len(agreeing) == k:
        return f"{'Both' if k == 2 else f'All {k}'} measures rank it first of {n}."
    if not agreeing:
        return (
            f"None of {k} measures ranks it first of {n}; {printable(counted[0])} "
            f"ranks it {place}."
        )
    verb = "ranks" if len(agreeing) == 1 else "rank"
    only = "Only " if 2 * len(agreeing) < k else ""
    others = [measure for measure in counted if measure not in agreeing]
    return (
        f"{only}{len(agreeing)} of {k} measures {verb} it first of {n}; "
        f"{_favorites(ranking, others)}."
    )


def _favorites(ranking: Ranking, others: Sequence[str]) -> str:
    """Return the phrase on the checkpoints that other measures rank first."""
    names = []
    for measure in others:
        scores = {row.checkpoint: row.score(measure) for row in ranking.rows}
        known = {name: score for name, score in scores.items() if score is not None}
        names.append(printable(max(known, key=known.__getitem__)))
    if len(others) == 1:
        return f"{printable(others[0])} ranks {names[0]} first"
    names = list(dict.fromkeys(names))
    more = " or another" if len(names) > 2 else ""
    return f"the others rank {' or '.join(names[:2])}{more} first"


def _lead(ranking: Ranking, recommendation: Recommendation) -> str:
    """Return the sentence on whether the lead is larger than the noise."""
    lead, measure = recommendation.lead, ranking.measures[0]
    if lead is None or not measures.reads_images(measure):
        return ""
    first, second = (printable(row.checkpoint) for row in (lead.first, lead.second))
    is_used = lead.first is recommendation.use
    it = "it" if is_used else first
    subject = f"{'Its' if is_used else 'The'} lead"
    subject += f" over {second}" if is_used else f" of {first} over {second}"
    if lead.noise is None:
        if recommendation.is_measured or recommendation.is_left:
            return ""
        return (
            f"{subject} cannot be judged, because the noise of {printable(measure)} is "
            "unknown; set `num_bootstrap=20`."
        )
    if lead.ratio is None:
        return f"{subject} is larger than the noise of the score, which is zero."
    size = f"{lead.text} times the noise of the score"
    if not lead.close:
        return f"{subject} is {size}."
    names = [printable(row.checkpoint) for row in lead.close]
    others = names[0]
    if len(names) > 1:
        start = ranking.scored_rows.index(lead.second)
        is_next = lead.close == ranking.scored_rows[start : start + len(names)]
        which = f"the next {len(names)}" if is_next else f"{len(names)} others"
        others = f"{which} ({some(names, most=4)})"
    if lead.second in lead.close:
        return f"{subject} is only {size}, so {it} may not be better than {others}."
    return f"{subject} is {size}, but {it} may not be better than {others}."


def _verification(ranking: Ranking, agreement: Agreement, command: str) -> str:
    """Return the sentence on whether fine-tuning verified the ranking."""
    total = len(ranking.scored_rows)
    if total < 2:
        return ""
    name = printable(ranking.measures[0])
    n = agreement.measures[ranking.measures[0]].n
    if n == 0:
        advice = "" if command else "; give the accuracies of at least five"
        return (
            f"Not verified: no ranked checkpoint was fine-tuned on this task{advice}."
        )
    if any(row.tried for row in ranking.scored_rows):
        return (
            "Not verified: checkpoints that successive halving dropped had fewer "
            "steps, so that their accuracies are not compared."
        )
    if n == 1:
        return f"Not verified: only 1 of {total} ranked checkpoints was fine-tuned."
    tau = ranking.evaluation[ranking.measures[0]]["kendall"]
    if math.isnan(tau):
        return (
            f"Not verified: the scores or the accuracies of {n} fine-tuned checkpoints "
            "are all equal."
        )
    share = f"{n} of {total}" if n < total else "both" if n == 2 else f"all {n}"
    if n < MIN_SIGNIFICANT:
        return (
            f"Verified in part: {share} checkpoints were fine-tuned (Kendall's tau "
            f"{tau:.2f}), but fewer than five are never significant."
        )
    evidence = (
        f"Kendall's tau {tau:.2f} over {share} checkpoints; random orders have 0 ± "
        f"{agreement.random_deviation:.2f}"
    )
    if not evaluation.is_significant(tau, n):
        return (
            f"Not verified: the agreement of {name} with fine-tuning is not "
            f"significant ({evidence})."
        )
    if tau > 0:
        return f"Verified: {name} agrees with fine-tuning ({evidence})."
    return f"Refuted: {name} contradicts fine-tuning ({evidence})."


def _layers(ranking: Ranking) -> str:
    """Return a sentence on scores that are not those of the last features."""
    measure = ranking.measures[0]
    name = printable(measure)
    layers = [
        row.layers[measure] for row in ranking.scored_rows if measure in row.layers
    ]
    if not layers:
        return ""
    if set(layers) == {"blocks"}:
        return (
            f"{name} scores the last blocks of the networks side by side "
            "(`config.features_from=blocks`)."
        )
    chosen = sum(layer != "last" for layer in layers)
    return (
        f"Each score by {name} is the best of the last features and of the last blocks "
        "(`config.features_from=last,blocks`). Such a selection is optimistic, because "
        f"noise raises it. It is a block for {chosen} of {len(layers)} checkpoints."
    )


def _ties(ranking: Ranking) -> str:
    """Return a sentence on the checkpoints that the first measure does not order."""
    by_rank: dict[int, list[str]] = {}
    for row, rank in zip(ranking.rows, ranking.ranks, strict=True):
        if rank is not None:
            by_rank.setdefault(rank, []).append(printable(row.checkpoint))
    ties = {rank: names for rank, names in by_rank.items() if len(names) > 1}
    # That all scores are equal is an objection already.
    if not ties or len(by_rank) == 1:
        return ""
    groups = "; ".join(
        f"{some(names, most=4)} (all {ordinal(rank)})" for rank, names in ties.items()
    )
    return f"{printable(ranking.measures[0])} gives equal scores to: {groups}."


def _interval(ranking: Ranking, agreement: Agreement) -> str:
    """Return the sentence on the confidence interval of Kendall's tau."""
    summary = agreement.measures[ranking.measures[0]]
    low, high = summary.interval
    if math.isnan(low):
        return ""
    return (
        f"Kendall's tau {summary.scores['kendall']:.2f}, 95 % confidence interval "
        f"[{low:.2f}, {high:.2f}] (jackknife over checkpoints)."
    )


def _regret(ranking: Ranking, agreement: Agreement) -> str:
    """Return the sentence on the loss of fine-tuning only a few checkpoints."""
    summary = agreement.measures[ranking.measures[0]]
    if summary.n < _MIN_FOR_REGRET:
        return ""

    def lost(value: float) -> str:
        return format_points(value, metric=ranking.metric) if value > 0 else "nothing"

    return (
        f"Of {summary.n} fine-tuned checkpoints, taking the first by "
        f"{printable(ranking.measures[0])} loses {lost(summary.judgment.regret_1)}, "
        f"the best of the first three {lost(summary.judgment.regret_3)}, and one at "
        f"random {lost(agreement.random_order.judgment.regret_1)} on average."
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


def _other_measure(ranking: Ranking) -> str:
    """Return the sentence on the measures to use if the first one ranks nothing."""
    first, *others = ranking.measures
    ranks = [name for name in others if orders(ranking, name)]
    # A measure that needs no care is better.
    warned = {name for row in ranking.rows for name in row.warnings}
    ranks = [name for name in ranks if name not in warned] or ranks
    reason = f" The warning of {printable(first)} states the reason."
    reason = reason if first in warned else ""
    if ranks:
        verb, one = ("ranks", "it") if len(ranks) == 1 else ("rank", "one of them")
        return (
            f"{some(map(printable, ranks))} still {verb} these checkpoints: put {one} "
            f"first in `config.measures`.{reason}"
        )
    known = [name for name in _robust_measures() if name not in ranking.measures]
    fix = f"Rank by {known[0]} instead" if known else "Add images"
    return f"No computed measure ranks these checkpoints. {fix}.{reason}"


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
