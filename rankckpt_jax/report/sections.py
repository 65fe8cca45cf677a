"""The sections of the page: which numbers each shows, as plain data for the template.

Each function returns None, or nothing, where there is nothing to show.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rankckpt_jax import evaluation
from rankckpt_jax.report import plots
from rankckpt_jax.report.cells import (
    NONE,
    decimal,
    duration,
    finite,
    known,
    large,
    probability,
    sort_key,
)
from rankckpt_jax.report.text import (
    format_certainty,
    format_percent,
    format_scores,
    format_seconds,
    printable,
)
from rankckpt_jax.results.assessment import MeasureSummary
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import Row

METRICS = (
    ("n", "", "Checkpoints with both a score and a fine-tuned accuracy."),
    ("Recall@1", "recall@1", "1 if the best checkpoint is ranked first, else 0."),
    ("Rel@1", "rel@1", "Accuracy of the first, as a share of the best accuracy."),
    ("Recall@3", "recall@3", "1 if the best checkpoint is among the first three."),
    ("Rel@3", "rel@3", "Best accuracy among the first three, as such a share."),
    ("Pearson", "pearson", "Linear correlation of scores and accuracies, -1 to 1."),
    (
        "Kendall",
        "kendall",
        "Pairs put in the right order minus pairs put in the wrong one, as a share of "
        "all pairs (tau-b), -1 to 1. Below it, where it would lie in 95 of 100 cases "
        "with other checkpoints and other noise of the measure.",
    ),
    ("Spearman", "spearman", "Linear correlation of the two rankings, -1 to 1."),
    (
        "Weighted",
        "weighted_kendall",
        "Kendall's tau in which mistakes near the top weigh more, -1 to 1.",
    ),
)
"""Of the evaluation table: heading, key of `score_ranking`, and what it says."""

SIGNIFICANCE_COLUMNS = (
    ("Chance", "How often a random order reaches such a Kendall's tau (p value)."),
    (
        "Best first",
        "Probability that the checkpoint ranked first is truly the best, given the "
        "noise of the scores and of the test set.",
    ),
    (
        "Tied",
        "Checkpoints whose score is also that of another: their order is not known.",
    ),
    (
        "Vs first",
        "How often two measures that know equally much differ so much in Kendall's tau "
        "(paired permutation test against the measure that orders the ranking).",
    ),
)
"""Further columns of the evaluation table, and what they say."""

SHOWN_PLOTS = 6
"""More plots than these are folded away."""


def ranking_table(ranking: Ranking) -> dict[str, Any]:
    """The rows that did not fail, their cells with text, sort key and bar."""
    placed = [
        (row, position)
        for row, position in zip(ranking.rows, ranking.ranks, strict=True)
        if not row.failure
    ]
    rows = [row for row, _ in placed]
    columns = []
    for measure in ranking.measures:
        scores = [row.score(measure) for row in rows]
        columns.append(
            _column(
                printable(measure),
                scores,
                format_scores(scores),
                spreads=[row.spread(measure) for row in rows],
            )
        )
    accuracies = [row.finite_accuracy() for row in rows]
    if known(accuracies):
        # Beside the measure that orders, for the eye to compare and to stay in sight.
        columns.insert(
            1,
            _column(
                "Fine-tuned",
                accuracies,
                [NONE if a is None else format_percent(a) for a in accuracies],
                low=0.0,
                high=1.0,
                kind="truth",
            ),
        )
    sources = sorted({row.accuracy_source for row in rows if row.accuracy_source})
    return {
        "headings": [column["heading"] for column in columns],
        "groups": _groups_of(ranking, rows),
        "sources": [printable(source) for source in sources],
        "rows": [
            {
                "position": position,
                "checkpoint": printable(row.checkpoint),
                "about": _about(ranking, row),
                "groups": " ".join(map(printable, row.groups)),
                "cells": [column["cells"][i] for column in columns],
            }
            for i, (row, position) in enumerate(placed)
        ],
    }


def _groups_of(ranking: Ranking, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(name, title) of the groups that the rows stand in, if they are several."""
    names = sorted({group for row in rows for group in row.groups})
    return [(printable(n), _title(ranking, n)) for n in names] if names[1:] else []


def _title(ranking: Ranking, group: str) -> str:
    return printable(ranking.group_titles.get(group, group))


def _column(
    heading: str,
    values: Sequence[float | None],
    texts: Sequence[str],
    *,
    spreads: Sequence[float | None] | None = None,
    low: float | None = None,
    high: float | None = None,
    kind: str = "score",
) -> dict[str, Any]:
    """One column of numbers; bars run from `low` to `high`, else over the column."""
    there = known(values)
    low = min(there, default=0.0) if low is None else low
    high = max(there, default=0.0) if high is None else high
    cells = []
    for i, (value, text) in enumerate(zip(values, texts, strict=True)):
        spread = spreads[i] if spreads else None
        share = None
        if value is not None and high > low:
            share = round(100 * (value - low) / (high - low))
        cells.append(
            {
                "value": sort_key(value),
                "text": NONE if value is None else text,
                "spread": "" if spread is None else f"{spread:.2g}",
                "bar": share,
                "kind": kind,
                # Where all are equal, none stands out.
                "best": len(set(there)) > 1 and value == max(there),
            }
        )
    return {"heading": heading, "cells": cells}


def _about(ranking: Ranking, row: Row) -> str:
    """What kind of checkpoint it is, in one line."""
    parts = [printable(row.architecture)]
    parts += [_title(ranking, group).partition(":")[0] for group in row.groups]
    if row.image_size is not None:
        parts.append(f"{row.image_size} px")
    parts.append(printable(row.preprocessing))
    if row.num_parameters is not None:
        parts.append(f"{large(row.num_parameters)} parameters")
    if row.feature_dim is not None:
        parts.append(f"{row.feature_dim:,} features")
    return " · ".join(part for part in parts if part)


def scatters(ranking: Ranking) -> list[tuple[str, str, str]]:
    """For each measure with two pairs or more, its plot, name and caption."""
    result = []
    for measure in ranking.measures:
        n = len(ranking.evaluated_rows(measure))
        if n > 1:
            tau = ranking.evaluation[measure]["kendall"]
            value = "undefined" if math.isnan(tau) else f"{tau:.2f}"
            caption = f"Kendall's tau {value} over {n} checkpoints"
            svg = plots.scatter(ranking, measure)
            result.append((svg, printable(measure), caption))
    return result


def rank_map(ranking: Ranking) -> dict[str, Any] | None:
    """Each checkpoint's place by every measure and by accuracy, with a shade in 0..100.

    None where one measure is all there is: the ranking itself says the same then.
    """
    rows = ranking.scored_rows
    columns = {
        printable(measure): [row.score(measure) for row in rows]
        for measure in ranking.measures
    }
    accuracies = [row.finite_accuracy() for row in rows]
    if any(accuracy is not None for accuracy in accuracies):
        # First, for all others to be held against.
        columns = {"fine-tuned": accuracies, **columns}
    if len(columns) < 2 or len(rows) < 2:
        return None
    all_places = {name: places(values) for name, values in columns.items()}
    return {
        "headings": list(columns),
        "rows": [
            (
                printable(row.checkpoint),
                " ".join(map(printable, row.groups)),
                [place[i] for place in all_places.values()],
            )
            for i, row in enumerate(rows)
        ],
    }


def places(values: Sequence[float | None]) -> list[tuple[int | str, int]]:
    """(place from 1, shade: 100 for the first, 0 for the last) of each value."""
    there = known(values)
    steps = max(len(there) - 1, 1)
    found: list[tuple[int | str, int]] = []
    for value in values:
        if value is None:
            found.append((NONE, 0))
            continue
        place = 1 + sum(other > value for other in there)
        found.append((place, round(100 * (1 - (place - 1) / steps))))
    return found


def evaluation_table(ranking: Ranking) -> dict[str, Any] | None:
    """One line for each measure and baseline and one for chance.

    None without two pairs.
    """
    pairs = {measure: ranking.evaluated_rows(measure) for measure in ranking.measures}
    if max(map(len, pairs.values())) < 2:
        return None
    keys = [key for _, key, _ in METRICS if key]
    measures = [
        (printable(measure), len(pairs[measure]), ranking.evaluation[measure])
        for measure in ranking.measures
    ]
    best = {}
    for key in keys:
        there = [row[2][key] for row in measures if not math.isnan(row[2][key])]
        best[key] = max(there) if len(set(there)) > 1 else math.nan
    found = ranking.assessment
    rows = [
        {
            "measure": name,
            "kind": "",
            "n": n,
            "cells": [
                *_metric_cells(scores, keys, best, found.measures.get(measure)),
                *_sure_cells(found.measures.get(measure)),
            ],
        }
        for measure, (name, n, scores) in zip(ranking.measures, measures, strict=True)
    ]
    rows += [
        {
            "measure": name,
            "kind": "baseline",
            "n": baseline.n,
            "cells": [
                *_metric_cells(baseline.scores, keys, {}, None),
                *_sure_cells(None),
            ],
        }
        for name, baseline in found.baselines.items()
    ]
    first = pairs[ranking.measures[0]]
    n = len(first)
    chance = evaluation.random_ranking([row.finite_accuracy() for row in first])
    return {
        "rows": rows,
        "chance": {
            "measure": "random order",
            "n": n,
            "cells": [decimal(chance[key]) for key in keys]
            + [""] * len(SIGNIFICANCE_COLUMNS),
        },
        "deviation": decimal(evaluation.kendall_null_deviation(n)),
        "groups": _group_tables(ranking, keys),
    }


def _metric_cells(
    scores: Mapping[str, float],
    keys: Sequence[str],
    best: Mapping[str, float],
    measured: MeasureSummary | None,
) -> list[dict[str, Any]]:
    cells = []
    for key in keys:
        note = ""
        if key == "kendall" and measured is not None:
            low, high = measured.intervals["kendall"]
            note = "" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
        value = scores[key]
        cells.append(_cell(value, decimal(value), value == best.get(key), note))
    return cells


def _sure_cells(measured: MeasureSummary | None) -> list[dict[str, Any]]:
    if measured is None:
        return [_cell(None, NONE)] * len(SIGNIFICANCE_COLUMNS)
    chance = measured.p_values["kendall"]
    first = measured.probability_best
    versus = measured.versus_first
    return [
        _cell(chance, probability(chance)),
        _cell(first, NONE if math.isnan(first) else format_certainty(first)),
        _cell(measured.tied, str(measured.tied)),
        _cell(None, NONE)
        if versus is None
        else _cell(versus.p_value, probability(versus.p_value)),
    ]


def _cell(
    value: float | None, text: str, best: bool = False, note: str = ""
) -> dict[str, Any]:
    return {"value": sort_key(value), "text": text, "best": best, "note": note}


def _group_tables(ranking: Ranking, keys: Sequence[str]) -> list[dict[str, Any]]:
    """For each group one table in the paper's layout; none for a single group."""
    shown = [key for key in keys if key not in ("spearman", "weighted_kendall")]
    headings = [heading for heading, key, _ in METRICS if key in shown]
    return [
        {
            "title": _title(ranking, group),
            "headings": headings,
            "rows": [
                (printable(measure), n, [_cell(s[k], decimal(s[k])) for k in shown])
                for measure, (n, s) in by_measure.items()
            ],
        }
        for group, by_measure in ranking.assessment.groups.items()
        if len(ranking.assessment.groups) > 1
        and max(n for n, _ in by_measure.values()) > 1
    ]


def curves(ranking: Ranking) -> str | None:
    """Accuracy over the steps of fine-tuning."""
    if not any(len(row.curve) > 1 for row in ranking.rows):
        return None
    return plots.curves(ranking)


def features(ranking: Ranking) -> dict[str, Any] | None:
    """What the features of the first and the last look like."""
    if not ranking.views:
        return None
    places = dict(
        zip((row.checkpoint for row in ranking.rows), ranking.ranks, strict=True)
    )
    return {
        "spectrum": plots.spectrum(ranking),
        "pictures": [
            {
                "svg": plots.separation(view, i),
                "name": printable(view.checkpoint),
                "place": places.get(view.checkpoint),
                "between": f"{100 * view.between:.0f}%",
                "dimensions": view.dimensions,
                "classes": [printable(name) for name in view.classes],
            }
            for i, view in enumerate(ranking.views)
        ],
    }


def ablations(ranking: Ranking) -> list[dict[str, Any]]:
    """How agreement depends on the options of NLEEP."""
    return [
        {
            "svg": plots.ablation(found),
            "title": found.title,
            "against": "fine-tuned accuracies"
            if found.against_accuracy
            else "the ranking with the setting in use",
        }
        for found in ranking.ablations
    ]


def samples(ranking: Ranking) -> list[dict[str, Any]]:
    """Images as data addresses, with the class and size of each."""
    return [
        {
            "source": "data:image/jpeg;base64," + base64.b64encode(s.jpeg).decode(),
            "class_name": printable(s.class_name),
            "size": s.size,
        }
        for s in ranking.samples
    ]


_COSTS: tuple[
    tuple[
        str,
        Callable[[Row, str], float | None],
        Callable[[Row], float | None],
        Callable[[float | None], str],
    ],
    ...,
] = (
    (
        "Time",
        lambda row, measure: row.ranking_seconds(measure),
        lambda row: row.finetune_seconds,
        duration,
    ),
    (
        "Images through a network",
        lambda row, measure: row.extract_images,
        lambda row: row.finetune_images,
        large,
    ),
    (
        "Operations",
        # A multiplication and an addition each; backwards costs about twice forwards.
        lambda row, measure: _product(2, row.multiply_adds, row.extract_images),
        lambda row: _product(6, row.multiply_adds, row.finetune_images),
        lambda count: NONE if count is None else f"{large(count)}FLOP",
    ),
)
"""What ranking and fine-tuning cost: name, of ranking, of fine-tuning, how to write."""


def _product(*factors: float | None) -> float | None:
    return None if None in factors else math.prod(f for f in factors if f is not None)


def cost(ranking: Ranking) -> dict[str, Any] | None:
    """What ranking took beside what fine-tuning took, or None where neither is known.

    Each comparison is over the checkpoints for which both are known.
    """
    first = ranking.measures[0]
    rows = [row for row in ranking.rows if not row.failure]
    table = [
        [
            finite(row.extract_seconds),
            *(finite(row.score_seconds.get(measure)) for measure in ranking.measures),
            finite(row.finetune_seconds),
        ]
        for row in rows
    ]
    if not any(known(line) for line in table):
        return None
    comparisons = []
    for name, of_ranking, of_tuning, written in _COSTS:
        both = [
            (a, b)
            for row in rows
            if (a := finite(of_ranking(row, first))) is not None
            and (b := finite(of_tuning(row))) is not None
        ]
        if not both:
            continue
        ranked, tuned = (sum(column) for column in zip(*both, strict=True))
        longest = max(ranked, tuned) or 1.0
        comparisons.append(
            {
                "name": name,
                "n": len(both),
                "bars": [
                    (title, written(total), round(100 * total / longest))
                    for title, total in (
                        (f"Ranking with {printable(first)}", ranked),
                        ("Fine-tuning", tuned),
                    )
                ],
                "factor": _factor(tuned, ranked),
            }
        )
    totals = [sum(known(column)) for column in zip(*table, strict=True)]
    return {
        "comparisons": comparisons,
        "headings": ["Features", *map(printable, ranking.measures), "Fine-tuning"],
        "rows": [
            (
                printable(row.checkpoint),
                [(sort_key(v), duration(v)) for v in line],
            )
            for row, line in zip(rows, table, strict=True)
        ],
        "totals": [format_seconds(total) for total in totals],
    }


def _factor(slow: float, fast: float) -> str:
    """How many times as long `slow` took, in words; empty where it did not."""
    if not 0 < 1.05 * fast < slow:
        return ""
    factor = slow / fast
    return f"{factor:.1f}" if factor < 10 else f"{factor:,.0f}"
