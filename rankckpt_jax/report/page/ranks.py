"""A map of each checkpoint's rank by every measure and by accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.formatting import NONE, printable
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.summary import Summary

_MOST_BESIDE_NAMES = 6
"""The ranks by so few measures fit into the ranking."""

_TEMPLATE = """
<p class="note">The rank of each checkpoint by every measure. Rank 1 is the best; equal
scores share a rank. Columns with similar colors agree.</p>
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
<th scope="row" class="name">{{ name | breaks }}</th>
{% for text, shade in cells %}
<td class="share{{ shade }}">{{ text }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    rows = summary.ranking.scored_rows
    if fits_beside_names(summary.ranking) or len(summary.ranks) < 2 or len(rows) < 2:
        return None
    cells = zip(*map(shade_ranks, summary.ranks.values()), strict=True)
    return {
        "headings": [printable(name) for name in summary.ranks],
        "rows": [
            (printable(row.checkpoint), " ".join(map(printable, row.groups)), line)
            for row, line in zip(rows, cells, strict=True)
        ],
    }


def fits_beside_names(ranking: Ranking) -> bool:
    """Return whether the ranking itself shows the ranks by all measures."""
    return 1 < len(ranking.measures) <= _MOST_BESIDE_NAMES


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
