"""A judgment as one self-contained HTML page."""

from __future__ import annotations

import math
from typing import Any

from rankckpt_jax.evaluation import FIGURES, Judgment
from rankckpt_jax.evaluation.intervals import Interval
from rankckpt_jax.evaluation.judgment import MeasureJudgment
from rankckpt_jax.report import rendering
from rankckpt_jax.report.judgment import plots, sentences
from rankckpt_jax.report.judgment.sentences import format_interval, format_regret
from rankckpt_jax.report.judgment.text import format_figure, is_used
from rankckpt_jax.results.formatting import (
    count,
    format_decimal,
    format_p_value,
    format_seconds,
    printable,
)

_NUM_SHOWN = 6
"""Further plots of one kind are folded away."""

TERMS = {
    "kendall": (
        "Kendall's tau",
        "Kendall's tau-b, -1 to 1: the share of pairs in the right order minus the "
        "share in the wrong order. Mean over tasks.",
    ),
    "weighted_kendall": (
        "Weighted tau",
        "Kendall's tau in which mistakes near the top weigh more (Vigna 2015).",
    ),
    "spearman": ("Spearman", "Linear correlation of the two rankings."),
    "pearson": (
        "Pearson",
        "Linear correlation of scores and accuracies; one outlier can decide it.",
    ),
    "gap_fidelity": (
        "Gap fidelity",
        "Linear correlation of score gaps and accuracy gaps over pairs of checkpoints, "
        "without their signs.",
    ),
    "recall@1": ("Recall@1", "1 if the best checkpoint is ranked first, else 0."),
    "recall@3": (
        "Recall@3",
        "1 if the best checkpoint is among the first three, else 0.",
    ),
    "rel@1": ("Rel@1", "Share of the best accuracy that the first checkpoint reaches."),
    "rel@3": (
        "Rel@3",
        "Share of the best accuracy that the best of the first three reaches.",
    ),
    "regret@1": (
        "Regret@1",
        "Accuracy points that are lost by fine-tuning only the first checkpoint.",
    ),
    "regret@3": (
        "Regret@3",
        "Accuracy points that are lost by fine-tuning only the first three.",
    ),
    "regret@1_other_run": (
        "Regret@1, other run",
        "Regret@1 of checkpoints that one run names and another run measures.",
    ),
    "regret@3_other_run": ("Regret@3, other run", "The same for the first three."),
}
"""Heading and meaning of each of `FIGURES`."""


def to_html(judgment: Judgment) -> str:
    """Return a judgment as one page, which requests nothing and escapes all text."""
    table = judgment.table
    keys = [key for key in FIGURES if is_used(judgment, key)]
    first, *others = sentences.conclusions(judgment)
    return rendering.render(
        "judgment.html.j2",
        "report.js",
        title=printable(table.name),
        size=", ".join(
            [
                count(len(table.measures), "measure"),
                count(len(table.checkpoints), "checkpoint"),
                count(len(table.tasks), "task"),
            ]
        ),
        answer=printable(first),
        conclusions=[printable(sentence) for sentence in others],
        cautions=[printable(sentence) for sentence in sentences.cautions(judgment)],
        figures=_figures(judgment),
        headings=[TERMS[key] for key in keys],
        rows=[_row(judgment, row, keys) for row in judgment.all_rows],
        foot=_foot(judgment, keys),
        units="families" if table.families else "checkpoints",
        default=printable(judgment.default),
        static=judgment.best_baseline,
        comparisons=_comparisons(judgment),
        tasks=[printable(task.name) for task in table.tasks],
        map=_map(judgment),
        scatters=_scatters(judgment),
        num_shown=_NUM_SHOWN,
        dropping=_dropping(judgment),
        within=_within(judgment),
        cost=plots.cost(judgment) if len(plots.timed(judgment)) > 1 else "",
        times=[
            (
                printable(row.name),
                format_seconds(row.seconds),
                format_regret(row.figures["regret@1"].value),
                format_regret(row.figures["regret@3"].value),
            )
            for row in plots.timed(judgment)
        ],
        protocol=[(name, printable(text)) for name, text in _protocol(judgment)],
        notes=[printable(note) for note in table.notes],
    )


def _figures(judgment: Judgment) -> list[tuple[str, str, str]]:
    """Return name, value and note of the four figures below the conclusions."""
    if not judgment.measures:
        return []
    best = judgment.measures[0]
    regret = best.figures["regret@1"]
    figures = [
        (
            f"Tau of {printable(best.name)}",
            format_decimal(best.kendall),
            f"{count(len(judgment.table.checkpoints), 'checkpoint')}, "
            f"{count(len(best.by_task), 'task')}",
        ),
        (
            "Regret of its first",
            format_regret(regret.value),
            f"accuracy points; {format_regret(regret.random)} for a random checkpoint",
        ),
    ]
    if judgment.best_baseline:
        baseline = judgment.measure(judgment.best_baseline)
        figures.insert(
            1,
            (
                "Tau of the best baseline",
                format_decimal(baseline.kendall),
                baseline.name,
            ),
        )
    if judgment.ceilings:
        figures.append(
            (
                "Noise ceiling of tau",
                format_decimal(judgment.ceiling("kendall_mean")),
                f"{format_decimal(judgment.ceiling('kendall'))} between two runs",
            )
        )
    else:
        figures.append(
            (
                "Rank dispersion",
                format_decimal(judgment.dispersion),
                "0: one list serves all tasks",
            )
        )
    return figures


def _row(judgment: Judgment, row: MeasureJudgment, keys: list[str]) -> dict[str, Any]:
    sizes = [agreement.n for agreement in row.by_task.values()]
    families = max(agreement.num_families for agreement in row.by_task.values())
    span = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)}-{max(sizes)}"
    note = f"{span} checkpoints" + (f", {families} families" if families else "")
    best = _best(judgment)
    return {
        "name": printable(row.name),
        "is_baseline": row.is_baseline,
        "note": note,
        "tasks": len(row.by_task),
        "won": "" if row.is_baseline else row.num_won,
        "cells": [
            {
                "value": _number(row.figures[key].value),
                "text": format_figure(key, row.figures[key].value),
                "notes": _intervals(judgment, row, key),
                "best": not row.is_baseline and row.figures[key].value == best[key],
            }
            for key in keys
        ],
        "partial": _cell(row.partial),
        "p_value": (_number(row.p_value), format_p_value(row.p_value)),
    }


def _best(judgment: Judgment) -> dict[str, float]:
    result = {}
    for key in FIGURES:
        values = [m.figures[key].value for m in judgment.measures]
        known = {value for value in values if not math.isnan(value)}
        choose = min if key.startswith("regret") else max
        result[key] = choose(known) if len(known) > 1 else math.nan
    return result


def _intervals(judgment: Judgment, row: MeasureJudgment, key: str) -> list[str]:
    """Return the intervals of a figure, with the sign of what they hold for."""
    figure = row.figures[key]
    scale = 100 if key.startswith("regret") else 1
    result = []
    for interval, sign in (figure.pool, "◇"), (figure.tasks, "▫"):
        text = format_interval(Interval(scale * interval.low, scale * interval.high))
        if text:
            result.append(f"{sign}\N{NO-BREAK SPACE}{text}")
    return result


def _foot(judgment: Judgment, keys: list[str]) -> list[tuple[str, list[str]]]:
    """Return the rows below the table: random order, another run, perfect score."""
    random = judgment.all_rows[0].figures
    rows = [("random order", [format_figure(k, random[k].random) for k in keys])]
    fields = {
        "fine-tuned once more": {
            "kendall": "kendall",
            "pearson": "pearson",
            "recall@1": "recall_1",
            "rel@1": "rel_1",
        },
        "perfect score (noise ceiling)": {
            "kendall": "kendall_mean",
            "pearson": "pearson_mean",
        },
    }
    if judgment.ceilings:
        for name, known in fields.items():
            values = [
                format_decimal(judgment.ceiling(known[key])) if key in known else ""
                for key in keys
            ]
            rows.append((name, values))
    return rows


def _comparisons(judgment: Judgment) -> list[tuple[str, list[dict[str, Any]]]]:
    result = []
    for other in filter(None, (judgment.best_baseline, judgment.default)):
        rows = [
            {
                "name": printable(row.name),
                "is_baseline": row.is_baseline,
                "difference": (
                    _number(versus.over_tasks.difference),
                    f"{versus.over_tasks.difference:+.2f}",
                ),
                "pool": format_interval(versus.pool) or "–",
                "tasks": format_interval(versus.tasks) or "–",
                "num_tasks": versus.over_tasks.num_tasks,
                "p_value": _p_cell(versus.over_tasks.p_value),
                "adjusted": _p_cell(versus.adjusted),
                "verdict": sentences.verdict(versus),
            }
            for row in judgment.all_rows
            for versus in row.versus
            if versus.other == other
        ]
        if rows:
            result.append((printable(other), rows))
    return result


def _map(judgment: Judgment) -> list[tuple[str, bool, list[tuple[str, int]]]]:
    """Return Kendall's tau by row and task, with its shade; the ceiling comes first."""
    tasks = [task.name for task in judgment.table.tasks]
    rows = []
    for name, field in (
        ("noise ceiling", "kendall_mean"),
        ("fine-tuned once more", "kendall"),
    ):
        if judgment.ceilings:
            values = [
                getattr(judgment.ceilings[task], field)
                if task in judgment.ceilings
                else math.nan
                for task in tasks
            ]
            rows.append((name, True, [_shade(value) for value in values]))
    for row in judgment.all_rows:
        cells = [
            _shade(
                row.by_task[task].values["kendall"] if task in row.by_task else math.nan
            )
            for task in tasks
        ]
        rows.append((printable(row.name), row.is_baseline, cells))
    return rows


def _scatters(judgment: Judgment) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return a heading and (drawing, task, caption) for each measure that is shown."""
    result = []
    for role, measure in plots.shown_measures(judgment):
        drawn = [
            (
                plots.scatter(task, measure.name),
                printable(task.name),
                f"tau {format_decimal(agreement.values['kendall'])} over {agreement.n} "
                "checkpoints" + _resolvable(agreement.resolvable),
            )
            for task in judgment.table.tasks
            if (agreement := measure.by_task.get(task.name))
        ]
        result.append((f"{printable(measure.name)}, the {role} measure", drawn))
    return result


def _resolvable(resolvable: tuple[float, int] | None) -> str:
    if resolvable is None:
        return ""
    tau, pairs = resolvable
    return f", {format_decimal(tau)} over {pairs} pairs that the test resolves"


def _dropping(judgment: Judgment) -> dict[str, Any] | None:
    shown = [measure for _, measure in plots.shown_measures(judgment)]
    means = {m.name: curve for m in shown if len(curve := plots.mean_curve(m)) > 1}
    if not means:
        return None
    by_task = []
    for task in judgment.table.tasks:
        curves = {
            m.name: m.by_task[task.name].dropping
            for m in shown
            if task.name in m.by_task and len(m.by_task[task.name].dropping) > 1
        }
        if curves:
            by_task.append((plots.dropping(curves), printable(task.name)))
    legend = [*map(printable, means), "static list"]
    if judgment.ceilings:
        legend.append("noise ceiling")
    return {
        "svg": plots.dropping(means),
        "legend": legend,
        "criterion": judgment.criterion,
        "by_task": by_task if len(by_task) > 1 else [],
    }


def _within(judgment: Judgment) -> dict[str, Any] | None:
    rows = judgment.all_rows
    kinds = [k for k in ("size", "family", "group") if any(k in r.within for r in rows)]
    families = judgment.table.families
    if not kinds and not families:
        return None
    names = {"size": "Similar size", "family": "Same family", "group": "Same group"}
    # Single families are too many for columns; those without one follow.
    groups = [
        (kind, group)
        for kind in kinds
        if kind != "family"
        for group in dict.fromkeys(
            g for r in rows if kind in r.within for g in r.within[kind].by_group
        )
    ]
    headings = [names[kind] for kind in kinds]
    headings += [printable(group) for _, group in groups]
    headings += [f"without {printable(family)}" for family in families]
    lines = []
    for row in rows:
        values = [_tau_within(row, kind) for kind in kinds]
        values += [_tau_within(row, kind, group) for kind, group in groups]
        values += [row.without_family.get(family, math.nan) for family in families]
        cells = [_cell(value) for value in (row.kendall, *values)]
        lines.append((printable(row.name), row.is_baseline, cells))
    return {"headings": ["All", *headings], "rows": lines}


def _tau_within(row: MeasureJudgment, kind: str, group: str = "") -> float:
    """Return the tau within one group, or within all groups of a kind."""
    if kind not in row.within:
        return math.nan
    within = row.within[kind]
    return within.by_group.get(group, math.nan) if group else within.pooled


def _protocol(judgment: Judgment) -> list[tuple[str, str]]:
    return [
        (name, text[:1].upper() + text[1:])
        for name, text in sentences.protocol(judgment)
    ]


def _shade(value: float) -> tuple[str, int]:
    """Return a cell's text, and its shade from 0 (not above zero) to 100."""
    shade = 0 if math.isnan(value) else round(100 * max(value, 0.0))
    return format_decimal(value), shade


def _cell(value: float) -> tuple[float | str, str]:
    return _number(value), format_decimal(value)


def _p_cell(value: float) -> tuple[float | str, str]:
    return _number(value), format_p_value(value)


def _number(value: float) -> float | str:
    return "" if math.isnan(value) else value
