"""The table of measures and baselines, with their agreement with fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rankckpt_jax import measures
from rankckpt_jax.report.rendering import Section
from rankckpt_jax.results.agreement import Baseline, MeasureSummary
from rankckpt_jax.results.formatting import (
    NONE,
    format_decimal,
    format_p_value,
    format_points,
    format_probability,
    printable,
)
from rankckpt_jax.results.row import finite
from rankckpt_jax.results.summary import Summary

METRICS = (
    ("Finds the best", "recall@1", "1 if the best checkpoint is ranked first, else 0."),
    (
        "Result of the first",
        "rel@1",
        "Fine-tuned, the first checkpoint reaches this share of the best result. Below "
        "it, how far it is behind the best.",
    ),
    (
        "Best among three",
        "recall@3",
        "1 if the best checkpoint is among the first three, else 0.",
    ),
    (
        "Result of three",
        "rel@3",
        "Fine-tuned, the best of three reaches this share of the best result. Below "
        "it, how far it is behind the best.",
    ),
    (
        "Pearson",
        "pearson",
        "Linear correlation of scores and fine-tuned results, -1 to 1.",
    ),
    (
        "Kendall's tau",
        "kendall",
        "Kendall's tau-b, -1 to 1: the share of pairs in the right order minus the "
        "share in the wrong order. Below it, its 95 % confidence interval (jackknife "
        "over checkpoints).",
    ),
    (
        "Spearman",
        "spearman",
        "Linear correlation of the two rankings, -1 to 1.",
    ),
    (
        "Weighted tau",
        "weighted_kendall",
        "Kendall's tau in which mistakes near the top weigh more, -1 to 1.",
    ),
)
"""Heading, key of `evaluation.score_ranking` and meaning of each metric."""

_GAP_FIDELITY = (
    "Gap fidelity",
    "Linear correlation of the absolute differences of scores and of results over all "
    "pairs, -1 to 1: whether large gaps of the score mean large gaps.",
)

_Format = Callable[[MeasureSummary], tuple[float | None, str]]

SIGNIFICANCE_COLUMNS: tuple[tuple[str, str, _Format], ...] = (
    (
        "P\N{NON-BREAKING HYPHEN}value of tau",
        "Share of random orders with at least this Kendall's tau (permutation test).",
        lambda summary: (summary.p_value, format_p_value(summary.p_value)),
    ),
    (
        "First is best",
        "Probability that the checkpoint ranked first is the best one, given the noise "
        "of the scores and of the test set.",
        lambda summary: (
            summary.probability_best,
            format_probability(summary.probability_best),
        ),
    ),
    (
        "Tied scores",
        "Number of checkpoints that share their score with another, so that their "
        "order is undefined.",
        lambda summary: (
            summary.num_tied,
            NONE if summary.num_tied is None else str(summary.num_tied),
        ),
    ),
    (
        "P\N{NON-BREAKING HYPHEN}value against first",
        "P-value of the difference in Kendall's tau from the measure that orders the "
        "ranking (paired permutation test).",
        lambda summary: (
            summary.p_value_versus_first,
            format_p_value(summary.p_value_versus_first),
        ),
    ),
)
"""Heading, meaning, and value and text of each further column."""

_N = ("Number", "Number of checkpoints with both a score and a fine-tuned result.")

_TEMPLATE = """
{% from "macros.html.j2" import name_heading, number_heading %}
{% macro number(cell) %}
<td class="number{{ ' best' if cell.is_best }}" data-value="{{ cell.value }}">
<span class="value">{{ cell.text }}</span>
{%- if cell.note %}<small>{{ cell.note }}</small>{% endif %}</td>
{% endmacro %}
<div class="scroll" tabindex="0" role="region" aria-label="Evaluation table">
<table data-sortable class="evaluation">
<thead><tr>
{{ name_heading("Measure") -}}
{% for heading, help in headings %}
{{ number_heading(heading, help) -}}
{% endfor %}
</tr></thead>
<tbody>
{% for name, n, kind, cells in rows %}
<tr{% if kind %} class="{{ kind }}"{% endif %}>
<th scope="row" class="name" data-value="{{ name }}">{{ name | breaks }}</th>
<td class="number" data-value="{{ n }}">{{ n }}</td>
{% for cell in cells %}
{{ number(cell) -}}
{% endfor %}
</tr>
{% endfor %}
</tbody>
<tfoot>
<tr><th scope="row" class="name">{{ random.name }}</th>
<td class="number">{{ random.n }}</td>
{% for cell in random_cells %}
{{ number(cell) -}}
{% endfor %}
</tr>
</tfoot>
</table>
</div>
<p class="note">Gray rows are trivial baselines that do not use the images; a useful
measure does better. The last row is the expected value for a random order of
{{ random.n }} checkpoints; Kendall's tau of such orders has standard deviation
{{ deviation }}. Measures are sorted by Kendall's tau. For tied scores, a value is the
mean over all orders of the tied checkpoints.</p>
<details>
<summary>Meaning of the columns</summary>
<dl class="terms">
{% for heading, help in headings %}
<dt>{{ heading }}</dt><dd>{{ help }}</dd>
{% endfor %}
</dl>
</details>
{% for title, rows in groups %}
<details>
<summary>{{ title }}</summary>
<div class="scroll" tabindex="0" role="region" aria-label="{{ title }}">
<table data-sortable class="evaluation">
<thead><tr>
{{ name_heading("Measure") -}}
{% for heading, help in group_headings %}
{{ number_heading(heading, help) -}}
{% endfor %}
</tr></thead>
<tbody>
{% for name, n, cells in rows %}
<tr><th scope="row" class="name" data-value="{{ name }}">{{ name | breaks }}</th>
<td class="number" data-value="{{ n }}">{{ n }}</td>
{% for cell in cells %}
{{ number(cell) -}}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
</details>
{% endfor %}
"""


def _values(summary: Summary) -> dict[str, Any] | None:
    agreement, metric = summary.agreement, summary.ranking.metric
    if not agreement.is_known:
        return None
    keys = [key for _, key, _ in METRICS]
    best = {}
    for key in keys:
        values = {s.scores[key] for s in agreement.measures.values()}
        numbers = {value for value in values if not math.isnan(value)}
        best[key] = max(numbers) if len(numbers) > 1 else math.nan
    rows = [
        (
            printable(measure),
            of_measure.n,
            "" if measures.reads_images(measure) else "baseline",
            [
                *_metric_cells(of_measure, metric, best, of_measure.interval),
                *(_cell(*format(of_measure)) for _, _, format in SIGNIFICANCE_COLUMNS),
            ],
        )
        for measure in agreement.by_agreement
        for of_measure in [agreement.measures[measure]]
    ]
    empty = [_cell(None, NONE)] * len(SIGNIFICANCE_COLUMNS)
    rows += [
        (
            baseline.name,
            baseline.n,
            "baseline",
            [*_metric_cells(baseline, metric), *empty],
        )
        for baseline in agreement.baselines
    ]
    # The tables of groups have the paper's metrics.
    of_paper = [m for m in METRICS if m[1] not in ("spearman", "weighted_kendall")]
    return {
        "headings": [
            _N,
            *((heading, help) for heading, _, help in METRICS),
            _GAP_FIDELITY,
            *((heading, help) for heading, help, _ in SIGNIFICANCE_COLUMNS),
        ],
        "rows": rows,
        "random": agreement.random_order,
        "random_cells": [
            *_metric_cells(agreement.random_order, metric),
            *([_cell(None, "")] * len(SIGNIFICANCE_COLUMNS)),
        ],
        "deviation": format_decimal(agreement.random_deviation),
        "group_headings": [_N, *((heading, help) for heading, _, help in of_paper)],
        "groups": [
            (
                printable(group.title),
                [
                    (
                        printable(measure),
                        n,
                        [
                            _cell(scores[k], format_decimal(scores[k]))
                            for _, k, _ in of_paper
                        ],
                    )
                    for measure in agreement.by_agreement
                    for n, scores in [group.measures[measure]]
                ],
            )
            for group in agreement.groups
        ],
    }


def _metric_cells(
    of: MeasureSummary | Baseline,
    metric: str,
    best: Mapping[str, float] | None = None,
    interval: tuple[float, float] = (math.nan, math.nan),
) -> list[dict[str, Any]]:
    scores, judgment = of.scores, of.judgment
    low, high = interval
    notes = {"kendall": "" if math.isnan(low) else f"{low:.2f} to {high:.2f}"}
    for key, loss in (("rel@1", judgment.regret_1), ("rel@3", judgment.regret_3)):
        if loss > 0:
            notes[key] = f"-{format_points(loss, short=True, metric=metric)}"
    return [
        *(
            _cell(
                scores[key],
                format_decimal(scores[key]),
                best is not None and scores[key] == best[key],
                notes.get(key, ""),
            )
            for _, key, _ in METRICS
        ),
        _cell(judgment.gap_fidelity, format_decimal(judgment.gap_fidelity)),
    ]


def _cell(
    value: float | None, text: str, is_best: bool = False, note: str = ""
) -> dict[str, Any]:
    value = finite(value)
    return {
        "value": "" if value is None else value,
        "text": text,
        "is_best": is_best,
        "note": note,
    }


SECTION = Section(30, "How well each measure predicts {metric}", _TEMPLATE, _values)
