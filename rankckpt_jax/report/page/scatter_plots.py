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
<p class="note">The points of a good measure rise from lower left to upper right. The
filled point is the best checkpoint after fine-tuning. Horizontal bars are the
standard deviation of a score. #3 marks the checkpoint ranked third where its name does
not fit.
{% if is_crowded %}
Only the first five, the best and the worst checkpoint have labels.
{% endif %}
Hover over a point, or use the arrow keys, to see its name.</p>
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
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    ranking = summary.ranking
    drawn = []
    for measure, agreement in summary.agreement.measures.items():
        if agreement.n > 1:
            tau = agreement.scores["kendall"]
            text = "undefined" if math.isnan(tau) else f"{tau:.2f}"
            caption = f"Kendall's tau {text} over {agreement.n} checkpoints"
            svg = plots.scatter(ranking, measure)
            drawn.append((svg, printable(measure), caption))
    if not drawn:
        return None
    most = max(agreement.n for agreement in summary.agreement.measures.values())
    return {
        "plots": drawn,
        "num_shown": _NUM_SHOWN,
        "is_crowded": most > plots.MOST_NAMED,
    }


SECTION = Section(20, "Scores against {metric} after fine-tuning", _TEMPLATE, _values)
