"""The evidence against the checkpoint that a ranking recommends."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankckpt_jax import measures
from rankckpt_jax.errors import some
from rankckpt_jax.results.agreement import BASELINES, Agreement
from rankckpt_jax.results.formatting import format_p_value, printable
from rankckpt_jax.results.grouped_warnings import GroupedWarning
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.recommendation import Recommendation, orders
from rankckpt_jax.results.row import Row

_SIGNIFICANCE_LEVEL = 0.05

MIN_SIGNIFICANT = 5
"""Orders of fewer checkpoints are never significant; see `is_significant`."""

_FAR = 1.5
"""Ratio of image sizes from which features may differ much from the trained ones."""


def find_objections(
    ranking: Ranking,
    agreement: Agreement,
    warnings: Sequence[GroupedWarning],
    recommendation: Recommendation,
) -> tuple[str, ...]:
    """Return the evidence against a recommendation, the strongest first.

    Args:
      ranking: The ranking.
      agreement: Its agreement with fine-tuning.
      warnings: The warnings of its rows.
      recommendation: The recommended checkpoint.
    """
    use = recommendation.use
    if use is None:
        return ()
    own = _own_warning(ranking, warnings, use)
    is_tuned = recommendation.is_measured or recommendation.is_left
    objections = (
        _equal_scores(ranking),
        _better_baseline(ranking, agreement),
        # A measured accuracy outweighs the order of a baseline.
        "" if is_tuned else _other_favorite(ranking, use),
        own,
        _image_sizes(ranking),
        _better_measure(ranking, agreement),
        _saturated_measures(ranking),
        "" if own else _few_images(use),
    )
    return tuple(filter(None, objections))


def _equal_scores(ranking: Ranking) -> str:
    rows, first = ranking.scored_rows, ranking.measures[0]
    if len(rows) < 2 or len({row.score(first) for row in rows}) > 1:
        return ""
    saturated = "saturated and " if ranking.ranks_nothing else ""
    return (
        f"{printable(first)} ranks nothing: the scores of all {len(rows)} checkpoints "
        f"are {saturated}equal."
    )


def _better_baseline(ranking: Ranking, agreement: Agreement) -> str:
    """Return a sentence on the best baseline, if it does as well as the measure."""
    first = ranking.measures[0]
    tau = ranking.evaluation[first]["kendall"]
    if not measures.reads_images(first):
        return ""
    known = [
        baseline
        for baseline in agreement.all_baselines
        if baseline.n >= MIN_SIGNIFICANT and baseline.scores["kendall"] >= tau
    ]
    if not known:
        return ""
    best = max(known, key=lambda baseline: baseline.scores["kendall"])
    well = "better" if best.scores["kendall"] > tau else "equally well"
    return (
        f"A trivial baseline does {well}: sorting by {best.name} gives tau "
        f"{best.scores['kendall']:.2f}."
    )


def _other_favorite(ranking: Ranking, use: Row) -> str:
    """Return a sentence on the baseline that puts another checkpoint first.

    The accuracy on the source data set tells most, a larger network less.
    """
    rows = ranking.scored_rows
    for measure in ("source_accuracy", "num_parameters"):
        name, value = BASELINES[measure]
        known = [(number, row) for row in rows if (number := value(row)) is not None]
        own = value(use)
        if own is None or len(known) < 2:
            continue
        highest, best = max(known, key=lambda pair: pair[0])
        if highest == own or measure == ranking.measures[0]:
            return ""
        return f"Sorting by {name} puts {printable(best.checkpoint)} first."
    return ""


def _own_warning(ranking: Ranking, warnings: Sequence[GroupedWarning], use: Row) -> str:
    """Return the warning of the recommended checkpoint's score."""
    first, name = printable(ranking.measures[0]), printable(use.checkpoint)
    for warning in warnings:
        if first in warning.topics and name in warning.checkpoints:
            return warning.text
    return ""


def _image_sizes(ranking: Ranking) -> str:
    """Return a sentence on checkpoints that saw images far from their own size."""
    sized = [row for row in ranking.rows if not row.failure]
    far = [
        (row.image_size, row.own_image_size, printable(row.checkpoint))
        for row in sized
        if row.image_size
        and row.own_image_size
        and not 1 / _FAR < row.image_size / row.own_image_size < _FAR
    ]
    if not far:
        return ""
    used, own, names = zip(*far, strict=True)
    is_all = len(far) == len(sized) > 2
    whose = f"all {len(far)} checkpoints" if is_all else some(names, most=3)
    return (
        f"Images of {_range(used)} pixels are far from the own size of {whose} "
        f"({_range(own)} pixels); set `image_size=0` to use the own size."
    )


def _range(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low} to {high}"


def _better_measure(ranking: Ranking, agreement: Agreement) -> str:
    """Return a sentence on the measure that agrees best, if it is not the first."""
    taus = {
        measure: ranking.evaluation[measure]["kendall"]
        for measure in ranking.measures
        if measures.reads_images(measure)
    }
    first = ranking.evaluation[ranking.measures[0]]["kendall"]
    better = {measure: tau for measure, tau in taus.items() if tau > first}
    if not better or agreement.measures[ranking.measures[0]].n < MIN_SIGNIFICANT:
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


def _saturated_measures(ranking: Ranking) -> str:
    """Return a sentence on the further measures that saturate and rank nothing."""
    names, regimes = [], set()
    for measure in ranking.measures[1:]:
        rows = [row for row in ranking.rows if row.score(measure) is not None]
        is_saturated = len(rows) > 1 and all(measure in row.saturated for row in rows)
        if is_saturated and not orders(ranking, measure):
            names.append(printable(measure))
            regimes |= {printable(row.saturated[measure]) for row in rows}
    if not names:
        return ""
    verbs = ("is", "ranks") if len(names) == 1 else ("are", "rank")
    regime = f" ({', '.join(sorted(regimes))})"
    return f"{some(names)} {verbs[0]} saturated here{regime} and {verbs[1]} nothing."


def _few_images(use: Row) -> str:
    """Return a sentence if there are no more images than feature dimensions."""
    if not use.extract_images or not use.feature_dim:
        return ""
    if use.extract_images > use.feature_dim:
        return ""
    return (
        f"There are only {use.extract_images:,} images for {use.feature_dim:,} feature "
        "dimensions."
    )
