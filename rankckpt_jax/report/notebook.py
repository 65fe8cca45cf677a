"""The ranking as a small HTML table for a notebook."""

import html
from collections.abc import Iterable, Sequence

from rankckpt_jax.report import columns, evaluation
from rankckpt_jax.results.formatting import NONE, printable
from rankckpt_jax.results.summary import Summary


def to_html(summary: Summary) -> str:
    """Return the conclusion, the ranking, its evaluation and its warnings.

    There are no styles or scripts, because notebooks remove them.
    """
    ranking, conclusion = summary.ranking, summary.conclusion
    start, name, end = map(html.escape, conclusion.answer)
    command = ""
    if conclusion.command:
        code = html.escape(conclusion.command)
        command = f"<p>To fine-tune the best two, run:</p><pre>{code}</pre>"
    if ranking.kept:
        code = html.escape(ranking.kept.command)
        command += (
            f"<p>To predict with its fine-tuned weights, run:</p><pre>{code}</pre>"
        )
    quoted = {warning.text for warning in summary.warnings}
    against = [text for text in conclusion.against if text not in quoted]
    sentences = [*conclusion.support, conclusion.verification]
    parts = [
        _tags("h4", [printable(ranking.task)]),
        f"<p>{start}<strong>{name}</strong>{end}</p>",
        _tags("p", [" ".join(filter(None, sentences))] if any(sentences) else []),
        command,
        _tags("p", (f"Against it: {text}" for text in against)),
        _ranking_table(summary) if ranking.rows else "",
    ]
    if summary.agreement.is_known:
        header, *lines = evaluation.lines(summary)
        body = [_tags("td", line) for line in lines]
        parts += [_table(header, body), _tags("p", [evaluation.LEGEND])]
    parts.append(_tags("p", conclusion.details))
    if summary.warnings:
        warnings = (
            f"{', '.join(warning.topics)}: {warning.text} "
            f"({', '.join(warning.checkpoints)})"
            for warning in summary.warnings
        )
        parts.append(f"<p>Warnings:</p><ul>{_tags('li', warnings)}</ul>")
    return "".join(parts)


def _ranking_table(summary: Summary) -> str:
    rows = summary.ranking.rows
    table = columns.shown(summary.ranking, "notebook")
    cells = [columns.cells(column, rows, NONE) for column in table]
    lines = []
    for row, line in zip(rows, zip(*cells, strict=True), strict=True):
        shown = line[:2] if row.excuse else line
        text = "".join(map(_cell, shown))
        if row.excuse:
            reason = html.escape(row.excuse)
            text += f'<td colspan="{len(table) - 2}">{reason}</td>'
        lines.append(text)
    legend = "Higher scores are better; ± is the standard deviation of a score"
    if any(cell.warning for column in cells for cell in column):
        legend += f"; {columns.MARK} marks a score with a warning"
    headings = [column.heading for column in table]
    helps = [column.help for column in table]
    return _table(headings, lines, helps) + _tags("p", [f"{legend}."])


def _cell(cell: columns.Cell) -> str:
    text = html.escape(cell.text)
    if cell.spread:
        text += f" <small>±{html.escape(cell.spread)}</small>"
    if cell.warning:
        text += f'<span title="{html.escape(cell.warning)}">{columns.MARK}</span>'
    return f"<td>{text}</td>"


def _table(
    headings: Sequence[str], lines: Iterable[str], helps: Sequence[str] = ()
) -> str:
    heads = [
        f'<th title="{html.escape(text)}">{html.escape(heading)}</th>'
        for heading, text in zip(headings, helps or headings, strict=True)
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table>"
    )


def _tags(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)
