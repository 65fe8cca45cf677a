"""The scores of each layer, where the best of several layers is the score."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import NONE, format_scores, printable
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
{% from "macros.html.j2" import name_heading, number_heading %}
<p class="note">Each measure takes the best of the last features and of the pooled
outputs of the last blocks, which are numbered from the end of the network. The best
score of each row is bold. {{ none_text }} stands for a saturated score, for no score,
and for a block that is the last features. Blocks differ in their number of features, as
networks do, so measures that grow with it favor wide blocks.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Scores by layer">
<table data-sortable class="scores">
<thead><tr>
{{ name_heading("Checkpoint") -}}
<th scope="col">Measure</th>
{% for heading in headings %}
{{ number_heading(heading, "") -}}
{% endfor %}
<th scope="col">Best layer</th>
</tr></thead>
<tbody>
{% for name, groups, measure, cells, best in rows %}
<tr data-name="{{ name }}" data-groups="{{ groups }}">
<th scope="row" class="name" data-value="{{ name }}">{{ name | breaks }}</th>
<td>{{ measure }}</td>
{% for value, text, is_best in cells %}
<td class="number{{ ' best' if is_best }}" data-value="{{ value }}">
{{- '' }}<span class="value">{{ text }}</span></td>
{% endfor %}
<td>{{ best | breaks }}</td>
</tr>
{% endfor %}
</tbody>
</table>
</div>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    ranking = summary.ranking
    rows = [row for row in ranking.rows if row.layer_scores]
    if not rows:
        return None
    width = 1 + max(len(row.blocks) for row in rows)
    lines = []
    for measure in ranking.measures:
        scored = [row for row in rows if measure in row.layer_scores]
        # The last features, then the blocks from the end of the network.
        layers = [["last", *reversed(row.blocks)] for row in scored]
        for names in layers:
            names += [""] * (width - len(names))
        scores = [
            row.layer_scores[measure].get(name)
            for row, names in zip(scored, layers, strict=True)
            for name in names
        ]
        cells = [
            ("", NONE) if score is None else (score, text)
            for score, text in zip(scores, format_scores(scores), strict=True)
        ]
        for i, (row, names) in enumerate(zip(scored, layers, strict=True)):
            best = row.layers[measure]
            line = zip(cells[i * width :], names, strict=False)
            lines.append(
                (
                    printable(row.checkpoint),
                    " ".join(map(printable, row.groups)),
                    printable(measure),
                    [(*cell, name == best) for cell, name in line],
                    printable(best),
                )
            )
    headings = ["Last features", "Last block"]
    headings += [f"Block −{number}" for number in range(2, width)]
    return {"headings": headings, "rows": lines, "none_text": NONE}


SECTION = Section(46, "Scores by layer", _TEMPLATE, _values)
