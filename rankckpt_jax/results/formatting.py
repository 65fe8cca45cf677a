"""Text of names, numbers and durations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankckpt_jax.data.metrics import METRICS

NONE = "–"
"""The text of a missing value on a page."""

LEAST_COMPILING = 0.1
"""Less time in seconds spent on compiling is not shown apart."""


def printable(text: object) -> str:
    r"""Return one line of `str(text)` that is safe to print.

    White space collapses to single spaces. Other characters that are not printable are
    replaced by their Python escapes: escape sequences, bidirectional overrides, and the
    lone surrogates of file names that cannot be decoded.

    Example:
      >>> printable("a\nb \x1b[31m")
      'a b \\x1b[31m'
    """
    line = " ".join(str(text).split())
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in line
    )


def one_line(message: str) -> str:
    """Join the lines of a message with semicolons into one printable line."""
    return printable("; ".join(map(str.strip, message.splitlines())))


def count(n: int, noun: str) -> str:
    """Return a number of things, such as `"1 checkpoint"` or `"2 checkpoints"`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def ordinal(n: int) -> str:
    """Return an ordinal number, such as `"1st"` or `"12th"`."""
    endings = {1: "st", 2: "nd", 3: "rd"}
    is_teen = n % 100 in (11, 12, 13)
    return f"{n}{'th' if is_teen else endings.get(n % 10, 'th')}"


def format_scores(values: Sequence[float | None]) -> list[str]:
    """Return a column of scores with enough decimals to distinguish them.

    All scores get the same number of decimals. It gives the largest score four
    significant digits and the range of the scores three.

    Example:
      >>> format_scores([-0.4123, -0.9, None])
      ['-0.4123', '-0.9000', '-']
      >>> format_scores([3217000, 819000])
      ['3,217,000', '819,000']

    Args:
      values: Finite scores, or None for a missing one.

    Returns:
      The text of each value, `"-"` for None.
    """
    scores = [value for value in values if value is not None]
    if not scores:
        return ["-"] * len(values)
    largest = max(map(abs, scores))
    scale = max(scores) - min(scores) or largest
    if largest >= 1e15 or 0 < scale < 1e-7:
        return ["-" if value is None else f"{value:.4g}" for value in values]
    digits = 0
    for significant, size in (4, largest), (3, scale):
        if size:
            digits = max(digits, significant - 1 - math.floor(math.log10(size)))
    digits = min(digits, 9)
    return ["-" if value is None else f"{value:,.{digits}f}" for value in values]


def capitalize(text: str) -> str:
    """Return a text that starts with a capital letter, otherwise unchanged."""
    return text[:1].upper() + text[1:]


def format_percent(accuracy: float) -> str:
    """Return an accuracy in [0, 1] as a percentage, such as `"84.2%"`."""
    return f"{100 * accuracy:.1f}%"


def format_metric(value: float, metric: str) -> str:
    """Return a value of a metric of `data.metrics`.

    Example:
      >>> format_metric(0.842, "accuracy"), format_metric(0.842, "r2")
      ('84.2%', '0.842')
    """
    return format_percent(value) if METRICS[metric].is_share else f"{value:.3f}"


def format_points(
    difference: float, short: bool = False, metric: str = "accuracy"
) -> str:
    """Return a difference of accuracies, in percentage points if they are shares.

    Example:
      >>> format_points(0.034), format_points(0.0004, short=True)
      ('3.4 percentage points', '0.04 points')
      >>> format_points(0.0342, metric="auroc")
      '0.034'
    """
    if not METRICS[metric].is_share:
        return f"{difference:.3f}" if difference >= 0.01 else f"{difference:.2g}"
    points = 100 * difference
    number = f"{points:.1f}" if points >= 1 else f"{points:.2g}"
    return f"{number} {'' if short else 'percentage '}points"


def format_decimal(value: float | None) -> str:
    """Return a number with two decimals."""
    return NONE if value is None or math.isnan(value) else f"{value:.2f}"


def format_p_value(value: float | None) -> str:
    """Return a p-value with two significant digits."""
    if value is None or math.isnan(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.2g}"


def format_probability(value: float | None) -> str:
    """Return an estimated probability as a percentage, never as 0% or 100%.

    Example:
      >>> [format_probability(p) for p in (0.0, 0.423, 0.999, 1.0)]
      ['<1%', '42%', '>99%', '>99%']
    """
    if value is None or math.isnan(value):
        return NONE
    if value < 0.01:
        return "<1%"
    return ">99%" if value > 0.99 else f"{100 * value:.0f}%"


def format_seconds(seconds: float | None) -> str:
    """Return a duration in at most two units.

    Example:
      >>> [format_seconds(s) for s in (0.042, 8.31, 75, 5000, 200000)]
      ['0.04 s', '8.3 s', '1 min 15 s', '1 h 23 min', '55 h 33 min']
    """
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def format_time(seconds: float | None, compiling: float | None) -> str:
    """Return a duration, with the part that was spent on compiling after a plus sign.

    A part below `LEAST_COMPILING` is not shown apart.

    Example:
      >>> format_time(4.3, 4.0)
      '0.30 s + 4.0 s compiling'
      >>> format_time(4.3, None)
      '4.3 s'
    """
    if seconds is None or compiling is None or compiling < LEAST_COMPILING:
        return format_seconds(seconds)
    work = format_seconds(max(seconds - compiling, 0.0))
    return f"{work} + {format_seconds(compiling)} compiling"


def format_large(count: float | None) -> str:
    """Return a large count with a metric prefix.

    Example:
      >>> texts = [format_large(n) for n in (812, 3.2e6, 4.1e15)]
      >>> [text.replace("\N{NO-BREAK SPACE}", " ") for text in texts]
      ['812', '3.2 M', '4.1 P']
    """
    if count is None:
        return NONE
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.1f}\N{NO-BREAK SPACE}{prefix}"
    return f"{count / 1e3:.0f}\N{NO-BREAK SPACE}k" if count >= 1e3 else f"{count:.0f}"
