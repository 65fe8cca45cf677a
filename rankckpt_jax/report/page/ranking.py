"""The table of checkpoints."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report import columns
from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import NONE, count, format_large, printable
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
{% from "macros.html.j2" import name_heading, number_heading %}
{% if rows | length > 5 %}
<div class="filter" role="search" hidden>
<label>Show only <input type="search" data-filter placeholder="name or architecture"
autocomplete="off" spellcheck="false"></label>
{% if groups %}
<label>in <select data-filter-group><option value="">all groups</option>
{% for name, title in groups %}
<option value="{{ name }}">{{ title }}</option>
{% endfor %}
</select></label>
{% endif %}
<output data-filter-count aria-live="polite"></output>
</div>
{% endif %}
<div class="scroll" tabindex="0" role="region" aria-label="Ranking table">
<table data-sortable class="ranking">
<thead><tr>
<th scope="col" class="rank" aria-sort="ascending">
<button type="button" data-first="ascending">#</button></th>
{{ name_heading("Checkpoint") -}}
{% for column in columns %}
{{ number_heading(column.heading, column.help) -}}
{% endfor %}
</tr></thead>
<tbody>
{% for row in rows %}
<tr{% if row.is_first %} class="first"{% endif %}
 data-name="{{ row.name }} {{ row.about }}" data-groups="{{ row.groups }}">
<td class="rank" data-value="{{ row.rank or '' }}">{{ row.rank or none_text }}</td>
<th scope="row" class="name" data-value="{{ row.name }}">{{ row.name }}
{%- if row.about %}<small>{{ row.about }}</small>{% endif %}</th>
{% for cell in row.cells %}
{% set column = columns[loop.index0] %}
<td class="number {{ 'truth' if column.name == 'accuracy' else 'score' }}
{{- ' best' if cell.is_best }}" data-label="{{ column.heading }}"
 data-value="{{ '' if cell.value is none else cell.value }}">
<span class="value">{{ cell.text }}{% if cell.warning -%}
<span class="mark" title="{{ cell.warning }}">{{ mark }}</span>{% endif %}</span>
{%- if cell.spread %}<small>±{{ cell.spread }}</small>{% endif %}
{%- if cell.bar is not none %}
<span class="bar" aria-hidden="true"><i class="share{{ cell.bar }}"></i></span>
{%- endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
<p class="note">Ordered by {{ measure }}; click a heading to sort by its column.
Higher scores predict better transfer. Compare scores only between checkpoints of this
task. Bars of scores range from the lowest to the highest score of the column, bars of
accuracy from 0 to 100%. The best value of each column is bold; ± is the standard
deviation over repetitions.
{% if marked %}
{{ mark }} marks a score with a <a href="#warnings">warning</a>.
{% endif %}
{% if sources %}
Accuracies that were not measured in this run are from {{ sources | join("; ") }}.
{% endif %}
{% if failed %}
<a href="#failed">{{ failed }} failed</a>.
{% endif %}
</p>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    ranking = summary.ranking
    ranks = [
        (row, rank)
        for row, rank in zip(ranking.rows, ranking.ranks, strict=True)
        if not row.failure
    ]
    if not ranks:
        return None
    rows = [row for row, _ in ranks]
    table = columns.shown(ranking, "page")
    numbers = [column for column in table if column.name not in ("rank", "checkpoint")]
    # Beside the first measure, accuracies are easy to compare and stay in sight.
    names = [ranking.measures[0], "accuracy"]
    numbers.sort(key=lambda c: names.index(c.name) if c.name in names else len(names))
    cells = [columns.cells(column, rows, NONE) for column in numbers]
    groups = sorted({group for row in rows for group in row.groups})
    sources = sorted({row.accuracy_source for row in rows if row.accuracy_source})
    return {
        "columns": numbers,
        "rows": [
            {
                "rank": rank,
                "is_first": rank == 1 and not ranking.ranks_nothing,
                "name": printable(row.checkpoint),
                "about": _about(ranking, row),
                "groups": " ".join(map(printable, row.groups)),
                "cells": [column[i] for column in cells],
            }
            for i, (row, rank) in enumerate(ranks)
        ],
        "groups": [
            (printable(group), printable(ranking.group_title(group)))
            for group in groups
            if len(groups) > 1
        ],
        "measure": printable(ranking.measures[0]),
        "mark": columns.MARK,
        "marked": any(cell.warning for column in cells for cell in column),
        "sources": [printable(source) for source in sources],
        "failed": ranking.failed and count(len(ranking.failed), "checkpoint"),
        "none_text": NONE,
    }


def _about(ranking: Ranking, row: Row) -> str:
    """Return a line on the network and its input."""
    parts = [printable(row.architecture)]
    titles = map(ranking.group_title, row.groups)
    parts += [printable(title.partition(":")[0]) for title in titles]
    if row.image_size is not None:
        parts.append(f"{row.image_size} px")
    parts.append(printable(row.preprocessing))
    if row.num_parameters is not None:
        parts.append(f"{format_large(row.num_parameters)} parameters")
    if row.feature_dim is not None:
        parts.append(f"{row.feature_dim:,} features")
    if row.feature_tensor:
        parts.append(printable(f"from {row.feature_tensor}"))
    return " · ".join(filter(None, parts))


SECTION = Section(10, "Ranking", _TEMPLATE, _values)
