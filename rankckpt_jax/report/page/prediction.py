"""The predicted accuracies, with the contributions of their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankckpt_jax.evaluation.table import STATICS
from rankckpt_jax.prediction import CheckpointPrediction, Prediction
from rankckpt_jax.prediction.belief import HISTORY
from rankckpt_jax.prediction.predictor import FINE_TUNED_HERE
from rankckpt_jax.report import svg
from rankckpt_jax.report.names import shorten_in_text
from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import (
    count,
    format_percent,
    format_probability,
    printable,
)
from rankckpt_jax.results.summary import Summary

_MOST = 10
"""Number of rows; later ones are of no interest, and CSV and JSON files have them."""

_LONG_NAME = 30

_FIRST = 3
"""P(among the first three) is of interest in larger pools only."""

_SMALLEST = 0.01
"""Inputs that contribute less to every checkpoint are not shown."""

_TEMPLATE = """
{% from "macros.html.j2" import name_heading, number_heading %}
<p>{{ sentences }}</p>
<p class="note">The ranking above does not depend on this prediction, because the
predictor does not beat every baseline in published tables.{{ " " ~ evidence }}</p>
<div class="scroll" tabindex="0" role="region" aria-label="Prediction">
<table data-sortable class="prediction">
<thead><tr>
{{ name_heading("Checkpoint") -}}
{% if ruler %}
<th scope="col" class="scale"><button type="button" data-first="descending"
 title="Accuracy after fine-tuning, with 80 % interval">Predicted accuracy</button>
<span class="pair">{{ ruler | markup }}<span class="figure"></span></span></th>
{% endif %}
{{ number_heading("P(best)", "Probability that no other has a higher accuracy") -}}
{% if has_three %}
{{ number_heading("P(first three)", "Probability that at most two are better") -}}
{% endif %}
<th scope="col" class="parts"><button type="button" data-first="descending"
 title="In standard deviations of the pool">Contributions</button></th>
</tr></thead>
<tbody>
{% for row in rows %}
<tr data-name="{{ row.name }}" data-groups="{{ row.groups }}">
<th scope="row" class="name" data-value="{{ row.name }}">{{ row.name | breaks }}</th>
{% if ruler %}
<td class="scale" data-value="{{ row.value }}"><span class="pair">
{{- row.strip | markup }}<span class="figure">
{%- if row.is_measured %}<span class="sign">◆</span> {% endif -%}
<span class="value">{{ row.text }}</span>
<small>{{ row.interval }}</small></span></span></td>
{% endif %}
<td class="number" data-value="{{ row.best }}">{{ row.best_text }}</td>
{% if has_three %}
<td class="number" data-value="{{ row.three }}">{{ row.three_text }}</td>
{% endif %}
<td class="parts" data-value="{{ row.total }}">
{{- "" }}<span class="pair" title="{{ row.parts }}">
{{- row.stack | markup }}<span class="figure">{{ row.total_text }}</span></span></td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
<ul class="legend">
{% for name in inputs %}
<li><svg class="key" width="12" height="12" aria-hidden="true"><rect class="part class{{
 loop.index0 }}" width="12" height="12"/></svg>{{ name }}</li>
{% endfor %}
</ul>
<p class="note">
{% if ruler %}
● is the predicted accuracy with its 80 % interval{% if has_measured %}, ◆ is a measured
one{% endif %}.
{% endif %}
Contributions are in standard deviations of the pool's accuracies, relative to its mean:
those to the right speak for a checkpoint, those to the left against it.
{% if more %}
The CSV file has {{ more }} more.
{% endif %}
{{ notes }}</p>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    result = summary.ranking.prediction
    if result is None:
        return None
    names = [printable(c.checkpoint) for c in result.checkpoints]
    groups = {row.checkpoint: row.groups for row in summary.ranking.rows}
    shown = result.checkpoints[:_MOST]
    inputs = _group_inputs(result)
    parts = [_sum_parts(c, inputs) for c in shown]
    parts_axis = svg.axis(
        [side * _reach(p, side) for p in parts for side in (-1, 1)], num_ticks=3
    )
    accuracy_axis = None
    if result.is_level_known:
        ends = [x for c in shown for x in (c.interval.low, c.interval.high)]
        ends += [c.measured for c in shown if c.measured is not None]
        accuracy_axis = svg.percent_axis(ends, num_ticks=3)
    return {
        "sentences": shorten_in_text(printable(result.conclusion()), names, _LONG_NAME),
        "evidence": _evidence(result),
        "ruler": svg.ruler(accuracy_axis, "predicted") if accuracy_axis else "",
        "has_measured": any(c.measured is not None for c in shown),
        "has_three": len(result.checkpoints) > _FIRST,
        "rows": [
            {
                "name": printable(c.checkpoint),
                "groups": " ".join(map(printable, groups.get(c.checkpoint, ()))),
                **(_accuracy_cell(c, accuracy_axis) if accuracy_axis else {}),
                "best": c.probability_best,
                "best_text": format_probability(c.probability_best),
                "three": c.probability_first_three,
                "three_text": format_probability(c.probability_first_three),
                "total": c.standardized,
                "total_text": f"{c.standardized:+.2f}",
                "parts": ", ".join(f"{n} {v:+.2f}" for n, v in of.items()),
                "stack": svg.stack(parts_axis, list(of.values())),
            }
            for c, of in zip(shown, parts, strict=True)
        ],
        "inputs": list(inputs),
        "more": len(result.checkpoints) > _MOST
        and count(len(result.checkpoints) - _MOST, "checkpoint"),
        "notes": shorten_in_text(
            " ".join(map(printable, result.notes)), names, _LONG_NAME
        ),
    }


def _accuracy_cell(c: CheckpointPrediction, axis: svg.Axis) -> dict[str, Any]:
    is_measured = c.measured is not None
    value = c.accuracy if c.measured is None else c.measured
    low, high = c.interval
    interval = f"{100 * low:.0f} to {100 * high:.0f}"
    return {
        "value": value,
        "text": format_percent(value) if is_measured else f"{100 * value:.0f}%",
        "interval": "" if is_measured else interval,
        "is_measured": is_measured,
        "strip": svg.strip(
            axis,
            "predicted",
            value,
            interval=None if is_measured else (low, high),
            measured=is_measured,
        ),
    }


def _evidence(result: Prediction) -> str:
    """Return how good such predictions were; docs/predicting.md has the tables."""
    if result.num_earlier:
        return (
            "With results of the same checkpoints on earlier tasks, it was as good as "
            "their mean rank there."
        )
    return (
        "Without results of the same checkpoints on earlier tasks, it was as good as "
        "NLEEP, and worse than ImageNet accuracy."
    )


def _group_inputs(result: Prediction) -> Mapping[str, Sequence[str]]:
    """Return the keys of the contributions by the name in the legend.

    There are as many names as colors. Measures that contribute least share one.
    """

    def size(key: str) -> float:
        return max(abs(c.contributions[key]) for c in result.checkpoints)

    keys = [k for k in result.best.contributions if size(k) >= _SMALLEST]
    groups = {
        "earlier results": [k for k in keys if k == HISTORY],
        FINE_TUNED_HERE: [k for k in keys if k == FINE_TUNED_HERE],
        "properties": [k for k in keys if k in STATICS],
    }
    groups = {name: members for name, members in groups.items() if members}
    known = {k for members in groups.values() for k in members}
    measures = sorted((k for k in keys if k not in known), key=size, reverse=True)
    room = svg.CLASSES - len(groups)
    if len(measures) > room:
        measures, others = measures[: room - 1], measures[room - 1 :]
    else:
        others = []
    groups |= {printable(measure): [measure] for measure in measures}
    return groups | ({"other measures": others} if others else {})


def _sum_parts(
    c: CheckpointPrediction, inputs: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    return {
        name: sum(c.contributions[key] for key in keys) for name, keys in inputs.items()
    }


def _reach(parts: Mapping[str, float], side: int) -> float:
    """Return the length of the bar to one side of zero."""
    return sum(max(side * value, 0.0) for value in parts.values())


SECTION = Section(11, "Prediction", _TEMPLATE, _values, anchor="prediction")
