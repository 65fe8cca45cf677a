"""The recommended checkpoint and the facts that speak for it, as plain data."""

from __future__ import annotations

import dataclasses

from rankckpt_jax import measures
from rankckpt_jax.results.lead import Lead, measure_lead
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import Row


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """The checkpoint to use, and what the measures and fine-tuning say about it.

    Attributes:
      use: The checkpoint to use, or None if none can be recommended. It is `picked`,
        or the one with the highest accuracy if `is_measured`.
      is_measured: Whether `use` has the highest of several accuracies, that of `picked`
        among them, or the highest within a budget of time.
      picked: The row ranked first by the first measure; None if all scores are equal.
      is_left: Whether `use` is the checkpoint that successive halving left.
      measured: The rows with an accuracy, the highest first, then in ranked order.
      counted: The measures of the images that order the checkpoints and score `use`.
      agreeing: Those of them that rank `use` first.
      lead: The lead of `picked` over the next one, if there is a lower score.
    """

    use: Row | None
    is_measured: bool
    picked: Row | None
    measured: tuple[Row, ...]
    counted: tuple[str, ...]
    agreeing: tuple[str, ...]
    lead: Lead | None
    is_left: bool = False

    @property
    def loss(self) -> float | None:
        """How far the accuracy of `picked` is below the highest one, if measured."""
        if not self.is_measured or self.picked is None or self.use is None:
            return None
        own = self.picked.finite_accuracy()
        return None if own is None else (self.use.finite_accuracy() or 0.0) - own


def recommend(ranking: Ranking) -> Recommendation:
    """Choose the checkpoint to use.

    After successive halving it is the one that was left. If the row ranked first and
    others were fine-tuned, or within a budget of time, it is the one with the highest
    accuracy. Otherwise it is the row ranked first.
    """
    first = ranking.measures[0]
    scores = {row.score(first) for row in ranking.scored_rows}
    is_tie = len(ranking.scored_rows) > 1 and len(scores) == 1
    picked = None if is_tie else ranking.best
    measured = sorted(
        (r for r in ranking.rows if not r.failure and r.finite_accuracy() is not None),
        key=lambda row: -(row.finite_accuracy() or 0.0),
    )
    is_planned = any(row.started is not None for row in ranking.rows)
    is_measured = len(measured) > 1 and (picked is None or picked in measured)
    is_measured = is_measured or (is_planned and bool(measured))
    left = next((r for r in measured if r.tried and r.tried.is_left), None)
    is_measured = is_measured and left is None
    use = left or (measured[0] if is_measured else picked)
    counted: list[str] = []
    if use is not None:
        counted = [m for m in ranking.measures if orders(ranking, m)]
        counted = [m for m in counted if use.score(m) is not None]
    return Recommendation(
        use,
        is_measured,
        picked,
        tuple(measured),
        tuple(counted),
        tuple(m for m in counted if use is not None and rank_of(ranking, use, m) == 1),
        measure_lead(ranking) if picked is not None else None,
        left is not None,
    )


def orders(ranking: Ranking, measure: str) -> bool:
    """Return whether a measure that reads the images gives scores that differ."""
    rows = [row for row in ranking.rows if row.score(measure) is not None]
    return (
        measures.reads_images(measure)
        and len({row.score(measure) for row in rows}) > 1
        and any(measure not in row.saturated for row in rows)
    )


def rank_of(ranking: Ranking, row: Row, measure: str) -> int | None:
    """Return the rank of a row by any measure, from 1, or None without a score."""
    own = row.score(measure)
    if own is None:
        return None
    scores = [other.score(measure) for other in ranking.rows]
    return 1 + sum(score is not None and score > own for score in scores)
