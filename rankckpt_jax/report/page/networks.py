"""The network and the input of each checkpoint."""

from __future__ import annotations

from typing import Any

from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import format_large, printable
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
<details>
<summary>Network, input and size of each checkpoint</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Networks">
<table class="networks">
<thead><tr><th scope="col" class="name">Checkpoint</th>
{% for heading in headings %}
<th scope="col">{{ heading }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for name, groups, texts in rows %}
<tr data-name="{{ name }}" data-groups="{{ groups }}">
<th scope="row" class="name">{{ name | breaks }}</th>
{% for text in texts %}
<td>{{ text }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
</details>
"""


_ENGINES = {"jax": "JAX", "torch": "PyTorch"}


def _values(summary: Summary) -> dict[str, Any] | None:
    ranking = summary.ranking
    rows = [row for row in ranking.rows if not row.failure]
    table = {
        "Network": [printable(row.architecture) for row in rows],
        "Group": [
            ", ".join(printable(ranking.group_title(group)) for group in row.groups)
            for row in rows
        ],
        "Image size": [
            f"{row.image_size} px" if row.image_size else "" for row in rows
        ],
        "Preprocessing": [printable(row.preprocessing) for row in rows],
        "Parameters": [
            "" if row.num_parameters is None else format_large(row.num_parameters)
            for row in rows
        ],
        "Features": [
            "" if row.feature_dim is None else f"{row.feature_dim:,}" for row in rows
        ],
        "Feature tensor": [printable(row.feature_tensor) for row in rows],
        "Features by": [_ENGINES.get(row.engine, "") for row in rows],
    }
    known = {heading: texts for heading, texts in table.items() if any(texts)}
    if not known:
        return None
    lines = zip(*known.values(), strict=True)
    return {
        "headings": list(known),
        "rows": [
            (printable(row.checkpoint), " ".join(map(printable, row.groups)), texts)
            for row, texts in zip(rows, lines, strict=True)
        ],
    }


SECTION = Section(65, "Networks", _TEMPLATE, _values)
