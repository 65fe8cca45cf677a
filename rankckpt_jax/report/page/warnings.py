"""The warnings, each once with all its checkpoints."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import count
from rankckpt_jax.results.summary import Summary

_MOST_NAMED = 3
"""More checkpoints of one warning are folded away."""

_TEMPLATE = """
<ul class="sentences">
{% for warning, number in warnings %}
<li>{{ warning.text | code }}
{% if warning.checkpoints | length > most_named %}
<details><summary>{{ warning.topics | join(", ") }}: {{ number }}</summary>
<small>{{ warning.checkpoints | join(", ") }}</small></details>
{% else %}
<small>{{ warning.topics | join(", ") }}: {{ warning.checkpoints | join(", ") }}</small>
{% endif %}
</li>
{% endfor %}
</ul>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    if not summary.warnings:
        return None
    return {
        "warnings": [
            (warning, count(len(warning.checkpoints), "checkpoint"))
            for warning in summary.warnings
        ],
        "most_named": _MOST_NAMED,
    }


SECTION = Section(110, "Warnings", _TEMPLATE, _values, anchor="warnings")
