"""One plot of accuracies against scores for each measure."""

from __future__ import annotations

import math
from typing import Any

from rankckpt_jax.report import plots
from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.summary import Summary

_NUM_SHOWN = 6
"""Further plots are folded away."""

_TEMPLATE = """
{% from "macros.html.j2" import figure %}
{% if plots %}
<div class="plots">
{% for svg, name, caption in plots[:num_shown] %}
{{ figure(svg, name, caption) -}}
{% endfor %}
</div>
{% set folded = plots[num_shown:] %}
{% if folded %}
<details>
<summary>{{ "1 more measure" if folded | length == 1
else "%d more measures" % (folded | length) }}</summary>
<div class="plots">
{% for svg, name, caption in folded %}
{{ figure(svg, name, caption) -}}
{% endfor %}
</div>
</details>
{% endif %}
<p class="note">The points of a good measure rise from lower left to upper right. The
filled point is the checkpoint with the highest accuracy. Horizontal bars are the
standard deviation of a score. #k marks the checkpoint ranked k-th where its name does
not fit. Hover over a point, or use the arrow keys, to see its name.</p>
{% else %}
<p>There is nothing to compare: at least two checkpoints need both a score and an
accuracy after fine-tuning.</p>
{% endif %}
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    ranking = summary.ranking
    if len(ranking.failed) == len(ranking.rows):
        return None
    drawn = []
    for measure, agreement in summary.agreement.measures.items():
        if agreement.n > 1:
            tau = agreement.scores["kendall"]
            text = "undefined" if math.isnan(tau) else f"{tau:.2f}"
            caption = f"Kendall's tau {text} over {agreement.n} checkpoints"
            svg = plots.scatter(ranking, measure)
            drawn.append((svg, printable(measure), caption))
    return {"plots": drawn, "num_shown": _NUM_SHOWN}


SECTION = Section(20, "Scores against fine-tuning", _TEMPLATE, _values)
