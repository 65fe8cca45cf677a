"""The warnings, each once with all its checkpoints."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
<ul class="warnings">
{% for warning in warnings %}
<li>{{ warning.text }}
<small>{{ warning.topics | join(", ") }}:
{{ warning.checkpoints | join(", ") }}</small></li>
{% endfor %}
</ul>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    return {"warnings": summary.warnings} if summary.warnings else None


SECTION = Section(110, "Warnings", _TEMPLATE, _values, anchor="warnings")
