"""Writes names, numbers and durations for people to read."""

import math
from collections.abc import Sequence


def printable(text: object) -> str:
    r"""Makes text from a file safe to print: one line, no control characters.

    White space collapses to single spaces. Every other character that is not printable
    (escape sequences, bidirectional overrides, lone surrogates of undecodable file
    names) becomes its Python escape.

    Example:
      >>> printable("a\nb \x1b[31m")
      'a b \\x1b[31m'

    Args:
      text: Anything; `str` is taken of it.

    Returns:
      One line that encodes as UTF-8.
    """
    line = " ".join(str(text).split())
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in line
    )


def format_scores(values: Sequence[float | None]) -> list[str]:
    """Writes one column of scores with as many decimals as tell them apart.

    All get the decimals that give the largest of them four significant digits and their
    range three, so that NLEEP, PARC and a number of parameters are each readable.

    Example:
      >>> format_scores([-0.4123, -0.9, None])
      ['-0.4123', '-0.9000', '-']
      >>> format_scores([3217000, 819000])
      ['3,217,000', '819,000']

    Args:
      values: Finite scores, or None where there is none.

    Returns:
      One text for every value, `"-"` for None.
    """
    known = [value for value in values if value is not None]
    if not known:
        return ["-"] * len(values)
    largest = max(map(abs, known))
    scale = max(known) - min(known) or largest
    if largest >= 1e15 or 0 < scale < 1e-7:
        return ["-" if value is None else f"{value:.4g}" for value in values]
    digits = 0
    for significant, size in (4, largest), (3, scale):
        if size:
            digits = max(digits, significant - 1 - math.floor(math.log10(size)))
    digits = min(digits, 9)
    return ["-" if value is None else f"{value:,.{digits}f}" for value in values]


def one_line(failure: str) -> str:
    """Brings a message of several lines to one printable line."""
    return printable("; ".join(map(str.strip, failure.splitlines())))


def format_percent(accuracy: float) -> str:
    """Writes an accuracy in [0, 1] as a percentage, such as `"84.2%"`."""
    return f"{100 * accuracy:.1f}%"


def format_certainty(probability: float) -> str:
    """Writes an estimated probability, never as certain as its sample makes it.

    Example:
      >>> [format_certainty(p) for p in (0.0, 0.423, 0.999, 1.0)]
      ['<1%', '42%', '>99%', '>99%']
    """
    if probability < 0.01:
        return "<1%"
    return ">99%" if probability > 0.99 else f"{100 * probability:.0f}%"


def format_points(difference: float) -> str:
    """Writes a difference of accuracies in [0, 1] as percentage points."""
    points = 100 * difference
    return f"{points:.1f} points" if points >= 1 else f"{points:.2g} points"


def format_seconds(seconds: float) -> str:
    """Writes a duration in the units a person would use.

    Example:
      >>> [format_seconds(s) for s in (0.042, 8.31, 75, 5000, 200000)]
      ['0.04 s', '8.3 s', '1 min 15 s', '1 h 23 min', '55 h 33 min']

    Args:
      seconds: The duration, >= 0.

    Returns:
      At most two units.
    """
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def count(n: int, noun: str) -> str:
    """Writes a number of things, such as `"1 checkpoint"` or `"2 checkpoints"`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def ordinal(n: int) -> str:
    """Writes a place, such as `"1st"` or `"12th"`."""
    endings = {1: "st", 2: "nd", 3: "rd"}
    teens = n % 100 in (11, 12, 13)
    return f"{n}{'th' if teens else endings.get(n % 10, 'th')}"
