"""A map of each checkpoint's rank by every measure and by accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import NONE, printable
from rankckpt_jax.results.summary import Summary

_TEMPLATE = """
<div class="scroll" tabindex="0" role="region" aria-label="Ranks by measure">
<table class="ranks">
<thead>
<tr><th scope="col" class="name">Checkpoint</th>
{% for heading in headings %}
<th scope="col"><span>{{ heading }}</span></th>
{% endfor %}
</tr>
</thead>
<tbody>
{% for name, groups, cells in rows %}
<tr data-name="{{ name }}" data-groups="{{ groups }}">
<th scope="row" class="name">{{ name }}</th>
{% for text, shade in cells %}
<td class="share{{ shade }}"
 title="{{ name }}: {{ text }} by {{ headings[loop.index0] }}">{{ text }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
<p class="note">The rank of each checkpoint by every measure. Rank 1 is the best; equal
scores share a rank. Columns with similar colors agree.</p>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    rows = summary.ranking.scored_rows
    # A single column would repeat the ranking.
    if len(summary.ranks) < 2 or len(rows) < 2:
        return None
    cells = zip(*map(shade_ranks, summary.ranks.values()), strict=True)
    return {
        "headings": [printable(name) for name in summary.ranks],
        "rows": [
            (printable(row.checkpoint), " ".join(map(printable, row.groups)), line)
            for row, line in zip(rows, cells, strict=True)
        ],
    }


def shade_ranks(ranks: Sequence[int | None]) -> list[tuple[str, int]]:
    """Return the text and the shade of each rank, 100 for the first, 0 for the last."""
    steps = max(sum(rank is not None for rank in ranks) - 1, 1)
    return [
        (NONE, 0)
        if rank is None
        else (str(rank), round(100 * (1 - (rank - 1) / steps)))
        for rank in ranks
    ]


SECTION = Section(40, "Ranks by measure", _TEMPLATE, _values)
