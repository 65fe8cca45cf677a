"""The order of the checkpoints, and the measures' agreement, by each metric."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import (
    NONE,
    capitalize,
    format_decimal,
    format_metric,
    printable,
)
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
<p class="note">{{ sentence }} <code>config.finetune.metric</code> selects the metric
that chooses the hyperparameters and that the rest of this page uses.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Agreement by metric">
<table class="scores">
<thead><tr>
<th scope="col" class="name">Metric</th>
<th scope="col" class="name">Best checkpoint</th>
<th scope="col" class="number">Its value</th>
<th scope="col" class="number">Tau with {{ own }}</th>
{% for measure in measures %}
<th scope="col" class="number">Tau of {{ measure | breaks }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for name, best, value, order, taus in rows %}
<tr><th scope="row" class="name">{{ name }}</th>
<td class="name">{{ best | breaks }}</td>
<td class="number">{{ value }}</td><td class="number">{{ order }}</td>
{% for tau in taus %}
<td class="number">{{ tau }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
<p class="note">Tau is Kendall's rank correlation over the fine-tuned checkpoints.</p>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    ranking = summary.ranking
    others = [other for other in summary.other_metrics if other.differs]
    if not others:
        return None
    measured = [row for row in ranking.rows if row.finite_accuracy() is not None]
    best = max(measured, key=lambda row: row.finite_accuracy() or 0.0)
    first = (
        capitalize(ranking.metric_title),
        printable(best.checkpoint),
        format_metric(best.finite_accuracy() or 0.0, ranking.metric),
        NONE,
        [format_decimal(ranking.evaluation[m]["kendall"]) for m in ranking.measures],
    )
    further = [
        (
            capitalize(other.title),
            other.best,
            other.value,
            format_decimal(other.kendall),
            [format_decimal(other.measures[m]) for m in ranking.measures],
        )
        for other in others
    ]
    return {
        "sentence": " ".join(other.sentence for other in others),
        "own": ranking.metric_title,
        "measures": list(map(printable, ranking.measures)),
        "rows": [first, *further],
    }


SECTION = Section(32, "Other metrics of fine-tuning", _TEMPLATE, _values)
