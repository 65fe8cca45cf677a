"""The ranking as comma-separated values, one line per checkpoint."""

from __future__ import annotations

import csv
import io
import math
import re

from rankckpt_jax.data.metrics import METRICS
from rankckpt_jax.errors import InputError
from rankckpt_jax.report.columns import columns
from rankckpt_jax.results.ranking import Ranking, rank
from rankckpt_jax.results.row import Row

_FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")
"""A cell that starts with one of these is a formula to a spreadsheet."""

_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[ntr\\])")


def to_csv(ranking: Ranking) -> str:
    """Return all columns of a ranking, with numbers in full precision.

    Unknown values and NaN are empty. A text that a
    spreadsheet would run as a formula gets a leading apostrophe, as OWASP advises
    against CSV injection. Numbers are never changed, not even negative ones. `from_csv`
    and `read_cell` restore the text.

    Returns:
      A header, then one line for each row in the order of the ranking.
    """
    table = columns(ranking)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([text_cell(column.name) for column in table])
    for row in ranking.rows:
        values = [column.value(row) for column in table]
        writer.writerow(
            text_cell(v) if isinstance(v, str) else _number_cell(v) for v in values
        )
    return file.getvalue()


def from_csv(text: str, task: str, where: str = "") -> Ranking:
    """Read a ranking that `to_csv` wrote. Some columns are not read.

    Args:
      text: The content of the file.
      task: The task's name.
      where: The file's name, for errors.

    Raises:
      InputError: The file is not a ranking.
    """
    reader = csv.DictReader(io.StringIO(text))
    header = list(reader.fieldnames or ())
    measures = [name for name in header if f"{name}_spread" in header]
    if not measures or not {"checkpoint", "accuracy", "group"} <= set(header):
        raise InputError(
            "The file is not a ranking",
            where=where,
            expected="columns checkpoint, group, accuracy and those of measures",
            found=", ".join(header) or "an empty file",
            fix="write it again with --config.stages=report",
        )

    def numbers(line: dict[str, str], suffix: str) -> dict[str, float]:
        values = {read_cell(name): line[name + suffix] for name in measures}
        return {name: float(value) for name, value in values.items() if value}

    def texts(line: dict[str, str], suffix: str) -> dict[str, str]:
        values = {read_cell(name): line.get(name + suffix) for name in measures}
        return {name: read_cell(value) for name, value in values.items() if value}

    try:
        lines = list(reader)
        rows = [
            Row(
                read_cell(line["checkpoint"]),
                architecture=read_cell(line["architecture"]),
                group=read_cell(line["group"]),
                scores=numbers(line, ""),
                spreads=numbers(line, "_spread"),
                saturated=texts(line, "_saturated"),
                score_seconds=numbers(line, "_seconds"),
                accuracy=float(line["accuracy"]) if line["accuracy"] else None,
                metrics={
                    name: float(value)
                    for name in METRICS
                    if (value := line.get(f"test_{name}"))
                },
                failure=read_cell(line["failure"]),
            )
            for line in lines
        ]
        metric = next(filter(None, (line.get("metric") for line in lines)), "accuracy")
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}")
    except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            "A line of the ranking cannot be read",
            where=where,
            expected="lines that the report wrote",
            found=str(error),
            fix="write it again with --config.stages=report",
        ) from error
    return rank(task, [read_cell(name) for name in measures], rows, metric=metric)


def text_cell(text: str) -> str:
    r"""Return one line of text that no spreadsheet runs as a formula.

    Backslashes and characters that are not printable become Python escapes. A text that
    would start a formula, or that starts with an apostrophe, gets an apostrophe in
    front. `read_cell` restores the text.

    Example:
      >>> [text_cell(t) for t in ("=cmd()", "a\nb", "\t@x", "it's", "'a'")]
      ["'=cmd()", 'a\\nb', '\\t@x', "it's", "''a'"]
    """
    line = "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode()
        for c in text
    )
    # Some spreadsheets strip leading blanks first.
    is_unsafe = line.lstrip().startswith((*_FORMULA_STARTS, "'"))
    return f"'{line}" if is_unsafe else line


def read_cell(cell: str) -> str:
    """Return the text that `text_cell` wrote."""
    line = cell[1:] if cell.startswith("'") else cell
    return _ESCAPE.sub(lambda m: m[0].encode().decode("unicode_escape"), line)


def _number_cell(value: float | None) -> str:
    """Return the shortest decimal that reads back as the same number."""
    if value is None or math.isnan(value):
        return ""
    return str(value) if isinstance(value, int) else repr(float(value))
