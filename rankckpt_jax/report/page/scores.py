"""The scores of every checkpoint by every measure."""

from __future__ import annotations

import itertools
from typing import Any

from rankckpt_jax.report import columns
from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import NONE, printable
from rankckpt_jax.results.summary import Summary

_MOST_ON_PAPER = 6
"""More measures do not fit beside the names on a printed page."""

_TEMPLATE = """
{% from "macros.html.j2" import name_heading, number_heading %}
{% macro number(cell) %}
<span class="value">{{ cell.text }}</span>
{%- if cell.warning %}<a class="mark" href="#warnings" title="{{ cell.warning }}">
{{- mark }}</a>{% endif %}
{%- if cell.spread %}<small> ±{{ cell.spread }}</small>{% endif %}
{% endmacro %}
<p class="note">Higher scores predict better transfer. Compare the scores of a column
only, and only between checkpoints of this task. The best score of each column is bold;
± is the standard deviation over repetitions.
{% if marked %}
{{ mark }} marks a score with a <a href="#warnings">warning</a>.
{% endif %}
</p>
{% if headings | length > most_on_paper %}
<details class="chooser" hidden>
<summary>Choose columns</summary>
<p><button type="button" data-check="all">All</button>
<button type="button" data-check="none">None</button></p>
<ul>
{% for heading, _ in headings %}
<li><label><input type="checkbox" checked data-column="{{ loop.index }}">
{{ heading }}</label></li>
{% endfor %}
</ul>
</details>
{% endif %}
<div class="scroll{% if blocks %} screen-only{% endif %}" tabindex="0" role="region"
 aria-label="Scores by measure">
<table data-sortable class="scores">
<thead><tr>
{{ name_heading("Checkpoint") -}}
{% for heading, help in headings %}
{{ number_heading(heading, help) -}}
{% endfor %}
</tr></thead>
<tbody>
{% for name, groups, cells in rows %}
<tr data-name="{{ name }}" data-groups="{{ groups }}">
<th scope="row" class="name" data-value="{{ name }}">{{ name | breaks }}</th>
{% for cell in cells %}
<td class="number{{ ' best' if cell.is_best }}"
 data-value="{{ '' if cell.value is none else cell.value }}">
{{- number(cell) }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% for start, end in blocks %}
<table class="scores print-only">
<thead><tr><th scope="col" class="name">Checkpoint</th>
{% for heading, _ in headings[start:end] %}
<th scope="col" class="number">{{ heading | breaks }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for name, groups, cells in rows %}
<tr data-name="{{ name }}" data-groups="{{ groups }}">
<th scope="row" class="name">{{ name | breaks }}</th>
{% for cell in cells[start:end] %}
<td class="number{{ ' best' if cell.is_best }}">{{ number(cell) }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
{% endfor %}
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    ranking = summary.ranking
    rows = [row for row in ranking.rows if not row.failure]
    table = [
        column
        for column in columns.shown(ranking, "page")
        if column.name not in ("rank", "checkpoint", "accuracy")
    ]
    # The ranking itself shows the first measure.
    if len(table) < 2 or not rows:
        return None
    cells = [columns.cells(column, rows, NONE) for column in table]
    starts = range(0, len(table), _MOST_ON_PAPER)
    ends = itertools.chain(starts[1:], [len(table)])
    return {
        "headings": [(column.heading, column.help) for column in table],
        "rows": [
            (printable(row.checkpoint), " ".join(map(printable, row.groups)), line)
            for row, line in zip(rows, zip(*cells, strict=True), strict=True)
        ],
        "blocks": list(zip(starts, ends, strict=True)) if len(starts) > 1 else [],
        "most_on_paper": _MOST_ON_PAPER,
        "mark": columns.MARK,
        "marked": any(cell.warning for column in cells for cell in column),
    }


SECTION = Section(45, "Scores by measure", _TEMPLATE, _values, anchor="scores")
