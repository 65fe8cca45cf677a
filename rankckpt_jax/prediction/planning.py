"""Plans which checkpoint to fine-tune next within a budget of time.

The first is the one with the highest predicted accuracy. Each later one has the largest
expected gain per second, where the gain is that over the best accuracy so far. This is
the expected improvement per second of Bayesian optimization (Snoek et al. 2012, arXiv
1206.2944, section 3.2), over the finite set of checkpoints. Every result updates the
prediction of the others. Planning stops when a fine-tuned checkpoint is the best with a
sufficient probability.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rankckpt_jax.prediction.outcome import Prediction

CONFIDENCE = 0.9
"""Default of the probability at which planning stops."""


@dataclasses.dataclass(frozen=True)
class Step:
    """The next step of a plan.

    Attributes:
      checkpoint: Name of the checkpoint to fine-tune; empty to stop.
      reason: Why, in a phrase.
    """

    checkpoint: str
    reason: str


def next_step(
    prediction: Prediction,
    seconds: Mapping[str, float],
    confidence: float = CONFIDENCE,
) -> Step:
    """Return which checkpoint to fine-tune next.

    Args:
      prediction: Prediction of the pool, with the accuracies measured so far.
      seconds: Expected time of each checkpoint that can still be fine-tuned; less than
        a second counts as one.
      confidence: Probability in (0, 1] of being the best at which a measured checkpoint
        ends the plan.
    """
    measured = [c for c in prediction.checkpoints if c.measured is not None]
    if measured:
        first = max(measured, key=lambda c: c.probability_best)
        if first.probability_best >= confidence:
            chance = f"{100 * first.probability_best:.0f}%"
            return Step(
                "", f"{first.checkpoint} is the best with a probability of {chance}"
            )
    others = [c for c in prediction.checkpoints if c.checkpoint in seconds]
    if not others:
        return Step("", "every checkpoint is fine-tuned")
    if not measured:
        return Step(others[0].checkpoint, "it has the highest predicted accuracy")
    # Times can be unknown, and then are 0.
    rates = {
        c.checkpoint: (c.gain or 0.0) / max(seconds[c.checkpoint], 1.0) for c in others
    }
    best = max(rates, key=lambda name: rates[name])
    if rates[best] <= 0:
        return Step("", "no other checkpoint is expected to be better")
    return Step(best, "it has the largest expected gain for its time")
