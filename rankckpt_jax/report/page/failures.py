"""The checkpoints that failed, with the reasons."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
{% for name, reason in failures %}
<div class="failure"><h3>{{ name }}</h3><pre>{{ reason | code }}</pre></div>
{% endfor %}
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    failures = [
        (printable(row.checkpoint), "\n".join(map(printable, row.failure.splitlines())))
        for row in summary.ranking.failed
    ]
    return {"failures": failures} if failures else None


SECTION = Section(100, "Checkpoints that failed", _TEMPLATE, _values, anchor="failed")
