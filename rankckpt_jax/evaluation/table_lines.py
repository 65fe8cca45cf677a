"""Lines of a table in CSV, long or wide, and the columns of its measures."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping
from typing import NoReturn

from rankckpt_jax.errors import InputError, some
from rankckpt_jax.evaluation.table import STATICS

_NEEDED = ("task", "checkpoint", "accuracy")
_TEXTS = ("family", "group", "seed")
_ALIASES = {
    "num_test": "test_images",
    "num_parameters": "parameters",
    "imagenet_accuracy": "source_accuracy",
}
_KNOWN = (*_NEEDED, *_TEXTS, *STATICS, "test_images")
_LONG = ("measure", "score", "spread", "seconds")

DESCRIPTIONS = (
    *("protocol", "date", "learning_rate", "image_size", "classes", "train_images"),
    *("scored_images", "extract_seconds", "finetune_seconds"),
    *("task_fingerprint", "checkpoint_fingerprint"),
)
"""Columns that describe a line and are not judged, although some are numbers."""

COLUMNS = (*_KNOWN, *_ALIASES, *_LONG)
"""Columns with a meaning of their own; any other is a measure's or ignored."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
      where: Name of the file, for errors.
      number: Number of the line, from 1 for the header.
      cells: The cells by column, without blanks around them.
    """

    where: str
    number: int
    cells: Mapping[str, str]

    def get_number(self, column: str) -> float:
        """Return the number in a cell; NaN if it is missing or not finite."""
        text = self.cells.get(column, "")
        if not text:
            return math.nan
        try:
            value = float(text)
        except ValueError as error:
            raise InputError(
                "A cell of the table is not a number",
                where=self._place(column),
                expected="a number with a decimal point, or an empty cell",
                found=repr(text),
                fix="leave the cell empty if the value is unknown; remove the column "
                "if it is not a measure's",
            ) from error
        return value if math.isfinite(value) else math.nan

    def get_positive(self, column: str) -> float:
        """Return a number from 0, or NaN."""
        value = self.get_number(column)
        if value < 0:
            self._refuse(column, "a number from 0", value)
        return value

    def get_count(self, column: str) -> int:
        """Return a whole number from 1."""
        value = self.get_number(column)
        if not value >= 1 or value != int(value):
            self._refuse(column, "a whole number from 1", value)
        return int(value)

    def _refuse(self, column: str, expected: str, value: float) -> NoReturn:
        raise InputError(
            "A cell of the table is out of range",
            where=self._place(column),
            expected=expected,
            found=f"{value:g}",
        )

    def refuse_empty(self, column: str) -> NoReturn:
        """Raise the error for a cell that must have a name."""
        raise InputError(
            f"A line of the table has no {column}",
            where=self._place(column),
            expected="a name",
            found="an empty cell",
        )

    def _place(self, column: str) -> str:
        return f"{self.where}, line {self.number}, column {column!r}"


@dataclasses.dataclass(frozen=True)
class Lines:
    """The lines of a table.

    Attributes:
      lines: The lines without the header.
      measures: Names of the measures, without the `STATICS`.
      ignored: Columns that are not used.
      is_percent: Whether the header says that accuracies are percentages.
    """

    lines: tuple[Line, ...]
    measures: tuple[str, ...]
    ignored: tuple[str, ...]
    is_percent: bool


def read_lines(text: str, where: str) -> Lines:
    """Split a CSV text into lines and find its measures.

    Raises:
      InputError: The text is not a table; see `table_file.read_table`.
    """
    header, split = _split(text, where)
    is_percent = states_percent(header)
    header = rename_all(header)
    lines = [
        Line(where, number, dict(zip(header, cells, strict=True)))
        for number, cells in split
    ]
    measures, ignored = _find_measures(header, lines, where)
    _check_names(lines, where)
    return Lines(tuple(lines), measures, tuple(ignored), is_percent)


def _split(text: str, where: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and (line number, cells) of each line that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    lines = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise InputError(
            "The table is not a CSV file", where=where, found=str(error)
        ) from error
    if not lines:
        raise InputError(
            "The table is empty",
            where=where,
            expected="a header with the columns task, checkpoint, accuracy",
            found="no text",
        )
    (_, header), *lines = lines
    doubled = sorted({column for column in header if header.count(column) > 1})
    if doubled or "" in header:
        raise InputError(
            "Columns of the table share a name"
            if any(doubled)
            else "A column has no name",
            where=f"{where}, line 1",
            expected="a different name for each column",
            found=", ".join(repr(column) for column in doubled) or "an empty name",
        )
    for number, cells in lines:
        if len(cells) != len(header):
            raise InputError(
                "A line of the table has another number of cells than its header",
                where=f"{where}, line {number}",
                expected=f"{len(header)} cells: {some(header)}",
                found=f"{len(cells)}",
                fix="quote cells that contain a comma",
            )
    return header, lines


def rename(column: str) -> str:
    """Return the name under which a column is known; a measure's is unchanged."""
    name = column.lower()
    if name.startswith("accuracy") and states_percent([column]):
        return "accuracy"
    name = _ALIASES.get(name, name)
    return name if name in (*_KNOWN, *_LONG) else column


def rename_all(header: list[str]) -> list[str]:
    """Rename all columns; an alias beside the column it stands for is kept."""
    given = {column.lower() for column in header}
    return [
        column.lower()
        if column.lower() in _ALIASES and _ALIASES[column.lower()] in given
        else rename(column)
        for column in header
    ]


def states_percent(header: Iterable[str]) -> bool:
    """Return whether the name of the column of accuracies says percentages."""
    names = [name.lower() for name in header if name.lower().startswith("accuracy")]
    return any("%" in name or "percent" in name for name in names)


def _find_measures(
    header: list[str], lines: list[Line], where: str
) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the measures, and the columns that are ignored."""
    is_long = {"measure", "score"} <= set(header)
    needed = [*_NEEDED]
    if "measure" in header:
        needed.append("score")
    missing = [column for column in needed if column not in header]
    if missing:
        raise InputError(
            f"The table has no column {missing[0]!r}",
            where=f"{where}, line 1",
            expected="the columns task, checkpoint, accuracy, and either measure and "
            "score, or one column for each measure",
            found=some(header, 20),
            fix="separate the columns with commas"
            if any(";" in column or "\t" in column for column in header)
            else f"add or rename the column {missing[0]!r}",
        )
    twice = {column for column in header if header.count(column) > 1}
    if twice:
        raise InputError(
            f"Two columns stand for {min(twice)!r}",
            where=f"{where}, line 1",
            expected="one of them",
            fix="remove or rename one",
        )
    if not lines:
        raise InputError(
            "The table has a header only",
            where=where,
            expected="a line for each task and checkpoint",
        )
    if is_long:
        for line in lines:
            if not line.cells["measure"]:
                line.refuse_empty("measure")
        named = dict.fromkeys(line.cells["measure"] for line in lines)
        measures = tuple(m for m in named if rename(m) not in STATICS)
        used = (*_KNOWN, *_ALIASES, *DESCRIPTIONS, *_LONG)
        ignored = [c for c in header if c not in used]
    else:
        measures, ignored = _wide_measures(header, lines, where)
    if not measures:
        raise InputError(
            "The table has no measure",
            where=where,
            expected="the columns measure and score, or a column of numbers for each "
            "measure",
            found=some(header, 20),
        )
    return measures, ignored


def _wide_measures(
    header: list[str], lines: list[Line], where: str
) -> tuple[tuple[str, ...], list[str]]:
    for column in ("score", "spread"):
        if column in header:
            raise InputError(
                f"The column {column!r} has no measure",
                where=f"{where}, line 1",
                expected="a column `measure` beside it, or a column named like the "
                "measure" + ("" if column == "score" else ", as in nleep_spread"),
                found=some(header, 20),
            )
    ends = ("_spread", "_seconds")
    statics = (*STATICS, *_ALIASES)
    described = (*_KNOWN, *_ALIASES, *DESCRIPTIONS, "seconds")
    # Static properties have no spread, and their seconds are not judged.
    described += tuple(static + end for static in statics for end in ends)
    others = [c for c in header if c not in described]
    # A column of texts only, such as a source, is no measure.
    ignored = [
        c
        for c in others
        if not any(_is_number(line.cells[c]) for line in lines)
        and any(line.cells[c] for line in lines)
    ]
    numeric = [c for c in others if c not in ignored]
    measures = [c for c in numeric if not c.endswith(ends)]
    for column in numeric:
        base = column.removesuffix("_spread").removesuffix("_seconds")
        if column.endswith(ends) and base not in measures:
            raise InputError(
                f"The column {column!r} belongs to no measure",
                where=f"{where}, line 1",
                expected=f"a column {base!r}",
                found=some(header, 20),
                fix="add it, or rename the column",
            )
    return tuple(measures), ignored


def _check_names(lines: list[Line], where: str) -> None:
    """Refuse empty names, and names that differ in case or blanks only."""
    for column in ("task", "checkpoint", "measure", "family", "group"):
        seen: dict[str, tuple[str, int]] = {}
        for line in lines:
            name = line.cells.get(column)
            if name is None:
                continue
            if not name and column in ("task", "checkpoint"):
                line.refuse_empty(column)
            other, number = seen.setdefault(
                "".join(name.casefold().split()), (name, line.number)
            )
            if other != name:
                raise InputError(
                    f"Two names in the column {column!r} differ in case or blanks only",
                    where=f"{where}, lines {number} and {line.number}",
                    expected="one spelling of each name",
                    found=f"{other!r} and {name!r}",
                    fix="use one spelling, or rename one of them",
                )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
