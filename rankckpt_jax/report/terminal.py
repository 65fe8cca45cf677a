"""The ranking as plain text for a terminal."""

import itertools
import math
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from rankckpt_jax.report import columns
from rankckpt_jax.results import verification
from rankckpt_jax.results.formatting import count, one_line, printable
from rankckpt_jax.results.summary import Summary

_METRICS = ("recall@1", "rel@1", "recall@3", "rel@3", "pearson", "kendall")

_REASON_WIDTH = 120
"""Longer reasons of failures are cut; the page shows all of them."""


def to_text(summary: Summary) -> str:
    """Return the ranking, its evaluation and its conclusions as plain text.

    Empty columns are omitted. Names and reasons come from files, so characters that
    could control a terminal are escaped.

    Returns:
      Several lines without a final newline; `results.ranking.rank` has an example.
    """
    ranking = summary.ranking
    failed = len(ranking.failed)
    title = f"{printable(ranking.task)}: {count(len(ranking.rows), 'checkpoint')}"
    title += f", {failed} failed" if failed else ""
    description = printable(ranking.task_description)
    blocks = [f"{title}\n{description}" if description else title]
    if ranking.rows:
        blocks.append(_ranking_lines(summary))
    if summary.agreement.is_known:
        blocks.append(_evaluation_lines(summary))
    conclusion = summary.conclusion
    lines = ["".join(conclusion.answer), *conclusion.support, conclusion.verification]
    if conclusion.command:
        lines += ["To fine-tune the best two, run:", conclusion.command]
    quoted = {warning.text for warning in summary.warnings}
    lines += [text for text in conclusion.against if text not in quoted]
    lines += conclusion.details
    lines = [line for line in lines if line]
    marked = set(map(printable, ranking.measures))
    for warning in summary.warnings:
        n = len(warning.checkpoints)
        names = warning.checkpoints[0] if n == 1 else count(n, "checkpoint")
        topics = ", ".join(warning.topics)
        mark = f"{columns.MARK} " if marked & set(warning.topics) else ""
        lines.append(f"{mark}Warning, {topics} of {names}: {warning.text}")
    blocks.append("\n".join(map(_wrap, lines)))
    return "\n\n".join(blocks)


def _ranking_lines(summary: Summary) -> str:
    """Return the table of checkpoints."""
    rows = summary.ranking.rows
    table = columns.shown(summary.ranking, "terminal")
    texts = [
        _texts(columns.cells(column, rows, "-" if column.format else ""))
        for column in table
    ]
    lines: list[Sequence[str]] = [[column.heading for column in table]]
    # The rank and the texts come first; of a failed row only these are shown.
    num_texts = 1 + sum(column.format is None for column in table)
    tails = {}
    for row, cells in zip(rows, zip(*texts, strict=True), strict=True):
        if row.failure:
            tails[len(lines)] = f"failed: {_shorten(one_line(row.failure))}"
            cells = cells[:num_texts]
        lines.append(cells)
    return align(lines, left=range(1, num_texts), tails=tails)


def _texts(cells: Sequence[columns.Cell]) -> list[str]:
    """Return the texts of a column, with room for the mark if any cell has one."""
    blank = " " if any(cell.warning for cell in cells) else ""
    return [
        (f"{cell.text} ±{cell.spread}" if cell.spread else cell.text)
        + (columns.MARK if cell.warning else blank)
        for cell in cells
    ]


def _evaluation_lines(summary: Summary) -> str:
    """Return the table of measures, baselines and a random order."""

    def line(name: str, n: int, scores: Mapping[str, float]) -> list[str]:
        values = [scores[key] for key in _METRICS]
        cells = ["-" if math.isnan(value) else f"{value:.2f}" for value in values]
        return [name, str(n), *cells]

    agreement = summary.agreement
    lines = [["measure", "n", *_METRICS]]
    for measure, of_measure in agreement.measures.items():
        lines.append(line(printable(measure), of_measure.n, of_measure.scores))
    for baseline in *agreement.baselines, agreement.random_order:
        lines.append(line(f"({baseline.name})", baseline.n, baseline.scores))
    return align(lines, left=[0])


def align(
    lines: Sequence[Sequence[str]],
    left: Iterable[int],
    tails: Mapping[int, str] | None = None,
) -> str:
    """Align cells in columns and draw a rule below the first line.

    Args:
      lines: The cells of each line, the header first. Only a line with a tail may have
        fewer cells than the header.
      left: Indices of the columns that are aligned to the left, as text is.
      tails: Text after the cells of a line, by index of the line.

    Returns:
      The lines, without trailing blanks.
    """
    widths = [max(map(_width, c)) for c in itertools.zip_longest(*lines, fillvalue="")]
    left, tails = set(left), tails or {}
    aligned = []
    for i, line in enumerate(lines):
        cells = []
        for j, cell in enumerate(line):
            blanks = " " * (widths[j] - _width(cell))
            cells.append(cell + blanks if j in left else blanks + cell)
        aligned.append("  ".join([*cells, tails.get(i, "")]).rstrip())
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([aligned[0], rule, *aligned[1:]])


def _width(text: str) -> int:
    """Return the width of `text` in a terminal, where wide characters take two."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def _shorten(text: str) -> str:
    return text if len(text) <= _REASON_WIDTH else text[: _REASON_WIDTH - 1] + "…"


def _wrap(sentence: str) -> str:
    if sentence.startswith(verification.PROGRAM):
        return sentence  # To be copied.
    return textwrap.fill(
        sentence, width=80, break_long_words=False, break_on_hyphens=False
    )
