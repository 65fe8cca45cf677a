"""Plans which checkpoint to fine-tune next within a budget of time.

The first is the one with the highest predicted accuracy. Each later one has the largest
expected gain per second, where the gain is that over the best accuracy so far. This is
the expected improvement per second of Bayesian optimization (Snoek et al. 2012, arXiv
1206.2944, section 3.2), over the finite set of checkpoints. Every result updates the
prediction of the others. Planning stops when the best of all checkpoints is among those
that are fine-tuned, with a sufficient probability.
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
      confidence: Probability in (0, 1] that the best one is measured at which the plan
        ends. The noise of test images can leave open which of the measured ones it is,
        and fine-tuning others would not tell.
    """
    measured = [c for c in prediction.checkpoints if c.measured is not None]
    if measured:
        chance = sum(c.probability_best for c in measured)
        if chance >= confidence:
            return Step(
                "",
                f"the best is among the {len(measured)} fine-tuned ones with a "
                f"probability of {100 * chance:.0f}%",
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
