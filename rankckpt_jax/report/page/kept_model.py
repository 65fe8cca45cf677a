"""The fine-tuned model that was kept, and how to predict with it."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report.paths import relative_command
from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
{% from "macros.html.j2" import command_line %}
<p>The weights of {{ name | breaks }} after fine-tuning are in <code>model/</code>
beside this page; <code>model/model.json</code> states its classes, its preprocessing
and where
it comes from.
{%- if has_serving %} <code>model/serving.bin</code> is the same classifier as a program
that needs only JAX.{% endif %} To predict the classes of other images:</p>
{{ command_line(command) -}}
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    kept = summary.ranking.kept
    if kept is None:
        return None
    return {
        "name": printable(kept.checkpoint),
        "command": relative_command(kept.command),
        "has_serving": bool(kept.serving),
    }


SECTION = Section(12, "The fine-tuned model", _TEMPLATE, _values, anchor="model")
