"""The checkpoints in order, each on one common axis."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any

from rankckpt_jax.report import columns, csv, paths, plots, svg
from rankckpt_jax.report.columns import Cell, Column
from rankckpt_jax.report.page import ranks
from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import (
    NONE,
    capitalize,
    count,
    format_large,
    printable,
)
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import Row, finite
from rankckpt_jax.results.summary import Summary

_NUM_TICKS = 3
"""The texts of more ticks would overlap on paper."""

_TEMPLATE = """
{% from "macros.html.j2" import name_heading %}
<p class="note">A higher score by {{ measure }} predicts better transfer.
{% if has_scores %}
● is the score
{%- if has_spreads %}, and the bar around it is two standard deviations of its noise to
each side{% endif %}; all checkpoints are on one axis.
{% endif %}
{% if has_accuracies %}
◆ is the {{ metric }} after fine-tuning.
{% endif %}
{% if has_outliers %}
An arrowhead at an end stands for an outlier beyond the axis.
{% endif %}
{% if chips %}
The numbers on the right are the ranks by each measure, the best with the most color.
{% endif %}
{% if marked %}
{{ mark }} marks a score with a <a href="#warnings">warning</a>.
{% endif %}
</p>
<div class="tools">
{% if rows | length > 5 %}
<label hidden>Show only <input type="search" data-filter placeholder="name or network"
autocomplete="off" spellcheck="false"></label>
{% if groups %}
<label hidden>in <select data-filter-group><option value="">all groups</option>
{% for name, title in groups %}
<option value="{{ name }}">{{ title }}</option>
{% endfor %}
</select></label>
{% endif %}
<output data-filter-count aria-live="polite"></output>
{% endif %}
<a download="{{ file }}" href="{{ csv | markup }}">Download CSV</a>
{% if has_others %}
<a href="#scores">Scores by all measures</a>
{% endif %}
{% if has_provenance %}
<a href="#provenance">How this was made</a>
{% endif %}
</div>
<table data-sortable class="ranking scales{{ scales | length }}">
<thead><tr>
<th scope="col" class="rank" aria-sort="ascending">
<button type="button" data-first="ascending">Rank</button></th>
{{ name_heading("Checkpoint") -}}
{% for scale in scales %}
<th scope="col" class="scale number"><button type="button" data-first="descending"
 title="{{ scale.column.help }}">{{ scale.heading }}</button>
<span class="pair">{{ scale.ruler | markup }}<span class="figure"></span></span></th>
{% endfor %}
{% if chips %}
<th scope="col" class="chips">Ranks: {{ chips | join(" · ") }}</th>
{% endif %}
</tr></thead>
<tbody>
{% for row in rows %}
<tr{% if row.is_answer %} class="answer"{% endif %}
 data-name="{{ row.name }} {{ row.about_all }}" data-groups="{{ row.groups }}">
<td class="rank" data-value="{{ row.rank or '' }}">{{ row.rank or none_text }}</td>
<th scope="row" class="name" data-value="{{ row.name }}">{{ row.name | breaks }}
{%- if row.about %}<small>{{ row.about | code }}</small>{% endif %}</th>
{% for cell, strip in row.cells %}
<td class="scale"
 data-value="{{ '' if cell.value is none else cell.value }}"><span class="pair">
{{- strip | markup }}<span class="figure{{ ' best' if cell.is_best }}">
{%- if strip and scales[loop.index0].is_measured -%}
<span class="sign">◆</span>
{% endif %}
<span class="value">{{ cell.text }}</span>
{%- if cell.warning %}<a class="mark" href="#warnings" title="{{ cell.warning }}">
{{- mark }}</a>{% endif %}
{%- if cell.spread %}<small> ±{{ cell.spread }}</small>{% endif %}</span></span></td>
{% endfor %}
{% if chips %}
<td class="chips">
{% for text, shade in row.chips %}
<span class="chip share{{ shade }}" data-label="{{ chips[loop.index0] }}"
 title="Rank {{ text }} by {{ chips[loop.index0] }}">{{ text }}</span>
{% endfor %}
</td>
{% endif %}
</tr>
{% endfor %}
</tbody>
</table>
{% if sources or failed %}
<p class="note">
{% if sources %}
Accuracies that were not measured in this run are from {{ sources | join("; ") }}.
{% endif %}
{% if failed %}
<a href="#failed">{{ failed }} failed</a>.
{% endif %}
</p>
{% endif %}
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    ranking = summary.ranking
    if len(ranking.failed) == len(ranking.rows):
        return None
    rows, first = ranking.rows, ranking.measures[0]
    # If two columns have one name, the first is the measure's.
    shown = {c.name: c for c in reversed(columns.shown(ranking, "page"))}
    scales = [
        scale
        for name, heading in (
            (first, f"Score by {printable(first)}"),
            ("accuracy", f"{capitalize(ranking.metric_title)} after fine-tuning"),
        )
        if name in shown and (scale := _scale(shown[name], heading, ranking))
    ]
    chips = ranking.measures if ranks.fits_beside_names(ranking) else ()
    chips_by_row = _chips(summary) if chips else {}
    groups = sorted({group for row in rows for group in row.groups})
    sources = sorted({row.accuracy_source for row in rows if row.accuracy_source})
    return {
        "scales": scales,
        "rows": [
            {
                "rank": rank,
                "is_answer": printable(row.checkpoint) == summary.conclusion.answer[1],
                "name": printable(row.checkpoint),
                "about": _about(row),
                "about_all": printable(row.architecture),
                "groups": " ".join(map(printable, row.groups)),
                "cells": [scale["cells"][i] for scale in scales],
                "chips": chips_by_row.get(id(row), []),
            }
            for i, (row, rank) in enumerate(zip(rows, ranking.ranks, strict=True))
        ],
        "chips": list(map(printable, chips)),
        "groups": [
            (printable(group), printable(ranking.group_title(group)))
            for group in groups
            if len(groups) > 1
        ],
        "measure": printable(first),
        "has_scores": bool(ranking.scored_rows),
        "has_spreads": any(row.spread(first) for row in rows),
        "has_accuracies": any(scale["is_measured"] for scale in scales),
        "metric": ranking.metric_title,
        "has_others": len(ranking.measures) > 1,
        "has_provenance": bool(ranking.provenance),
        "mark": columns.MARK,
        "has_outliers": any(scale["has_outlier"] for scale in scales),
        "marked": any(cell.warning for scale in scales for cell, _ in scale["cells"]),
        "sources": [printable(source) for source in sources],
        "failed": ranking.failed and count(len(ranking.failed), "checkpoint"),
        "none_text": NONE,
        "csv": _download(ranking),
        "file": f"{printable(ranking.task)}-ranking.csv",
    }


def _scale(column: Column, heading: str, ranking: Ranking) -> Mapping[str, Any] | None:
    """Return the ruler and the cells of a column, or None if it has no value.

    Each cell comes with its drawing on the axis that the rows share.
    """
    rows = ranking.rows
    cells = [
        Cell(None, "") if row.failure else cell
        for row, cell in zip(rows, columns.cells(column, rows, NONE), strict=True)
    ]
    values = [cell.value for cell in cells if isinstance(cell.value, float)]
    if not values:
        return None
    is_measured = column.name == "accuracy"
    # About 95 % of normally distributed noise is within two standard deviations.
    noise = [
        0.0 if row.failure else 2 * (finite(column.spread(row)) or 0.0) for row in rows
    ]
    low, high = svg.bulk(values)
    ends = [
        cell.value + side * half
        for cell, half in zip(cells, noise, strict=True)
        if isinstance(cell.value, float) and low <= cell.value <= high
        for side in (-1, 1)
    ]
    make_axis = plots.metric_axis(ranking) if is_measured else svg.axis
    axis = make_axis(ends, num_ticks=_NUM_TICKS)
    name = ranking.metric_title if is_measured else "score"
    return {
        "column": column,
        "heading": heading,
        "is_measured": is_measured,
        "has_outlier": low > min(values) or high < max(values),
        "ruler": svg.ruler(axis, name),
        "cells": [
            (
                cell,
                svg.strip(axis, name, cell.value, half, measured=is_measured)
                if isinstance(cell.value, float)
                else "",
            )
            for cell, half in zip(cells, noise, strict=True)
        ],
    }


def _chips(summary: Summary) -> dict[int, list[tuple[str, int]]]:
    """Return text and shade of the ranks by each measure, by identity of the row."""
    ranking = summary.ranking
    shaded = [ranks.shade_ranks(summary.ranks[m]) for m in ranking.measures]
    by_row = zip(*shaded, strict=True)
    return dict(zip(map(id, ranking.scored_rows), map(list, by_row), strict=True))


def _about(row: Row) -> str:
    """Return a line on the network's size and input, or on why it has no score."""
    if row.failure:
        return f"not ranked: {printable(row.failure.splitlines()[0])}"
    if row.dropped is not None:
        return str(row.dropped)
    parts = []
    if row.feature_dim is not None:
        parts.append(f"{row.feature_dim:,}\N{NO-BREAK SPACE}features")
    if row.num_parameters is not None:
        number = format_large(row.num_parameters)
        parts.append(f"{number}\N{NO-BREAK SPACE}parameters")
    if row.image_size is not None:
        parts.append(f"{row.image_size}\N{NO-BREAK SPACE}px")
    return " · ".join(parts)


def _download(ranking: Ranking) -> str:
    """Return the ranking as the address of a CSV file that a link can save."""
    text = paths.hide_directories(csv.to_csv(ranking))
    # No reserved character is safe inside an attribute.
    return "data:text/csv;charset=utf-8," + urllib.parse.quote(text, safe="/:;,@()*+")


SECTION = Section(10, "Ranking", _TEMPLATE, _values)
