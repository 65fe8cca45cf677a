"""The budget of fine-tuning: steps for successive halving, or time for a plan."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from rankckpt_jax.errors import InputError

CHOOSE_AFTER = 0.3
"""`Sweep.choose_after` of `quick` and with a budget of time; see docs/predicting.md."""

_UNITS = {"s": 1, "min": 60, "h": 3600}

_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h)")


@dataclasses.dataclass(frozen=True)
class Budget:
    """A budget over all checkpoints; at most one of the two is not 0.

    Attributes:
      steps: Training steps.
      seconds: Time.
    """

    steps: int = 0
    seconds: float = 0.0


def parse(value: Any) -> Budget:
    """Return the budget of `config.finetune.budget`; None, "" and 0 are no budget.

    Example:
      >>> parse(2000), parse("1.5h")
      (Budget(steps=2000, seconds=0.0), Budget(steps=0, seconds=5400.0))

    Raises:
      InputError: It is neither a whole number of at least 0 nor a positive time.
    """
    text = "" if value is None else str(value).strip()
    if not text:
        return Budget()
    if isinstance(value, int | str) and text.isdecimal():
        return Budget(steps=int(text))
    time = _TIME.fullmatch(text)
    if time and (seconds := float(time[1]) * _UNITS[time[2]]):
        return Budget(seconds=seconds)
    raise InputError(
        f"The budget of fine-tuning cannot be used: {value!r}",
        where="config.finetune.budget",
        expected="a whole number of steps over all checkpoints, or a time",
        found=repr(value),
        fix="for example --config.finetune.budget=2000, or 90s, 30min or 2h",
    )
