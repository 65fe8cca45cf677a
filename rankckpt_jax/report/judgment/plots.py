"""The plots of a judgment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rankckpt_jax.evaluation import Judgment
from rankckpt_jax.evaluation.dropping import DroppingPoint
from rankckpt_jax.evaluation.judgment import MeasureJudgment
from rankckpt_jax.evaluation.table import TaskTable
from rankckpt_jax.report import svg
from rankckpt_jax.report.judgment.sentences import format_regret
from rankckpt_jax.report.plots import mark_point, side
from rankckpt_jax.results.formatting import (
    format_percent,
    format_scores,
    format_seconds,
    printable,
)


def shown_measures(judgment: Judgment) -> list[tuple[str, MeasureJudgment]]:
    """Return the best, the default and the worst measure with their role."""
    known = [m for m in judgment.measures if not math.isnan(m.kendall)]
    default = [m for m in known if m.name == judgment.default]
    pairs = [("best", m) for m in known[:1]]
    pairs += [("default", m) for m in default]
    pairs += [("worst", m) for m in known[-1:]]
    roles: dict[str, list[str]] = {}
    for role, measure in pairs:
        roles.setdefault(measure.name, []).append(role)
    by_name = {m.name: m for m in known}
    return [(" and ".join(role), by_name[name]) for name, role in roles.items()]


def scatter(task: TaskTable, measure: str) -> str:
    """Draw accuracies against the scores of a measure, with the range of the runs.

    An arrowhead at the edge stands for an outlier, as in `plots.scatter`.
    """
    scores = [float(s) for s in task.scores[measure]]
    rows = [i for i, s in enumerate(scores) if not math.isnan(s)]
    accuracies = [float(a) for a in task.accuracies]
    runs = [[float(a) for a in run if not math.isnan(a)] for run in task.runs]
    texts = dict(zip(rows, format_scores([scores[i] for i in rows]), strict=True))
    x_range = svg.bulk([scores[i] for i in rows])
    y_range = svg.bulk([accuracies[i] for i in rows])
    inside = [i for i in rows if not side(accuracies[i], y_range)]
    plot = svg.Plot(
        svg.axis(x_range, f"score by {printable(measure)}"),
        svg.percent_axis([a for i in inside for a in runs[i]], "accuracy"),
        height=230,
    )
    best = max(accuracies[i] for i in rows)
    marks = [
        svg.line([plot.place(scores[i], a) for a in (min(run), max(run))], "whisker")
        for i in rows
        if len(run := runs[i]) > 1
    ]
    marks += [
        mark_point(
            plot.place(scores[i], accuracies[i]),
            (side(scores[i], x_range), side(accuracies[i], y_range)),
            f"{printable(task.checkpoints[i])}\n{printable(measure)} {texts[i]}, "
            f"fine-tuned {format_percent(accuracies[i])}",
            "best" if accuracies[i] == best else "",
        )
        for i in rows
    ]
    label = f"Accuracy against {printable(measure)} score on {printable(task.name)}"
    return svg.draw(plot, marks, label)


def dropping(curves: Mapping[str, Sequence[DroppingPoint]]) -> str:
    """Draw Kendall's tau after dropping the easiest checkpoints.

    Args:
      curves: The curve of each measure, by name. The static list and the ceiling of the
        first one are drawn too, if they are known.
    """
    first = next(iter(curves.values()))
    lines: dict[str, list[tuple[float, float]]] = {
        name: [(p.num_dropped, p.kendall) for p in points]
        for name, points in curves.items()
    }
    lines["static list"] = [(p.num_dropped, p.static) for p in first]
    lines["noise ceiling"] = [(p.num_dropped, p.ceiling) for p in first]
    known = {
        name: [(x, y) for x, y in points if not math.isnan(y)]
        for name, points in lines.items()
    }
    values = [y for points in known.values() for _, y in points]
    plot = svg.Plot(
        svg.axis([p.num_dropped for p in first], "checkpoints dropped"),
        svg.axis([*values, 0.0], "Kendall's tau"),
        width=440,
        height=260,
    )
    marks = [svg.line([plot.place(x, 0.0) for x in (plot.x.low, plot.x.high)], "limit")]
    marks += [
        svg.line(
            [plot.place(x, y) for x, y in points],
            f"line class{i % svg.CLASSES} dash{i % 4}",
            f"{printable(name)}\ntau {points[0][1]:.2f}, after dropping "
            f"{points[-1][0]:g}: {points[-1][1]:.2f}",
        )
        for i, (name, points) in enumerate(known.items())
        if points
    ]
    return svg.draw(plot, marks, "Kendall's tau after dropping the easiest checkpoints")


def mean_curve(measure: MeasureJudgment) -> list[DroppingPoint]:
    """Return the mean of the dropping curves over tasks, as far as all of them go."""
    curves = [a.dropping for a in measure.by_task.values() if a.dropping]
    if not curves:
        return []
    return [
        DroppingPoint(
            points[0].num_dropped,
            points[0].n,
            *(
                _mean([getattr(point, field) for point in points])
                for field in ("kendall", "static", "ceiling")
            ),
        )
        for points in zip(*curves, strict=False)
    ]


def cost(judgment: Judgment) -> str:
    """Draw regret against the seconds of a score, for the measures that have both."""
    rows = timed(judgment)
    regrets = [100 * row.figures["regret@1"].value for row in rows]
    seconds = [max(row.seconds, 1e-4) for row in rows]
    low, high = min(seconds) / 1.5, max(seconds) * 1.5
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [10.0**p for p in powers if low <= 10.0**p <= high]
    plot = svg.Plot(
        svg.Axis(
            low,
            high,
            tuple((t, f"{t:g} s") for t in ticks),
            "seconds for a checkpoint",
            is_logarithmic=True,
        ),
        svg.axis([*regrets, 0.0], "regret of the first, points"),
        width=440,
        height=280,
    )
    marks = []
    taken: list[svg.Point] = []
    # The best are labeled first.
    points = sorted(zip(regrets, seconds, rows, strict=True), key=lambda x: x[:2])
    for lost, second, row in points:
        at = plot.place(second, lost)
        regret = format_regret(row.figures["regret@1"].value)
        marks.append(
            svg.dot(
                at,
                f"{printable(row.name)}\n{format_seconds(row.seconds)}, "
                f"regret {regret} points",
                "best" if lost == min(regrets) else "",
            )
        )
        # A label is left out where another one is near; hovering shows the name.
        if all(abs(at[1] - y) > 12 or abs(at[0] - x) > 90 for x, y in taken):
            is_right = at[0] > 0.7 * plot.width
            marks.append(
                svg.text(
                    printable(row.name)[:20],
                    at[0] + (-8 if is_right else 8),
                    at[1] + 4,
                    "label",
                    "end" if is_right else "start",
                )
            )
            taken.append(at)
    return svg.draw(plot, marks, "Regret against the seconds of a score")


def timed(judgment: Judgment) -> list[MeasureJudgment]:
    """Return the measures with known seconds and regret."""
    return [
        row
        for row in judgment.measures
        if not math.isnan(row.seconds) and not math.isnan(row.figures["regret@1"].value)
    ]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
