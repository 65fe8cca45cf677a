"""How the ranking depends on the options of NLEEP."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report import plots
from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
{% from "macros.html.j2" import figure, legend %}
{{ legend(names) -}}
<div class="plots">
{% for svg, title, caption in plots %}
{{ figure(svg, title, caption) -}}
{% endfor %}
</div>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    if not summary.ranking.ablations:
        return None
    drawn = []
    for ablation in summary.ranking.ablations:
        reference = (
            "accuracies after fine-tuning"
            if ablation.against_accuracy
            else "the ranking with the current value"
        )
        caption = f"agreement with {reference}; the band marks the current value"
        drawn.append((plots.ablation(ablation), printable(ablation.title), caption))
    return {"plots": drawn, "names": [name for _, name in plots.ABLATION_METRICS]}


SECTION = Section(80, "Options of NLEEP", _TEMPLATE, _values)
