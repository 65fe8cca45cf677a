"""The ranking as comma-separated values, one line per checkpoint."""

import csv
import io
import re

from rankckpt_jax.errors import InputError
from rankckpt_jax.report.text import one_line
from rankckpt_jax.results.ranking import Ranking, rank
from rankckpt_jax.results.row import Row

_FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")
"""What makes a spreadsheet run a cell as a formula, ASCII and full-width."""

_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[ntr\\])")


def to_csv(ranking: Ranking) -> str:
    """Writes every number in full precision and every name safe for a spreadsheet.

    The columns are `rank`, `checkpoint`, `architecture`, `group`; for each measure
    `M`, `M_spread` and `M_seconds`; `accuracy` (fraction), `extract_seconds`,
    `finetune_seconds`, `num_parameters`, `feature_dim`, `image_size`, `warnings` and
    `failure`. Unknown is empty; a score that came out as NaN is `nan`.

    A name that a spreadsheet would run as a formula gets a leading apostrophe, as OWASP
    advises against CSV injection; numbers are never touched, not even negative ones.
    `from_csv`, and `read_cell` for one cell, give the original name again.

    Args:
      ranking: The ranking; the lines keep its order.

    Returns:
      The text of the file: a header, then lines that end in a newline.
    """
    header = ["rank", "checkpoint", "architecture", "group"]
    for measure in ranking.measures:
        header += [measure, f"{measure}_spread", f"{measure}_seconds"]
    header += ["accuracy", "extract_seconds", "finetune_seconds"]
    header += ["num_parameters", "feature_dim", "image_size", "warnings", "failure"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([text_cell(name) for name in header])
    for position, row in zip(ranking.ranks, ranking.rows, strict=True):
        cells = [_number(position)]
        cells += map(text_cell, (row.checkpoint, row.architecture, row.group))
        for measure in ranking.measures:
            for values in row.scores, row.spreads, row.score_seconds:
                cells.append(_number(values.get(measure)))
        cells += map(
            _number,
            (
                row.accuracy,
                row.extract_seconds,
                row.finetune_seconds,
                row.num_parameters,
                row.feature_dim,
                row.image_size,
            ),
        )
        notes = (f"{topic}: {note}" for topic, note in row.warnings.items())
        cells += text_cell("; ".join(notes)), text_cell(one_line(row.failure))
        writer.writerow(cells)
    return file.getvalue()


def from_csv(text: str, task: str, where: str = "") -> Ranking:
    """Reads back what `to_csv` wrote, without what it leaves out.

    Args:
      text: Of the file.
      task: The task's name.
      where: The file, for an error.

    Raises:
      InputError: It is not such a file.
    """
    reader = csv.DictReader(io.StringIO(text))
    header = list(reader.fieldnames or ())
    measures = [name for name in header if f"{name}_spread" in header]
    if not measures or not {"checkpoint", "accuracy", "group"} <= set(header):
        raise InputError(
            "Not a ranking",
            where=where,
            expected="the columns checkpoint, group, accuracy and those of measures",
            found=", ".join(header) or "nothing",
        )

    def numbers(line: dict[str, str], suffix: str) -> dict[str, float]:
        known = {read_cell(name): line[name + suffix] for name in measures}
        return {name: float(value) for name, value in known.items() if value}

    try:
        rows = [
            Row(
                read_cell(line["checkpoint"]),
                architecture=read_cell(line["architecture"]),
                group=read_cell(line["group"]),
                scores=numbers(line, ""),
                spreads=numbers(line, "_spread"),
                score_seconds=numbers(line, "_seconds"),
                accuracy=float(line["accuracy"]) if line["accuracy"] else None,
                failure=read_cell(line["failure"]),
            )
            for line in reader
        ]
    except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            "A line of a ranking cannot be read", where=where, found=str(error)
        ) from error
    return rank(task, [read_cell(name) for name in measures], rows)


def text_cell(value: str) -> str:
    r"""One line of text that no spreadsheet takes for a formula.

    What is not printable, a line's end say, becomes its Python escape, and so does a
    backslash. What would begin a formula gets an apostrophe before it, and so does a
    text with one of its own; `read_cell` undoes both.

    Example:
      >>> [text_cell(t) for t in ("=cmd()", "a\nb", "\t@x", "it's", "'a'")]
      ["'=cmd()", 'a\\nb', '\\t@x', "it's", "''a'"]
    """
    line = "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode()
        for c in value
    )
    # A spreadsheet may take blanks away before it looks.
    unsafe = line.lstrip().startswith((*_FORMULA_STARTS, "'"))
    return f"'{line}" if unsafe else line


def read_cell(cell: str) -> str:
    """The text that `text_cell` wrote."""
    line = cell[1:] if cell.startswith("'") else cell
    return _ESCAPE.sub(lambda m: m[0].encode().decode("unicode_escape"), line)


def _number(value: float | None) -> str:
    """The shortest decimal that reads back as the same float, or nothing."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else repr(float(value))
