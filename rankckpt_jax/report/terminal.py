"""The ranking as plain text that fits the width of a terminal."""

import itertools
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from rankckpt_jax.prediction import Prediction
from rankckpt_jax.report import columns, evaluation
from rankckpt_jax.report.names import shorten_names, text_start, text_width
from rankckpt_jax.results.formatting import count, printable
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.summary import Summary

_DEFAULT_WIDTH = 100
"""The width where nothing tells it, such as in a file."""

_MIN_WIDTH, _MAX_TEXT_WIDTH = 40, 88
"""A narrower table is of no use, and longer lines of text are hard to read."""

_NAME_SHARE, _MIN_NAME_WIDTH = 0.4, 12
"""Longer names than this share of the width are shortened, but not below this width."""

_SHORT_ROWS = 10

_GAP = "  "


def to_text(summary: Summary, width: int | None = None) -> str:
    """Return the conclusion, the ranking and its evaluation as plain text.

    Columns that are empty or do not fit are omitted. Names and reasons come from files,
    so characters that could control a terminal are escaped.

    Args:
      summary: The summary of the ranking.
      width: Largest length of a line, except that of a command. By default the width
        of the terminal or the environment's COLUMNS, and 100 where there is neither.

    Returns:
      Several lines without a final newline; `results.ranking.rank` has an example.
    """
    width = get_width(width)
    ranking = summary.ranking
    blocks = [_title(ranking, width), _conclusion_lines(summary, width)]
    if ranking.rows:
        blocks.append(_ranking_lines(ranking, width))
    if ranking.prediction is not None:
        blocks.append(_prediction_lines(ranking.prediction, width))
    if summary.agreement.is_known:
        blocks.append(_evaluation_lines(summary, width))
    notes = [*summary.conclusion.details, *_warnings(summary)]
    if notes:
        blocks.append("\n".join(wrap(note, width) for note in notes))
    return "\n\n".join(blocks)


def to_short_text(ranking: Ranking, width: int | None = None) -> str:
    """Return the first rows of the ranking as plain text.

    The arguments are those of `to_text`.
    """
    width = get_width(width)
    lines = [_title(ranking, width)]
    if ranking.rows:
        lines.append(_ranking_lines(ranking, width, _SHORT_ROWS))
    return "\n".join(lines)


def get_width(width: int | None) -> int:
    """Return a given width of lines, or that of the terminal."""
    found = width or shutil.get_terminal_size((_DEFAULT_WIDTH, 24)).columns
    return max(found, _MIN_WIDTH)


def _title(ranking: Ranking, width: int) -> str:
    title = f"{printable(ranking.task)}: {count(len(ranking.rows), 'checkpoint')}"
    if ranking.failed:
        title += f", {len(ranking.failed)} failed"
    lines = [title, printable(ranking.task_description)]
    return "\n".join(wrap(line, width) for line in lines if line)


def _conclusion_lines(summary: Summary, width: int) -> str:
    """Return the answer and the evidence for and against it."""
    conclusion = summary.conclusion
    lines = ["".join(conclusion.answer), *conclusion.support, conclusion.verification]
    lines = [wrap(line, width) for line in lines if line]
    if conclusion.command:
        # In a line of its own, to be copied.
        lines += ["To fine-tune the best two, run:", f"  {conclusion.command}"]
    if kept := summary.ranking.kept:
        lines += ["To predict with its fine-tuned weights, run:", f"  {kept.command}"]
    quoted = {warning.text for warning in summary.warnings}
    lines += [
        wrap(f"Against it: {sentence}", width)
        for sentence in conclusion.against
        # The warning follows, with its checkpoints.
        if sentence not in quoted
    ]
    return "\n".join(lines)


def _warnings(summary: Summary) -> list[str]:
    marked = set(map(printable, summary.ranking.measures))
    result = []
    for warning in summary.warnings:
        n = len(warning.checkpoints)
        names = warning.checkpoints[0] if n == 1 else count(n, "checkpoint")
        topics = ", ".join(warning.topics)
        mark = f"{columns.MARK} " if marked & set(warning.topics) else ""
        result.append(f"{mark}Warning, {topics} of {names}: {warning.text}")
    return result


def _ranking_lines(ranking: Ranking, width: int, most: int | None = None) -> str:
    """Return the table of checkpoints and what its signs mean.

    Args:
      ranking: A ranking with at least one row.
      width: Largest length of a line.
      most: Number of rows to show, without a legend; all if None.
    """
    rows = ranking.rows
    table = columns.shown(ranking, "terminal")
    cells = {
        column.name: columns.cells(column, rows, "-" if column.format else "")
        for column in table
    }
    texts = {
        column.name: [column.heading, *_texts(cells[column.name])] for column in table
    }
    table = _fit(ranking, table, texts, width)
    lines: list[Sequence[str]] = list(
        zip(*(texts[column.name] for column in table), strict=True)
    )
    # The rank and the texts come first; only these are shown of a failed row.
    num_texts = 1 + sum(column.format is None for column in table)
    tails = {}
    for i, row in enumerate(rows, start=1):
        if row.excuse:
            tails[i] = row.excuse
            lines[i] = lines[i][:num_texts]
    shown = lines if most is None else lines[: most + 1]
    result = [align(shown, left=range(1, num_texts), tails=tails, width=width)]
    if len(shown) < len(lines):
        result.append(f"... and {len(lines) - len(shown)} more")
    hidden = [m for m in ranking.measures if m not in {column.name for column in table}]
    if hidden:
        result.append(_name_hidden(hidden, width))
    if most is None:
        result.append(wrap(_legend(ranking, table, cells), width))
    return "\n".join(result)


def _texts(cells: Sequence[columns.Cell]) -> list[str]:
    """Return the texts of a column, with room for spreads and marks if there are any.

    So the scores stand below each other.
    """
    ends = [
        (f" ±{cell.spread}" if cell.spread else "")
        + (columns.MARK if cell.warning else "")
        for cell in cells
    ]
    width = max(map(len, ends))
    return [f"{cell.text}{end:<{width}}" for cell, end in zip(cells, ends, strict=True)]


def _fit(
    ranking: Ranking,
    table: Sequence[columns.Column],
    texts: dict[str, list[str]],
    width: int,
) -> list[columns.Column]:
    """Return the columns that fit; if not all do, shorten long names in `texts`.

    The rank, the name, the first measure and the accuracy always stay. The layer of the
    first measure follows, the other measures in their order, then the other columns.
    """
    first, *others = ranking.measures
    essential = ["rank", "checkpoint", first, "accuracy"]
    order = [f"{first}_layer", *others, "predicted_accuracy", "probability_best"]
    order += ["ranking_seconds", "architecture"]
    widths = {name: max(map(text_width, column)) for name, column in texts.items()}

    def total(names: Iterable[str]) -> int:
        known = [widths[name] for name in names if name in widths]
        return sum(known) + len(_GAP) * (len(known) - 1)

    if total(widths) <= width:
        return list(table)
    room = width - (total(essential) - widths["checkpoint"])
    limit = max(min(int(_NAME_SHARE * width), room), _MIN_NAME_WIDTH)
    heading, *names = texts["checkpoint"]
    texts["checkpoint"] = [heading, *shorten_names(names, limit)]
    widths["checkpoint"] = max(map(text_width, texts["checkpoint"]))
    kept = essential
    for name in order:
        if name not in widths:
            continue
        if total([*kept, name]) > width:
            break
        kept = [*kept, name]
    return [column for column in table if column.name in kept]


def _name_hidden(measures: Sequence[str], width: int) -> str:
    """Return a line on the measures that do not fit, with as many names as possible."""
    names = [printable(measure) for measure in measures]
    for n in range(len(names), 0, -1):
        more = f" and {len(names) - n} more" if n < len(names) else ""
        line = f"Not shown: {', '.join(names[:n])}{more}; see ranking.csv or to_csv()."
        if text_width(line) <= width:
            return line
    return wrap(f"{count(len(names), 'measure')} not shown; see ranking.csv.", width)


def _legend(
    ranking: Ranking,
    table: Sequence[columns.Column],
    cells: Mapping[str, Sequence[columns.Cell]],
) -> str:
    """Return what the signs and the units of the shown columns mean."""
    shown = {column.name for column in table}
    of_table = [cell for name in shown for cell in cells[name]]
    parts = ["Higher scores are better"]
    if any(cell.spread for cell in of_table):
        parts.append("± is the standard deviation of a score")
    if any(cell.warning for cell in of_table):
        parts.append(f"{columns.MARK} marks a score with a warning")
    if "accuracy" in shown:
        parts.append(f"fine-tuned is the test {ranking.metric_title} after fine-tuning")
    if "predicted_accuracy" in shown:
        parts.append("predicted is that of checkpoints that were not fine-tuned")
    if "probability_best" in shown:
        parts.append("P(best) is the predicted probability of being the best")
    if "ranking_seconds" in shown:
        first = printable(ranking.measures[0])
        compiling = any(" + " in cell.text for cell in cells["ranking_seconds"])
        parts.append(
            f"seconds are those of extraction and scoring by {first}"
            + (", and + those of compiling" if compiling else "")
        )
    return f"{'; '.join(parts)}."


def _prediction_lines(prediction: Prediction, width: int) -> str:
    """Return the conclusion of a prediction."""
    text = f"Prediction: {printable(prediction.conclusion())}"
    return wrap(f"{text} The ranking does not depend on it.", width)


def _evaluation_lines(summary: Summary, width: int) -> str:
    """Return the table of measures, baselines and a random order."""
    header, *lines = evaluation.lines(summary)
    names = shorten_names([line[0] for line in lines], int(_NAME_SHARE * width))
    lines = [[name, *line[1:]] for name, line in zip(names, lines, strict=True)]
    # The metrics are in the order of their importance; the last ones are dropped.
    n = len(header)
    while n > 3 and table_width([line[:n] for line in (header, *lines)]) > width:
        n -= 1
    table = align([line[:n] for line in (header, *lines)], left=[0])
    return f"{table}\n{wrap(evaluation.LEGEND, width)}"


def align(
    lines: Sequence[Sequence[str]],
    left: Iterable[int],
    tails: Mapping[int, str] | None = None,
    width: int | None = None,
) -> str:
    """Align cells in columns and draw a rule below the first line.

    Args:
      lines: The cells of each line, the header first. Only a line with a tail may have
        fewer cells than the header.
      left: Indices of the columns that are aligned to the left, as text is.
      tails: Text after the cells of a line, by index of the line.
      width: Tails are cut at this length of a line; not at all if None.

    Returns:
      The lines, without trailing blanks.
    """
    widths = _column_widths(lines)
    left, tails = set(left), tails or {}
    aligned = []
    for i, line in enumerate(lines):
        cells = []
        for j, cell in enumerate(line):
            blanks = " " * (widths[j] - text_width(cell))
            cells.append(cell + blanks if j in left else blanks + cell)
        start = _GAP.join([*cells, ""]) if i in tails else _GAP.join(cells)
        tail = tails.get(i, "")
        if width is not None:
            tail = _cut(tail, width - text_width(start))
        aligned.append(f"{start}{tail}".rstrip())
    rule = "-" * table_width(lines)
    return "\n".join([aligned[0], rule, *aligned[1:]])


def _column_widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [
        max(map(text_width, c)) for c in itertools.zip_longest(*lines, fillvalue="")
    ]


def table_width(lines: Sequence[Sequence[str]]) -> int:
    """Return the width of the table that `align` makes."""
    widths = _column_widths(lines)
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _cut(text: str, width: int) -> str:
    """Return the start of a text, with an ellipsis if it is longer than `width`."""
    return text if text_width(text) <= width else f"{text_start(text, width - 1)}…"


def wrap(text: str, width: int) -> str:
    """Return a text in lines of at most this width, and of 88 letters."""
    width = min(width, _MAX_TEXT_WIDTH)
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
