"""One plot of accuracies against scores for each measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rankckpt_jax import measures
from rankckpt_jax.report import plots
from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.agreement import Agreement
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
{% from "macros.html.j2" import figure %}
<p class="note">The points of a good measure rise from lower left to upper right. The
filled point is the best checkpoint after fine-tuning. Horizontal bars are the
standard deviation of a score. An arrowhead at the edge stands for an outlier beyond the
axis. #3 marks the checkpoint ranked third where its name does
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
    ranking, agreement = summary.ranking, summary.agreement
    if not agreement.is_known:
        return None
    known = [m for m in agreement.by_agreement if agreement.measures[m].n > 1]
    notes = _notes(ranking.measures[0], known, agreement)
    drawn = []
    for measure in (*notes, *(m for m in known if m not in notes)):
        of_measure = agreement.measures[measure]
        tau = of_measure.scores["kendall"]
        text = "undefined" if math.isnan(tau) else f"{tau:.2f}"
        caption = f"Kendall's tau {text} over {of_measure.n} checkpoints"
        if notes.get(measure):
            caption += f" ({notes[measure]})"
        drawn.append((plots.scatter(ranking, measure), printable(measure), caption))
    most = max(of_measure.n for of_measure in agreement.measures.values())
    return {
        "plots": drawn,
        "num_shown": len(notes),
        "is_crowded": most > plots.MOST_NAMED,
    }


def _notes(first: str, known: Sequence[str], agreement: Agreement) -> dict[str, str]:
    """Return the measures to show and why: the first, the best and the worst."""
    ordered = [
        m
        for m in known
        if measures.reads_images(m)
        and not math.isnan(agreement.measures[m].scores["kendall"])
    ]
    ends = (ordered[0], ordered[-1]) if len(ordered) > 1 else ()
    notes = {first: "orders the ranking"} if first in known else {known[0]: ""}
    for measure, note in zip(ends, ("agrees best", "agrees least"), strict=False):
        notes[measure] = f"{notes[measure]}, {note}" if notes.get(measure) else note
    return notes


SECTION = Section(20, "Scores against {metric} after fine-tuning", _TEMPLATE, _values)
