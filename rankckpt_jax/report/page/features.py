"""The variance of the features, and the classes in a plane."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report import plots
from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
{% from "macros.html.j2" import figure, legend %}
<figure class="wide">{{ spectrum | markup }}</figure>
{{ legend(names) -}}
<p class="note">Share of the variance in the first principal components. NLEEP keeps the
components up to 80% of the variance, the dotted line.</p>
{% if not classes %}
<ul>
{% for name, caption in captions %}
<li>{{ name | breaks }}: {{ caption }}.</li>
{% endfor %}
</ul>
{% else %}
<div class="plots small">
{% for svg, name, caption in pictures %}
{{ figure(svg, name, caption) -}}
{% endfor %}
</div>
<ul class="legend">
{% for name in classes %}
<li><svg class="key" width="10" height="10" viewBox="-5 -5 10 10" aria-hidden="true">
{{- keys[loop.index0] | markup }}</svg>{{ name }}</li>
{% endfor %}
</ul>
<p class="note">Training images of some classes, projected to the plane in which the
class means differ most, for the checkpoints ranked first and last. Well separated
classes are easy to classify.</p>
{% endif %}
"""


_PARTS = {
    "classes": "is between classes",
    "multi_label": "follows the labels linearly",
    "regression": "follows the number linearly",
}


def _values(summary: Summary) -> dict[str, Any] | None:
    ranking = summary.ranking
    if not ranking.views:
        return None
    names = (row.checkpoint for row in ranking.rows)
    ranks = dict(zip(names, ranking.ranks, strict=True))
    pictures, captions = [], []
    for view in ranking.views:
        rank = ranks.get(view.checkpoint)
        caption = (
            (f"rank {rank}, " if rank else "")
            + f"{100 * view.between:.0f}% of the variance {_PARTS[view.target]}, "
            + f"80% is in {view.dimensions} components"
        )
        captions.append((printable(view.checkpoint), caption))
        if view.points:
            pictures.append((plots.separation(view), *captions[-1]))
    classes = ranking.views[0].classes
    return {
        "spectrum": plots.spectrum(ranking),
        "pictures": pictures,
        "captions": captions,
        "names": [printable(view.checkpoint) for view in ranking.views],
        "classes": [printable(name) for name in classes],
        "keys": [plots.class_marker([(0, 0)], i) for i in range(len(classes))],
    }


SECTION = Section(70, "Features", _TEMPLATE, _values)
