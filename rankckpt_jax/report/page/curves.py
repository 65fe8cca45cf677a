"""Accuracy over the steps of fine-tuning."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report import plots
from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import capitalize
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
<figure class="wide">{{ svg | markup }}</figure>
<p class="note">{{ name }} over the training steps, with the chosen hyperparameters. The
thick solid line is the checkpoint with the highest value. The thick dashed line is the
checkpoint ranked first, if it is another one. Hover over a line to see its
name.</p>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    if not any(len(row.curve) > 1 for row in summary.ranking.rows):
        return None
    return {
        "svg": plots.curves(summary.ranking),
        "name": capitalize(summary.ranking.metric_title),
    }


SECTION = Section(50, "{Metric} during fine-tuning", _TEMPLATE, _values)
