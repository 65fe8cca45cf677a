"""The ranking as a small table for a notebook, which has its own looks."""

import html

from rankckpt_jax.report import conclusions as sentences
from rankckpt_jax.report.text import format_percent, format_scores, one_line, printable
from rankckpt_jax.results.ranking import Ranking


def to_html(ranking: Ranking) -> str:
    """Renders the headline, the ranking and what can be concluded, all escaped.

    Args:
      ranking: The ranking.

    Returns:
      HTML without styles or scripts, to stand in a notebook's cell.
    """
    rows, headings = ranking.rows, ["#", "checkpoint"]
    columns = [
        ["–" if p is None else str(p) for p in ranking.ranks],
        [printable(row.checkpoint) for row in rows],
    ]
    for measure in ranking.measures:
        headings.append(printable(measure))
        columns.append(format_scores([row.score(measure) for row in rows]))
    accuracies = [row.finite_accuracy() for row in rows]
    if any(accuracy is not None for accuracy in accuracies):
        headings.append("fine-tuned")
        columns.append(["–" if a is None else format_percent(a) for a in accuracies])
    lines = []
    for i, row in enumerate(rows):
        cells = [column[i] for column in columns]
        if row.failure:
            reason = html.escape(f"failed: {one_line(row.failure)}")
            lines.append(
                f"{_cells(cells[:2])}<td colspan={len(headings) - 2}>{reason}</td>"
            )
        else:
            lines.append(_cells(cells))
    told = [sentences.headline(ranking), *sentences.conclusions(ranking)]
    return "".join(
        [
            f"<h4>{html.escape(printable(ranking.task))}</h4>",
            "<table><thead><tr>",
            *(f"<th>{html.escape(heading)}</th>" for heading in headings),
            "</tr></thead><tbody>",
            *(f"<tr>{line}</tr>" for line in lines),
            "</tbody></table>",
            *(f"<p>{html.escape(sentence)}</p>" for sentence in told),
        ]
    )


def _cells(texts: list[str]) -> str:
    return "".join(f"<td>{html.escape(text)}</td>" for text in texts)
