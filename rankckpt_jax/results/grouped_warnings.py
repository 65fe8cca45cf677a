"""Warnings of the same kind, grouped over checkpoints and measures."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.row import Row

# A number that is not part of a name, path, option or version: "6", "-4.61", "3,060"
# or "224 x 224".
_NUMBER = (
    r"(?<![\w./=:\-])(?P<number>-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?(?: x \d+)?)"
    r"(?![\w/]|[.,]\d)"
)


@dataclasses.dataclass(frozen=True)
class GroupedWarning:
    """One kind of warning and all checkpoints that have it.

    Attributes:
      topics: The measures or topics of the warning.
      text: The warning; a number that differs between checkpoints is a range.
      checkpoints: Names, in the order of the ranking.
    """

    topics: tuple[str, ...]
    text: str
    checkpoints: tuple[str, ...]


def group_warnings(rows: Iterable[Row]) -> tuple[GroupedWarning, ...]:
    """Group the warnings of all rows, in the order in which they first occur.

    Texts that differ only in their numbers are one kind of warning. Topics with the
    same warning of the same checkpoints are grouped too.

    Example:
      >>> rows = [
      ...     Row("a", warnings={"knn": "Only 20 of 90 images differ."}),
      ...     Row("b", warnings={"knn": "Only 35 of 90 images differ."}),
      ... ]
      >>> group_warnings(rows)[0].text
      'Only 20 to 35 of 90 images differ.'
    """
    rows = list(rows)
    names = sorted({printable(row.checkpoint) for row in rows}, key=len, reverse=True)
    # The digits of a checkpoint's name are no number.
    choices = [rf"(?<!\w){re.escape(name)}(?!\w)" for name in names if name]
    pattern = re.compile("|".join([*choices, _NUMBER]))
    by_kind: dict[tuple[str, str], list[tuple[str, list[str]]]] = {}
    for row in rows:
        for topic, warning in row.warnings.items():
            template, numbers = _split(printable(warning), pattern)
            kind = by_kind.setdefault((printable(topic), template), [])
            kind.append((printable(row.checkpoint), numbers))
    topics: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (topic, template), found in by_kind.items():
        text = _merge(template, [numbers for _, numbers in found])
        key = text, tuple(name for name, _ in found)
        topics.setdefault(key, []).append(topic)
    return tuple(
        GroupedWarning(tuple(of_group), text, checkpoints)
        for (text, checkpoints), of_group in topics.items()
    )


def _split(text: str, pattern: re.Pattern[str]) -> tuple[str, list[str]]:
    """Return the text with a null character for each number, and the numbers."""
    numbers: list[str] = []

    def take(match: re.Match[str]) -> str:
        if match["number"] is None:
            return match[0]
        numbers.append(match[0])
        return "\0"

    return pattern.sub(take, text), numbers


def _merge(template: str, numbers: Sequence[Sequence[str]]) -> str:
    """Fill a template with the range of each of its numbers."""
    parts = template.split("\0")
    result = [parts[0]]
    for part, values in zip(parts[1:], zip(*numbers, strict=True), strict=True):
        low, high = min(values, key=_value), max(values, key=_value)
        result += [low if low == high else f"{low} to {high}", part]
    return "".join(result)


def _value(number: str) -> float:
    return float(number.partition(" x ")[0].replace(",", ""))
