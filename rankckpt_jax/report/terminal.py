"""The ranking as plain text for a terminal."""

import itertools
import math
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from rankckpt_jax import evaluation
from rankckpt_jax.report import conclusions as sentences
from rankckpt_jax.report.text import (
    count,
    format_percent,
    format_scores,
    one_line,
    printable,
)
from rankckpt_jax.results.ranking import Ranking

_REASON_WIDTH = 120
"""Characters of a failure's reason; the page has all of it."""


def format_table(ranking: Ranking) -> str:
    """Lays a ranking out as plain text: table, evaluation, and what follows from it.

    Columns that would be empty are left out. Names and reasons come from files, so
    whatever could steer a terminal is shown escaped (`printable`).

    Args:
      ranking: The ranking.

    Returns:
      Text of several lines without a final newline;
      `rankckpt_jax.results.ranking.rank` has an example.
    """
    failed = len(ranking.failed)
    title = f"{printable(ranking.task)}: {count(len(ranking.rows), 'checkpoint')}"
    title += f", {failed} failed" if failed else ""
    description = printable(ranking.task_description)
    blocks = [f"{title}\n{description}" if description else title]
    if ranking.rows:
        blocks.append(_ranking_lines(ranking))
    if any(len(ranking.evaluated_rows(measure)) > 1 for measure in ranking.measures):
        blocks.append(_evaluation_lines(ranking))
    lines = [sentences.headline(ranking), *sentences.conclusions(ranking)]
    for warning in sentences.grouped_warnings(ranking):
        n = len(warning.checkpoints)
        about = warning.checkpoints[0] if n == 1 else count(n, "checkpoint")
        lines.append(f"Warning, {warning.topic} of {about}: {warning.text}")
    blocks.append("\n".join(map(_wrap, lines)))
    return "\n\n".join(blocks)


def _ranking_lines(ranking: Ranking) -> str:
    """The numbered table of checkpoints."""
    rows, first = ranking.rows, ranking.measures[0]
    numbers = ["-" if p is None else str(p) for p in ranking.ranks]
    texts = {"#": numbers, "checkpoint": [printable(row.checkpoint) for row in rows]}
    if any(row.architecture for row in rows):
        texts["architecture"] = [printable(row.architecture) for row in rows]
    values = {}
    for measure in ranking.measures:
        scores = format_scores([row.score(measure) for row in rows])
        spreads = [row.spread(measure) for row in rows]
        values[printable(measure)] = [
            score if spread is None else f"{score} ±{spread:.2g}"
            for score, spread in zip(scores, spreads, strict=True)
        ]
    accuracies = [row.finite_accuracy() for row in rows]
    if any(accuracy is not None for accuracy in accuracies):
        values["fine-tuned"] = [
            "-" if accuracy is None else format_percent(accuracy)
            for accuracy in accuracies
        ]
    seconds = [row.ranking_seconds(first) for row in rows]
    if any(value is not None for value in seconds):
        values["seconds"] = [
            "-" if value is None else f"{value:.1f}" for value in seconds
        ]
    lines = [[*texts, *values]]
    tails = {}
    for i, row in enumerate(rows):
        cells = [column[i] for column in texts.values()]
        if row.failure:
            # A failure has no numbers: its reason takes their place.
            tails[len(lines)] = f"failed: {_shorten(one_line(row.failure))}"
        else:
            cells += [column[i] for column in values.values()]
        lines.append(cells)
    return align(lines, left=range(1, len(texts)), tails=tails)


def _evaluation_lines(ranking: Ranking) -> str:
    """The table of measures and baselines, closed by what a random order gets."""
    names = ("recall@1", "rel@1", "recall@3", "rel@3", "pearson", "kendall")

    def line(name: str, n: int, scores: Mapping[str, float]) -> list[str]:
        values = [scores[key] for key in names]
        cells = ["-" if math.isnan(value) else f"{value:.2f}" for value in values]
        return [name, str(n), *cells]

    lines = [["measure", "n", *names]]
    for measure, scores in ranking.evaluation.items():
        lines.append(
            line(printable(measure), len(ranking.evaluated_rows(measure)), scores)
        )
    for name, baseline in ranking.assessment.baselines.items():
        lines.append(line(f"({name})", baseline.n, baseline.scores))
    pairs = ranking.evaluated_rows(ranking.measures[0])
    chance = evaluation.random_ranking([row.finite_accuracy() for row in pairs])
    lines.append(line("(random order)", len(pairs), chance))
    return align(lines, left=[0])


def align(
    lines: Sequence[Sequence[str]],
    left: Iterable[int],
    tails: Mapping[int, str] | None = None,
) -> str:
    """Lays cells out in columns with a rule below the first line.

    Args:
      lines: Cells, the header first; only a line with a tail may be shorter than it.
      left: Which columns are text, flush left; the others are numbers, flush right.
      tails: By number of the line, text that runs on freely after its cells.

    Returns:
      The lines, without trailing blanks.
    """
    columns = itertools.zip_longest(*lines, fillvalue="")
    widths = [max(map(_width, column)) for column in columns]
    left, tails = set(left), tails or {}
    laid = []
    for i, line in enumerate(lines):
        cells = []
        for j, cell in enumerate(line):
            blanks = " " * (widths[j] - _width(cell))
            cells.append(cell + blanks if j in left else blanks + cell)
        laid.append("  ".join([*cells, tails.get(i, "")]).rstrip())
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([laid[0], rule, *laid[1:]])


def _width(text: str) -> int:
    """The columns that `text` takes in a terminal: wide characters take two."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def _shorten(text: str) -> str:
    return text if len(text) <= _REASON_WIDTH else text[: _REASON_WIDTH - 1] + "…"


def _wrap(sentence: str) -> str:
    return textwrap.fill(
        sentence, width=80, break_long_words=False, break_on_hyphens=False
    )
