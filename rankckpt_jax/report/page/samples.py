"""Some preprocessed images."""

from __future__ import annotations

import base64
from typing import Any

from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
<ul class="samples">
{% for source, name in images %}
<li><img src="{{ source | markup }}" width="112" height="112"
 alt="An image labeled {{ name }}">
<small>{{ name }}</small></li>
{% endfor %}
</ul>
<p class="note">Training images, resized to {{ size }} x {{ size }} pixels for the
checkpoint ranked first.</p>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    samples = summary.ranking.samples
    if not samples:
        return None
    return {
        "images": [
            (
                "data:image/jpeg;base64," + base64.b64encode(sample.jpeg).decode(),
                printable(sample.class_name),
            )
            for sample in samples
        ],
        "size": samples[0].size,
    }


SECTION = Section(90, "Preprocessed images", _TEMPLATE, _values)
