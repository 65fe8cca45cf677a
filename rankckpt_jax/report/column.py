"""One column of a ranking's table, and its cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rankckpt_jax.results.row import Row

Value = str | float | None
Format = Callable[[Sequence[float | None]], list[str]]


@dataclasses.dataclass(frozen=True)
class Column:
    """One column. CSV and JSON files have all of them.

    Attributes:
      name: Name in files.
      heading: Heading for people.
      help: One sentence on its meaning.
      value: Returns the value of a row; None or "" if unknown.
      format: Returns the texts of finite numbers; None if the values are texts.
      shown_in: Which of `"terminal"`, `"notebook"` and `"page"` show it.
      optional: Whether they omit it if no row has a value.
      spread: Returns the standard deviation of a row's value.
      warning: Returns the warning about a row's value, or "".
      compiling: Returns the part of a row's time that was spent on compiling, which is
        shown apart.
    """

    name: str
    heading: str
    help: str
    value: Callable[[Row], Value]
    format: Format | None = None
    shown_in: tuple[str, ...] = ()
    optional: bool = True
    spread: Callable[[Row], float | None] = lambda row: None
    warning: Callable[[Row], str] = lambda row: ""
    compiling: Callable[[Row], float | None] = lambda row: None


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value for people.

    Attributes:
      value: A finite number, a text or None.
      text: The formatted value.
      spread: The formatted standard deviation, or empty.
      is_best: Whether no value of the column is higher, and some are lower.
      warning: The warning about the value, or empty. Such a value is marked.
    """

    value: Value
    text: str
    spread: str = ""
    is_best: bool = False
    warning: str = ""


def each(format: Callable[[float], str]) -> Format:
    """Return the format of a column from that of one number; unknown ones are empty."""
    return lambda values: ["" if value is None else format(value) for value in values]


WHOLE = each("{:.0f}".format)
"""The format of whole numbers."""
