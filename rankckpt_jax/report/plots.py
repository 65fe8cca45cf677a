"""The plots of the page."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rankckpt_jax.data.metrics import METRICS
from rankckpt_jax.report import svg
from rankckpt_jax.report.names import shorten_names
from rankckpt_jax.results.ablation import Ablation
from rankckpt_jax.results.formatting import (
    capitalize,
    format_metric,
    format_scores,
    printable,
)
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import Row

if TYPE_CHECKING:
    from rankckpt_jax.features.views import FeatureSummary

_LABEL_LENGTH = 26
MOST_NAMED = 15
"""With more points than this, only the most important ones have labels."""

_NUM_FIRST = 5
"""That many checkpoints ranked first have labels among many points."""

# Possible places of a label: the offset of its box from the point, and its alignment.
_PLACES = (
    (8, 0, "start"),
    (-8, 0, "end"),
    (0, -11, "middle"),
    (0, 11, "middle"),
    (6, -9, "start"),
    (-6, -9, "end"),
    (6, 9, "start"),
    (-6, 9, "end"),
)
_HALF_LINE = 6.5
_RADIUS = 5.5


def scatter(ranking: Ranking, measure: str) -> str:
    """Draw accuracies against the scores of one measure.

    Hovering over a point shows its checkpoint, score and accuracy. Horizontal bars are
    the spreads of the scores. The point with the highest accuracy is filled. Its label
    is the name or, where that does not fit, the rank. Among many points only the first
    five, the best and the worst have labels. The axes show the bulk of the points; an
    arrowhead at the edge stands for an outlier.

    Args:
      ranking: The ranking.
      measure: One of its measures, with at least one evaluated row.
    """
    rows = ranking.evaluated_rows(measure)
    scores = [row.scores[measure] for row in rows]
    accuracies = [row.finite_accuracy() or 0.0 for row in rows]
    spreads = [row.spread(measure) or 0.0 for row in rows]
    x_range, y_range = svg.bulk(scores), svg.bulk(accuracies)
    plot = svg.Plot(
        svg.axis(
            [
                s + d
                for s, p in zip(scores, spreads, strict=True)
                for d in (-p, p)
                if x_range[0] <= s <= x_range[1]
            ],
            f"score by {printable(measure)}",
        ),
        metric_axis(ranking)(y_range, f"{ranking.metric_title} after fine-tuning"),
    )
    points = [plot.place(s, a) for s, a in zip(scores, accuracies, strict=True)]
    bars = [
        (plot.place(s - spread, a), plot.place(s + spread, a))
        for s, a, spread in zip(scores, accuracies, spreads, strict=True)
        if spread and x_range[0] <= s <= x_range[1]
    ]
    texts = format_scores(scores)
    dots = [
        mark_point(
            points[i],
            (side(scores[i], x_range), side(accuracies[i], y_range)),
            f"{printable(row.checkpoint)}\n{printable(measure)} {texts[i]}, "
            f"fine-tuned {format_metric(accuracies[i], ranking.metric)}",
            "best" if accuracies[i] == max(accuracies) else "",
        )
        for i, row in enumerate(rows)
    ]
    marks = [
        *(svg.line(bar, "whisker") for bar in bars),
        *dots,
        *_labels(plot, points, bars, _names(ranking, rows, accuracies)),
    ]
    label = (
        f"{capitalize(ranking.metric_title)} after fine-tuning against "
        f"{printable(measure)} score of {len(rows)} checkpoints"
    )
    return svg.draw(plot, marks, label)


def side(value: float, shown: svg.Range) -> int:
    """Return -1 for a value below a range, 1 above it, and 0 inside."""
    return int(value > shown[1]) - int(value < shown[0])


def mark_point(at: svg.Point, sides: tuple[int, int], hint: str, classes: str) -> str:
    """Return the mark of a point, an arrowhead if it is beyond the axes."""
    right, up = sides
    if not (right or up):
        return svg.dot(at, hint, classes)
    return svg.arrow(at, math.degrees(math.atan2(right, up)), hint, classes)


def curves(ranking: Ranking) -> str:
    """Draw accuracy over the steps of fine-tuning, with a line for each checkpoint.

    The lines of the best checkpoint and of the one ranked first are thick.

    Args:
      ranking: A ranking with at least one row that has a curve.
    """
    rows = [row for row in ranking.rows if len(row.curve) > 1]
    ends = [row.curve[-1][1] for row in rows]
    best = rows[max(range(len(rows)), key=ends.__getitem__)]
    plot = _wide_plot(
        svg.axis([s for row in rows for s, _ in row.curve], "training steps"),
        metric_axis(ranking)(
            [a for row in rows for _, a in row.curve], ranking.metric_title
        ),
    )

    def classes(row: Row) -> str:
        if row is best:
            return "line heavy"
        is_first = row is ranking.best and not ranking.ranks_nothing
        return "line heavy dash1" if is_first else "line faint"

    lines = [
        svg.line(
            [plot.place(*point) for point in row.curve],
            classes(row),
            f"{printable(row.checkpoint)}\n"
            f"{format_metric(row.curve[-1][1], ranking.metric)} after "
            f"{row.curve[-1][0]} steps",
        )
        # Thick lines are drawn last, so that no other line covers them.
        for row in sorted(rows, key=lambda row: "heavy" in classes(row))
    ]
    name = capitalize(ranking.metric_title)
    label = f"{name} over the steps of fine-tuning of {len(rows)} checkpoints"
    return svg.draw(plot, lines, label)


def metric_axis(ranking: Ranking) -> Callable[..., svg.Axis]:
    """Return the function that makes an axis for accuracies."""
    return svg.percent_axis if METRICS[ranking.metric].is_share else svg.axis


def spectrum(ranking: Ranking) -> str:
    """Draw the share of the variance in the first principal components.

    Args:
      ranking: A ranking with at least one view.
    """
    most = max(2, *(len(view.cumulative) for view in ranking.views))
    ticks = [v for p in range(9) for v in (10**p, 3 * 10**p) if v <= most]
    x = svg.Axis(
        1,
        most,
        tuple((float(v), f"{v:,}") for v in ticks),
        "principal components",
        is_logarithmic=True,
    )
    plot = _wide_plot(x, svg.percent_axis((0.0, 1.0), "share of the variance"))
    limit = svg.line([plot.place(1, 0.8), plot.place(most, 0.8)], "limit")
    lines = [
        svg.line(
            [plot.place(j, share) for j, share in enumerate(view.cumulative, 1)],
            f"line class{i % svg.CLASSES} dash{i % 4}",
            f"{printable(view.checkpoint)}\n80% of the variance in {view.dimensions} "
            f"of {len(view.cumulative)} components",
        )
        for i, view in enumerate(ranking.views)
    ]
    label = "Share of the variance in the first principal components"
    return svg.draw(plot, [limit, *lines], label)


def separation(view: FeatureSummary) -> str:
    """Draw images of some classes in the plane in which the class means differ most.

    Args:
      view: The features of one checkpoint.
    """
    xs, ys = zip(*view.points, strict=True)
    x, y = (dataclasses.replace(svg.axis(values), ticks=()) for values in (xs, ys))
    plot = svg.Plot(x, y)
    marks = [
        class_marker(
            [
                plot.place(*point)
                for point, label in zip(view.points, view.labels, strict=True)
                if label == i
            ],
            i,
            printable(name),
        )
        for i, name in enumerate(view.classes)
    ]
    label = (
        f"Features of {printable(view.checkpoint)}, "
        f"images of {len(view.classes)} classes"
    )
    return svg.draw(plot, marks, label)


def class_marker(points: Sequence[svg.Point], number: int, hint: str = "") -> str:
    """Return marks at points with the color and shape of a class."""
    return svg.markers(points, number, f"marks class{number % svg.CLASSES}", hint)


ABLATION_METRICS = (("kendall", "Kendall's tau"), ("pearson", "Pearson correlation"))
"""Key and name of the metrics that `ablation` draws, in the order of their colors."""


def ablation(ablation: Ablation) -> str:
    """Draw the agreement of NLEEP for several values of one option."""
    values = ablation.values
    series = {
        name: [point[key] for point in ablation.evaluations]
        for key, name in ABLATION_METRICS
    }
    y = svg.axis([v for line in series.values() for v in line], "correlation")
    x = svg.axis([*values, ablation.default], printable(ablation.title))
    plot = svg.Plot(
        dataclasses.replace(x, ticks=tuple((v, f"{v:g}") for v in values)), y
    )
    current = [plot.place(ablation.default, end) for end in (y.low, y.high)]
    lines = [
        svg.line(
            [plot.place(v, c) for v, c in zip(values, line, strict=True)],
            f"line class{i} dash{i}",
            "\n".join(
                f"{v:g}: {name} {c:.2f}" for v, c in zip(values, line, strict=True)
            ),
        )
        for i, (name, line) in enumerate(series.items())
    ]
    label = f"Agreement of NLEEP by {printable(ablation.title)}"
    return svg.draw(plot, [svg.line(current, "band"), *lines], label)


def _wide_plot(x: svg.Axis, y: svg.Axis) -> svg.Plot:
    return svg.Plot(x, y, width=440, height=280)


def _names(
    ranking: Ranking, rows: Sequence[Row], accuracies: Sequence[float]
) -> list[tuple[int, tuple[str, ...]]]:
    """Return the rows to label and the candidates for each label, the best row first.

    Candidates are a short name and the rank.
    """
    heads = [row.checkpoint.strip("/").split("/")[0] for row in rows]
    # The folder's name is enough if every checkpoint has its own folder.
    unique = len(set(heads)) == len(heads)
    ranks = dict(zip(map(id, ranking.rows), ranking.ranks, strict=True))
    order = sorted(range(len(rows)), key=lambda i: -accuracies[i])
    if len(rows) > MOST_NAMED:
        first = [i for i in order if (ranks[id(rows[i])] or len(rows)) <= _NUM_FIRST]
        order = list(dict.fromkeys((order[0], order[-1], *first)))
    names = [printable(heads[i] if unique else rows[i].checkpoint) for i in order]
    labels: list[tuple[int, tuple[str, ...]]] = []
    for i, name in zip(order, shorten_names(names, _LABEL_LENGTH), strict=True):
        rank = ranks[id(rows[i])]
        labels.append((i, (name,) if rank is None else (name, f"#{rank}")))
    return labels


def _labels(
    plot: svg.Plot,
    points: Sequence[svg.Point],
    bars: Sequence[tuple[svg.Point, svg.Point]],
    names: Sequence[tuple[int, tuple[str, ...]]],
) -> list[str]:
    """Return labels that cover no point, bar or other label.

    A label takes the first free place of `_PLACES`. If the name fits nowhere, the rank
    is tried. Otherwise the point has no label.
    """
    left, _, _, bottom = plot.area
    taken: list[svg.Box] = [
        (x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in points
    ]
    taken += [(a[0], a[1] - 1, b[0], b[1] + 1) for a, b in bars]
    result = []
    for i, candidates in names:
        x, y = points[i]
        for name, (dx, dy, anchor) in (
            (name, place) for name in candidates for place in _PLACES
        ):
            width = svg.estimate_width(name)
            start = x + dx - {"start": 0, "middle": width / 2, "end": width}[anchor]
            box = start, y + dy - _HALF_LINE, start + width, y + dy + _HALF_LINE
            inside = box[0] >= left and box[1] >= 0 and box[2] <= plot.width
            if inside and box[3] <= bottom and not any(_overlap(box, o) for o in taken):
                taken.append(box)
                result.append(svg.text(name, x + dx, y + dy + 4, "label", anchor))
                break
    return result


def _overlap(a: svg.Box, b: svg.Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
