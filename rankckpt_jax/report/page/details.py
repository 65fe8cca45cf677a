"""The sentences of the conclusion that the first screen has no room for."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
<ul class="sentences">
{% for sentence in sentences %}
<li>{{ sentence | code }}</li>
{% endfor %}
</ul>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    sentences = summary.conclusion.details
    return {"sentences": sentences} if sentences else None


SECTION = Section(15, "Evidence in detail", _TEMPLATE, _values)
