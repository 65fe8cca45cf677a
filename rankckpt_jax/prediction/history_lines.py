"""The lines of a history: a CSV file of fine-tunings that people read and edit.

Each line is one fine-tuning. The columns are those of a wide table of scores
(`evaluation.read_table`), and `evaluation.table_lines.DESCRIPTIONS`. Every line of text
is a line of the table, so that a damaged one does not affect the others.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from rankckpt_jax.errors import InputError, redact, some
from rankckpt_jax.evaluation import table_lines
from rankckpt_jax.evaluation.table import STATICS

COLUMNS = (
    *("task", "checkpoint", "accuracy", "seed", "family", "protocol"),
    *("test_images", "train_images", "scored_images", "classes"),
    *("parameters", "feature_dim", "source_accuracy", "image_size"),
    *("seconds", "finetune_seconds"),
    *("task_fingerprint", "checkpoint_fingerprint", "date"),
)
"""The columns before those of measures, in the order of a new file."""

ENDS = ("_spread", "_seconds")
"""Ends of the columns that belong to a measure."""

_DIGITS = 6
_ROUNDING = 1e-6
# A cell that starts with one of these is a formula to a spreadsheet.
_FORMULA_STARTS = "=+-@＝＋－＠'\" \t"
_COUNTS = ("test_images", "train_images", "scored_images", "classes", "image_size")
_TEXTS = (
    *("task", "checkpoint", "family", "group", "protocol", "seed", "date"),
    *("task_fingerprint", "checkpoint_fingerprint"),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One fine-tuning.

    Attributes:
      cells: The cells that are not empty, by column. The accuracy is a fraction of 1.
      where: File and line, for messages.
    """

    cells: Mapping[str, str]
    where: str = ""

    def get(self, column: str) -> str:
        """Return a cell; empty if it is unknown."""
        return self.cells.get(column, "")

    @property
    def accuracy(self) -> float:
        """The accuracy on the test images, in [0, 1]."""
        return float(self.cells["accuracy"])

    @property
    def results(self) -> dict[str, str]:
        """The accuracy and the scores, by column."""
        return {
            column: cell
            for column, cell in self.cells.items()
            if column == "accuracy"
            or (column not in COLUMNS and not column.endswith(ENDS))
        }


@dataclasses.dataclass(frozen=True)
class FileLine:
    """A line of a file.

    Attributes:
      text: As it is in the file, without its end.
      entry: Its fine-tuning; None if it is empty or damaged.
      problem: The reason why it cannot be used; empty if it can.
    """

    text: str
    entry: Entry | None = None
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class HistoryFile:
    """The content of a file.

    Attributes:
      header: Its columns, by the names of `evaluation.table_lines`.
      header_text: The first line as it is in the file.
      lines: The other lines.
      is_percent: Whether its accuracies are percentages.
    """

    header: tuple[str, ...]
    header_text: str
    lines: tuple[FileLine, ...]
    is_percent: bool = False

    @property
    def entries(self) -> list[Entry]:
        """The fine-tunings of the lines that can be used."""
        return [line.entry for line in self.lines if line.entry is not None]

    @property
    def problems(self) -> list[str]:
        """A sentence about each line that cannot be used."""
        return [line.problem for line in self.lines if line.problem]


def plain_name(text: str) -> str:
    r"""Return a name without a path, secrets, or what a spreadsheet would run.

    Example:
      >>> [plain_name(t) for t in ("/home/me/pets/", r"C:\\nets\\resnet50", "=1+1")]
      ['pets', 'resnet50', '1+1']
    """
    parts = [p for p in re.split(r"[\\/]+", redact(text)) if p.strip(" .~")]
    return _safe(parts[-1] if parts else "") or "unnamed"


def _safe(text: str) -> str:
    """Return a printable text that no spreadsheet runs as a formula."""
    printable = "".join(c if c.isprintable() else "_" for c in text)
    return printable.lstrip(_FORMULA_STARTS).rstrip()


def number_cell(value: float | None) -> str:
    """Return the cell of a number, with six digits; empty if it is not finite.

    Example:
      >>> number_cell(0.91234567), number_cell(25_557_032), number_cell(None)
      ('0.912346', '25557032', '')
    """
    if value is None or not math.isfinite(value):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.{_DIGITS}g}"


def write_line(cells: Iterable[str]) -> str:
    """Return cells as a line of CSV, without its end."""
    file = io.StringIO()
    csv.writer(file, lineterminator="").writerow(cells)
    return file.getvalue()


def columns_of(entries: Iterable[Entry]) -> list[str]:
    """Return the columns of a file for some entries: `COLUMNS`, then measures."""
    used = dict.fromkeys(column for entry in entries for column in entry.cells)
    others = [column for column in used if column not in COLUMNS]
    measures = [column for column in others if not column.endswith(ENDS)]
    ordered = [c for m in measures for c in (m, *(m + end for end in ENDS))]
    return [*COLUMNS, *(column for column in ordered if column in used)]


def to_csv(entries: Sequence[Entry]) -> str:
    """Return entries as a CSV file, which `parse` and `evaluation.read_table` read."""
    header = columns_of(entries)
    lines = [write_line(entry.get(column) for column in header) for entry in entries]
    return "\n".join([write_line(header), *lines, ""])


def parse(text: str, where: str) -> HistoryFile:
    """Parse a file; damaged lines are kept, and described by `problems`.

    Args:
      text: Its content.
      where: Its name, for messages.

    Raises:
      InputError: The first line is not a header.
    """
    header_text, *texts = [line.rstrip("\r") for line in text.split("\n")]
    given = _split(header_text) or []
    header = table_lines.rename_all(given)
    missing = [c for c in ("task", "checkpoint", "accuracy") if c not in header]
    doubled = [column for column in header if header.count(column) > 1]
    if missing or doubled or "" in header or "measure" in header:
        raise InputError(
            "The file is not a history of fine-tunings",
            where=f"{where}, line 1",
            expected="a header with the columns task, checkpoint, accuracy, and one "
            "column for each measure",
            found=some(header, 20) or "an empty line",
            fix="separate the columns with commas, and give each a name of its own",
        )
    split = [_split(line) for line in texts]
    lines = [
        dict(zip(header, cells, strict=True))
        for cells in split
        if cells is not None and len(cells) == len(header)
    ]
    measures = _find_measures(header, lines)
    is_percent = table_lines.states_percent(given) or _are_percentages(lines)
    parsed = []
    for number, (line, cells) in enumerate(zip(texts, split, strict=True), start=2):
        place = f"{where}, line {number}"
        if not line.strip(" ,\t"):
            parsed.append(FileLine(line))
        elif cells is None or len(cells) != len(header):
            problem = f"{place}: skipped, it has not {len(header)} cells"
            parsed.append(FileLine(line, problem=problem))
        else:
            row = dict(zip(header, cells, strict=True))
            parsed.append(_parse_line(line, row, measures, is_percent, place))
    return HistoryFile(tuple(header), header_text, tuple(parsed), is_percent)


def _split(line: str) -> list[str] | None:
    """Return the cells of a line; None if its quotes do not match."""
    try:
        rows = list(csv.reader([line], skipinitialspace=True, strict=True))
    except csv.Error:
        return None
    return [cell.strip() for cell in rows[0]] if rows else []


def _find_measures(
    header: Sequence[str], lines: Sequence[Mapping[str, str]]
) -> list[str]:
    """Return the columns of measures: other columns that have a number."""
    known = (*table_lines.COLUMNS, *table_lines.DESCRIPTIONS)
    return [
        column
        for column in header
        if column not in known
        and not column.endswith(ENDS)
        and any(_number(line[column]) is not None for line in lines)
    ]


def _are_percentages(lines: Sequence[Mapping[str, str]]) -> bool:
    """Return whether all accuracies other than 0 are above 1."""
    known = [_number(line["accuracy"]) for line in lines]
    values = [value for value in known if value]
    return bool(values) and min(values) > 1 + _ROUNDING


def _parse_line(
    text: str,
    cells: Mapping[str, str],
    measures: Sequence[str],
    is_percent: bool,
    place: str,
) -> FileLine:
    ends = [measure + end for measure in measures for end in ENDS]
    used = {*COLUMNS, *table_lines.DESCRIPTIONS, "group", *measures, *ends}
    # A file of others is untrusted input for terminals and spreadsheets.
    safe = {c: _safe(t) if c in _TEXTS else t for c, t in cells.items() if c in used}
    kept = {column: cell for column, cell in safe.items() if cell}
    known = [*STATICS, *_COUNTS, "seconds", "finetune_seconds"]
    problems = [
        _clean(kept, column) for column in ("accuracy", *known, *measures, *ends)
    ]
    missing = [c for c in ("task", "checkpoint", "accuracy") if c not in kept]
    problems = [f"it has no {column}" for column in missing] + problems
    if not any(problems):
        accuracy = float(kept["accuracy"]) / (100 if is_percent else 1)
        if not 0 <= accuracy <= 1 + _ROUNDING:
            problems = [f"accuracy is out of range: {kept['accuracy']}"]
        elif is_percent or accuracy > 1:
            kept["accuracy"] = number_cell(min(accuracy, 1.0))
    if problem := next(filter(None, problems), ""):
        return FileLine(text, problem=f"{place}: skipped, {problem}")
    return FileLine(text, Entry(kept, place))


def _clean(cells: dict[str, str], column: str) -> str:
    """Remove a number that is not finite; return why a cell cannot be used, or ""."""
    if column not in cells:
        return ""
    value = _number(cells[column])
    if value is None:
        return f"{column} is not a number: {cells[column]!r}"
    if not math.isfinite(value):
        del cells[column]
        return ""
    is_count = column in _COUNTS
    is_positive = is_count or column.endswith(("seconds", "_spread"))
    if (is_count and (value < 1 or value % 1)) or (is_positive and value < 0):
        return f"{column} is out of range: {value:g}"
    return ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
