"""Numbers of the page's tables: what is written, and what the script sorts by."""

import math
from collections.abc import Iterable

from rankckpt_jax.report.text import format_seconds

NONE = "–"
"""Stands where there is no value."""


def finite(value: float | None) -> float | None:
    """The value where it is a finite number, else None."""
    return value if value is not None and math.isfinite(value) else None


def known(values: Iterable[float | None]) -> list[float]:
    """The values that there are."""
    return [value for value in values if value is not None]


def sort_key(value: float | None) -> str:
    """The number in full for the page's script, empty where there is none."""
    return "" if value is None or math.isnan(value) else repr(float(value))


def decimal(value: float | None) -> str:
    """Two decimals."""
    return NONE if value is None or math.isnan(value) else f"{value:.2f}"


def probability(value: float) -> str:
    """A probability in per cent, or a p value with as many digits as matter."""
    if math.isnan(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.2g}"


def duration(seconds: float | None) -> str:
    """A duration in the units a person would use."""
    return NONE if seconds is None else format_seconds(seconds)


def large(count: float | None) -> str:
    """Writes a large count with a prefix, such as 3.2 M.

    Example:
      >>> [large(n).replace("\N{NO-BREAK SPACE}", " ") for n in (812, 3.2e6, 4.1e15)]
      ['812', '3.2 M', '4.1 P']
    """
    if count is None:
        return NONE
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.1f}\N{NO-BREAK SPACE}{prefix}"
    return f"{count / 1e3:.0f}\N{NO-BREAK SPACE}k" if count >= 1e3 else f"{count:.0f}"
