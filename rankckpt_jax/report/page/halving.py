"""The checkpoints that successive halving tried and dropped."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import NONE, format_metric, printable
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
{% from "macros.html.j2" import name_heading, number_heading %}
<p class="note">All checkpoints were fine-tuned for some steps, and the worse half was
dropped again and again, by {{ metric }} on held-out training images. Values after fewer
steps of the same schedule are lower than those of a complete fine-tuning. They only
decided what was dropped, and are not compared with the scores or with other runs.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Successive halving">
<table data-sortable class="scores">
<thead><tr>
{{ name_heading("Checkpoint") -}}
{{ number_heading("Learning rate", "of its best trial") -}}
{{ number_heading("Steps", "steps of its best trial") -}}
{{ number_heading("Held-out " ~ metric, "after these steps") -}}
<th scope="col">Result</th>
</tr></thead>
<tbody>
{% for name, groups, rate, steps, value, text, result in rows %}
<tr data-name="{{ name }}" data-groups="{{ groups }}">
<th scope="row" class="name" data-value="{{ name }}">{{ name | breaks }}</th>
<td class="number" data-value="{{ rate }}">{{ rate }}</td>
<td class="number" data-value="{{ steps }}">{{ steps }}</td>
<td class="number" data-value="{{ value }}">{{ text }}</td>
<td>{{ result }}</td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    ranking = summary.ranking
    lines = [line for row in ranking.rows if (line := _line(row, ranking.metric))]
    if not lines:
        return None
    lines.sort(key=lambda line: (-line[3], -(line[4] if line[4] != "" else -1)))
    return {"rows": lines, "metric": ranking.metric_title}


def _line(row: Row, metric: str) -> tuple[Any, ...] | None:
    tried = row.tried
    if tried is None:
        return None
    value = "" if tried.accuracy is None else tried.accuracy
    text = NONE if tried.accuracy is None else format_metric(tried.accuracy, metric)
    result = "left" if tried.is_left else "dropped"
    if tried.accuracy is None:
        result += ", diverged"
    return (
        printable(row.checkpoint),
        " ".join(map(printable, row.groups)),
        f"{tried.learning_rate:g}",
        tried.steps,
        value,
        text,
        result,
    )


SECTION = Section(25, "Successive halving", _TEMPLATE, _values, anchor="halving")
