"""The lead of the checkpoint ranked first, in units of the noise of its score."""

from __future__ import annotations

import dataclasses
import math

from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import Row

_MIN_RATIO = 2.0
"""A difference of two standard deviations is significant at about 5 %."""


@dataclasses.dataclass(frozen=True)
class Lead:
    """The lead of the checkpoint ranked first over the next one.

    Attributes:
      first: The row ranked first.
      second: The first row with a lower score.
      noise: Standard deviation of the difference of their scores, or None if unknown.
      ratio: The difference divided by the noise; None if that is unknown or zero.
      close: The rows with lower scores whose difference from the first is at most two
        standard deviations.
    """

    first: Row
    second: Row
    noise: float | None
    ratio: float | None
    close: tuple[Row, ...]

    @property
    def text(self) -> str:
        """The ratio with two significant digits, or one decimal."""
        if self.ratio is None:
            return ""
        if self.ratio >= 100:
            return "more than 100"
        return f"{self.ratio:.2g}" if self.ratio < 1 else f"{self.ratio:.1f}"


def measure_lead(ranking: Ranking) -> Lead | None:
    """Return the lead by the first measure, or None if there is no lower score."""
    measure = ranking.measures[0]
    rows = ranking.scored_rows
    lower = [r for r in rows if r.scores[measure] < rows[0].scores[measure]]
    if not lower:
        return None
    first, second = rows[0], lower[0]
    noises = [_noise(first, row, measure) for row in lower]
    differences = [first.scores[measure] - row.scores[measure] for row in lower]
    close = tuple(
        row
        for row, noise, difference in zip(lower, noises, differences, strict=True)
        if noise is not None and difference <= _MIN_RATIO * noise
    )
    ratio = differences[0] / noises[0] if noises[0] else None
    return Lead(first, second, noises[0], ratio, close)


def _noise(one: Row, other: Row, measure: str) -> float | None:
    """Return the standard deviation of a difference of scores, or None if unknown."""
    spreads = one.spread(measure), other.spread(measure)
    if spreads[0] is None or spreads[1] is None:
        return None
    # The scores vary independently, so the variances of their difference add up.
    return math.hypot(spreads[0], spreads[1])
