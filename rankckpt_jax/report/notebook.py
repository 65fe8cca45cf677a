"""The ranking as a small HTML table for a notebook."""

import html

from rankckpt_jax.report import columns
from rankckpt_jax.results.formatting import NONE, one_line, printable
from rankckpt_jax.results.summary import Summary


def to_html(summary: Summary) -> str:
    """Return the ranking and its conclusions, without styles or scripts."""
    ranking = summary.ranking
    table = columns.shown(ranking, "notebook")
    texts = [
        [
            cell.text + (columns.MARK if cell.warning else "")
            for cell in columns.cells(column, ranking.rows, NONE)
        ]
        for column in table
    ]
    lines = []
    for row, line in zip(ranking.rows, zip(*texts, strict=True), strict=True):
        if row.failure:
            reason = html.escape(f"failed: {one_line(row.failure)}")
            failed = f"<td colspan={len(table) - 2}>{reason}</td>"
            lines.append(_tags("td", line[:2]) + failed)
        else:
            lines.append(_tags("td", line))
    return "".join(
        [
            _tags("h4", [printable(ranking.task)]),
            "<table><thead><tr>",
            _tags("th", [column.heading for column in table]),
            "</tr></thead><tbody>",
            *(f"<tr>{line}</tr>" for line in lines),
            "</tbody></table>",
            _tags("p", summary.sentences),
        ]
    )


def _tags(tag, texts) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)
