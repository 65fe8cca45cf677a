"""Plans which checkpoint to fine-tune next within a budget of time.

The first is the one with the highest predicted accuracy. Each later one has the largest
expected gain per second, where the gain is that over the best accuracy so far. This is
the expected improvement per second of Bayesian optimization (Snoek et al. 2012, arXiv
1206.2944, section 3.2), over the finite set of checkpoints. Every result updates the
prediction of the others. Planning stops when a fine-tuned checkpoint is the best with a
sufficient probability, or when no other fits into the time that is left.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from rankckpt_jax.errors import InputError
from rankckpt_jax.prediction.outcome import Prediction

CONFIDENCE = 0.9
"""Default of the probability at which planning stops."""

_UNITS = {"s": 1, "min": 60, "h": 3600}

_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h)")


@dataclasses.dataclass(frozen=True)
class Step:
    """The next step of a plan.

    Attributes:
      checkpoint: Name of the checkpoint to fine-tune; empty to stop.
      reason: Why, in a phrase.
    """

    checkpoint: str
    reason: str


def parse_seconds(value: Any) -> float:
    """Return a budget of time in seconds, or 0 if it has no unit of time.

    Example:
      >>> parse_seconds("1.5h"), parse_seconds(2000)
      (5400.0, 0.0)

    Raises:
      InputError: It is no time.
    """
    found = _TIME.fullmatch(str(value).strip())
    if found is None:
        return 0.0
    seconds = float(found[1]) * _UNITS[found[2]]
    if seconds == 0:
        raise InputError(
            "A budget of no time fine-tunes nothing",
            where="config.finetune.budget",
            expected="a time such as 90s, 30min or 2h",
            found=repr(value),
        )
    return seconds


def next_step(
    prediction: Prediction,
    seconds: Mapping[str, float],
    left: float,
    confidence: float = CONFIDENCE,
) -> Step:
    """Return which checkpoint to fine-tune next.

    Args:
      prediction: Prediction of the pool, with the accuracies measured so far.
      seconds: Expected time of each checkpoint that may still be fine-tuned; less than
        a second counts as one.
      left: Seconds that are left.
      confidence: Probability in (0, 1] of being the best at which a measured checkpoint
        ends the plan.
    """
    measured = [c for c in prediction.checkpoints if c.measured is not None]
    if measured:
        first = max(measured, key=lambda c: c.probability_best)
        if first.probability_best >= confidence:
            return Step(
                "",
                f"{first.checkpoint} is the best with a probability of "
                f"{100 * first.probability_best:.0f}%",
            )
    others = [c for c in prediction.checkpoints if c.checkpoint in seconds]
    if not others:
        return Step("", "every checkpoint is fine-tuned")
    affordable = [c for c in others if seconds[c.checkpoint] <= left]
    if not affordable:
        least = min(seconds[c.checkpoint] for c in others)
        reason = f"{max(left, 0):.0f} s are left, and the shortest takes {least:.0f} s"
        return Step("", reason)
    if not measured:
        return Step(affordable[0].checkpoint, "it has the highest predicted accuracy")
    # Times can be unknown, and then are 0.
    rates = {
        c.checkpoint: (c.gain or 0.0) / max(seconds[c.checkpoint], 1.0)
        for c in affordable
    }
    best = max(rates, key=lambda name: rates[name])
    if rates[best] <= 0:
        return Step("", "no other checkpoint is expected to be better")
    return Step(best, "it has the largest expected gain for its time")
