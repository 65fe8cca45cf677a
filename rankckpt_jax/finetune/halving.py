"""Successive halving: a budget of steps is spent on the trials that learn best.

All trials start. After each round the worse half is dropped, until one trial is left
(Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", AISTATS 2016, figure 1). With n trials there are ceil(log2 n) rounds of
equal cost: in round k each of the n_k trials takes floor(B / (n_k ceil(log2 n))) more
steps of the budget B.

The paper keeps floor(n_k / 2) trials; here it is ceil(n_k / 2), so that every round
compares at least two.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from rankckpt_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
      trials: Number of trials in it.
      step: Steps that each of them has taken at its end.
    """

    trials: int
    step: int


def plan(num_trials: int, budget: int) -> tuple[Round, ...]:
    """Return the rounds.

    Example:
      >>> plan(4, 800)
      (Round(trials=4, step=100), Round(trials=2, step=300))

    Args:
      num_trials: Number of trials at the start, at least 1.
      budget: Steps of all trials together.

    Returns:
      At least one round. The trials of the last round take all its `step` steps.

    Raises:
      InputError: The budget is less than one step per trial and round.
    """
    count = max(1, math.ceil(math.log2(num_trials)))
    if budget < num_trials * count:
        raise InputError(
            "The budget of fine-tuning is too small",
            where="config.finetune.budget",
            expected=f"at least {num_trials * count} steps for {num_trials} trials in "
            f"{count} rounds; some hundred steps per trial are sensible",
            found=str(budget),
            fix="raise it, or lower config.finetune.top",
        )
    rounds, trials, step = [], num_trials, 0
    for _ in range(count):
        step += budget // (trials * count)
        rounds.append(Round(trials, step))
        trials = math.ceil(trials / 2)
    return tuple(rounds)


def spent(rounds: Sequence[Round]) -> int:
    """Return the steps of all trials together."""
    steps = [0, *(item.step for item in rounds)]
    return sum(
        item.trials * (item.step - before)
        for item, before in zip(rounds, steps, strict=False)
    )


def survivors(values: Sequence[float | None], count: int) -> tuple[int, ...]:
    """Return the positions of the `count` highest values, in order.

    Of equal values the first ones stay. None, of a trial that diverged, is the lowest.
    """
    known = [-math.inf if value is None else value for value in values]
    order = sorted(range(len(known)), key=lambda i: -known[i])
    return tuple(sorted(order[:count]))
