"""Reads CSV files with lines NAME,NUMBER, as programs and spreadsheets write them."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import logging
import re
from collections.abc import Mapping

from etils import epath

from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files

# Spreadsheets write a semicolon where the comma is the decimal separator.
_DELIMITERS = (";", "\t", ",")
_QUOTED = re.compile(r'"[^"]*"')
_NUMBER = re.compile(
    r"([+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?)\s*(%?)", re.IGNORECASE
)
_EXPECTED = "a CSV file with lines NAME,NUMBER"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Number:
    """A number of a file.

    Attributes:
      value: The number as written, without a percent sign.
      percent: Whether a percent sign follows it.
      line: Its line in the file, from 1.
    """

    value: float
    percent: bool
    line: int


@dataclasses.dataclass(frozen=True)
class NamedNumbers:
    """The content of a file.

    Attributes:
      heading: Heading of the column of numbers; empty without a heading.
      numbers: The numbers by name, in the file's order.
    """

    heading: str
    numbers: Mapping[str, Number]


def read(path: epath.PathLike) -> NamedNumbers:
    """Read a CSV file: the first column has names, the second has numbers.

    The text is UTF-8 or UTF-16, with or without a byte order mark. The delimiter is the
    first of semicolon, tab and comma that every line contains outside of quotes. The
    decimal separator is a point or a comma. A first line whose second cell is a word is
    a heading. A line without a number has no value. Further columns are ignored.

    Example:
        name;accuracy
        "net; wide";87,5 %

    gives `{"net; wide": Number(87.5, percent=True, line=2)}`.

    Raises:
      InputError: The file cannot be read, a line has no name and number, a name has two
        numbers, or decimal commas cannot be told from delimiters.
    """
    where = str(path)
    lines = _split(_read_text(files.to_path(path), where), where)
    heading, width = "", 0
    numbers: dict[str, Number] = {}
    for i, (line, cells) in enumerate(lines):
        if i == 0 and _is_heading(cells):
            heading, width = cells[1].strip(), len(cells)
            _log.info("%s: the first line is a heading: %s", where, ", ".join(cells))
            continue
        _check_width(cells, width, f"{where}, line {line}")
        name, text = cells[0].strip(), cells[1].strip()
        if not text:
            continue
        number = _parse(text, line, cells, where)
        other = numbers.setdefault(name, number)
        if (other.value, other.percent) != (number.value, number.percent):
            raise InputError(
                f"The name {name!r} has two numbers",
                where=f"{where}, lines {other.line} and {line}",
                expected="one line per name",
                found=f"{other.value:g} and {number.value:g}",
                fix="remove one of them",
            )
    _check_separators(lines, where)
    return NamedNumbers(heading, numbers)


def _read_text(path: epath.Path, where: str) -> str:
    try:
        data = path.read_bytes()
        utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if utf_16 else "utf-8-sig")
    # A path with a null character is a ValueError, as are bytes that are no text.
    except (OSError, ValueError) as error:
        raise InputError(
            "A CSV file cannot be read",
            where=where,
            expected=_EXPECTED + ", in UTF-8",
            found=getattr(error, "strerror", None) or str(error),
            fix="check the path; in a spreadsheet, save it as 'CSV UTF-8'",
        ) from error


def _split(text: str, where: str) -> list[tuple[int, list[str]]]:
    """Return (number of the line, cells) of every line that is not empty."""
    bare = [line for line in _QUOTED.sub("", text).splitlines() if line.strip()]
    for delimiter in _DELIMITERS:
        if all(delimiter in line for line in bare):
            break
    else:
        raise _unreadable(where, next(line for line in bare if "," not in line))
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True
    )
    try:
        rows = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise InputError(
            "A CSV file cannot be read",
            where=f"{where}, line {reader.line_num}",
            expected=_EXPECTED,
            found=str(error),
        ) from error
    rows = [(line, cells) for line, cells in rows if any(map(str.strip, cells))]
    for line, cells in rows:
        if len(cells) < 2:
            raise _unreadable(f"{where}, line {line}", ",".join(cells))
    return rows


def _unreadable(where: str, found: str) -> InputError:
    return InputError(
        "A line of a CSV file has no name and number",
        where=where,
        expected="NAME,NUMBER, with a comma, semicolon or tab between them",
        found=found,
        fix="write it like resnet_v1_50,0.87",
    )


def _is_heading(cells: list[str]) -> bool:
    text = cells[1].strip()
    return not _NUMBER.fullmatch(text) and any(map(str.isalpha, text))


def _check_width(cells: list[str], width: int, where: str) -> None:
    """Raise if a decimal comma has split a number into two cells."""
    is_split = len(cells) > 2 and all(cell.strip().isdigit() for cell in cells[1:3])
    if (width and len(cells) > width) or (not width and is_split):
        raise InputError(
            "A number may have a decimal comma, or a line too many columns",
            where=where,
            expected="as many columns as the heading, or NAME,NUMBER",
            found=",".join(cells),
            fix='write decimals with a point, quote them (net,"0,87"), or separate '
            "columns by semicolons; name further columns in a heading",
        )


def _parse(text: str, line: int, cells: list[str], where: str) -> Number:
    match = _NUMBER.fullmatch(text)
    if match is None or not cells[0].strip():
        raise _unreadable(f"{where}, line {line}", ",".join(cells))
    return Number(float(match[1].replace(",", ".")), bool(match[5]), line)


def _check_separators(lines: list[tuple[int, list[str]]], where: str) -> None:
    """Raise if some numbers have a decimal point and others a comma."""
    by_separator = {
        separator: (line, cells[1].strip())
        for separator in ".,"
        for line, cells in lines
        if separator in cells[1] and _NUMBER.fullmatch(cells[1].strip())
    }
    if len(by_separator) == 2:
        raise InputError(
            "The numbers have different decimal separators",
            where=where,
            expected="points or commas, but not both",
            found=" and ".join(f"{t!r} (line {n})" for n, t in by_separator.values()),
            fix="write all with a decimal point, without separators of thousands",
        )
