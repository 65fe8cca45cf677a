"""The cost of ranking and of fine-tuning."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.costs import CostComparison, sum_measures, sum_rows
from rankckpt_jax.results.formatting import (
    count,
    format_large,
    format_time,
    printable,
)
from rankckpt_jax.results.summary import Summary

_FORMATS = {
    "seconds": ("Time", format_time),
    "images": ("Images through a network", lambda number, _: format_large(number)),
    "operations": ("Operations", lambda number, _: f"{format_large(number)}FLOP"),
}
"""Title and format of each cost, called with its value and the compiling in it."""

_TEMPLATE = """
{% from "macros.html.j2" import name_heading, number_heading %}
{% for title, sentence, bars in comparisons %}
{% if sentence %}
<p>{{ sentence }}</p>
{% endif %}
<h3>{{ title }}</h3>
<dl class="bars">
{% for name, text, share in bars %}
<dt>{{ name }}</dt>
<dd><span class="track" aria-hidden="true"><i class="share{{ share }}"></i></span>
<span class="value">{{ text }}</span></dd>
{% endfor %}
</dl>
{% endfor %}
<details>
<summary>Time for each step and checkpoint</summary>
<table class="costs">
<thead><tr><th scope="col" class="name">Step</th>
<th scope="col" class="number">Time for all checkpoints</th></tr></thead>
<tbody>
{% for name, text in totals %}
<tr><th scope="row" class="name">{{ name | breaks }}</th>
<td class="number">{{ text }}</td></tr>
{% endfor %}
</tbody>
</table>
<p class="note">Features are extracted once and shared by all measures.</p>
<table data-sortable class="costs">
<thead><tr>
{{ name_heading("Checkpoint") -}}
{% for heading in headings %}
{{ number_heading(heading) -}}
{% endfor %}
</tr></thead>
<tbody>
{% for name, cells in rows %}
<tr><th scope="row" class="name" data-value="{{ name }}">{{ name | breaks }}</th>
{% for value, text in cells %}
<td class="number" data-value="{{ '' if value is none else value }}">{{ text }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</details>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    costs = summary.costs
    if costs is None:
        return None
    measure = printable(summary.ranking.measures[0])
    # A step without any time has no column.
    stages = [
        (name, list(zip(column, compiling, strict=True)))
        for (name, column), (_, compiling) in zip(
            sum_measures(costs.seconds),
            sum_measures(costs.compile_seconds),
            strict=True,
        )
        if any(second is not None for second in column)
    ]
    lines = zip(*(column for _, column in stages), strict=True)
    totals = zip(
        costs.seconds,
        sum_rows(costs.seconds),
        sum_rows(costs.compile_seconds),
        strict=True,
    )
    return {
        "comparisons": [_comparison(cost, measure) for cost in costs.comparisons],
        "headings": [name for name, _ in stages],
        "rows": [
            (printable(row.checkpoint), [(s, format_time(s, part)) for s, part in line])
            for row, line in zip(costs.rows, lines, strict=True)
        ],
        "totals": [
            (printable(name), format_time(total, compiling))
            for (name, _), total, compiling in totals
            if total is not None
        ],
    }


def _comparison(cost: CostComparison, measure: str) -> tuple[str, str, list[Any]]:
    title, format = _FORMATS[cost.name]
    longest = max(cost.ranking, cost.finetuning) or 1.0
    bars = [
        (name, format(value, compiling), round(100 * value / longest))
        for name, value, compiling in (
            (f"Ranking with {measure}", cost.ranking, cost.ranking_compiling),
            ("Fine-tuning", cost.finetuning, cost.finetuning_compiling),
        )
    ]
    return title, _sentence(cost) if cost.name == "seconds" else "", bars


def _sentence(cost: CostComparison) -> str:
    if cost.factor is None:
        return "Ranking was not faster than fine-tuning."
    factor = f"{cost.factor:.1f}" if cost.factor < 10 else f"{cost.factor:,.0f}"
    them = "it" if cost.num_checkpoints == 1 else "them"
    return (
        f"Fine-tuning {count(cost.num_checkpoints, 'checkpoint')} took {factor} times "
        f"as long as ranking {them}."
    )


SECTION = Section(60, "Cost", _TEMPLATE, _values)
