"""The ranking as a Matplotlib figure."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rankckpt_jax.data.metrics import METRICS
from rankckpt_jax.errors import unknown_name
from rankckpt_jax.report.svg import bulk
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_LABELS = 15
"""With more points, the five highest scores and the best and worst accuracy are named.
"""

_NAME_LENGTH = 40

_PLACES = (
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
    (6, 6, "left", "bottom"),
    (-6, 6, "right", "bottom"),
    (6, -6, "left", "top"),
    (-6, -6, "right", "top"),
)
"""Places of a label: its offset from the point in points, and its alignment."""


def plot(ranking: Ranking, measure: str) -> Figure:
    """Draw the accuracies against the scores of a measure.

    With fewer than two accuracies, the scores are drawn, the highest on top. Horizontal
    bars are one standard deviation of a score to each side. An arrowhead at the edge
    stands for an outlier.

    Args:
      ranking: The ranking.
      measure: One of its measures.

    Raises:
      InputError: The ranking has no such measure.
    """
    if measure not in ranking.measures:
        raise unknown_name("measure", measure, ranking.measures, "measure")
    rows = ranking.evaluated_rows(measure)
    has_accuracies = len(rows) > 1
    if not has_accuracies:
        rows = tuple(row for row in ranking.rows if row.score(measure) is not None)
    rows = tuple(sorted(rows, key=lambda row: -row.scores[measure]))
    figure = _figure_class()(
        figsize=(7, 5 if has_accuracies else max(2.0, 1 + 0.28 * len(rows))),
        layout="constrained",
    )
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_title(printable(ranking.task), loc="left", parse_math=False)
    axes.set_xlabel(f"{printable(measure)} score (higher is better)", parse_math=False)
    if has_accuracies:
        _draw_accuracies(axes, rows, measure, ranking.metric)
    else:
        _draw_scores(axes, rows, measure)
    return figure


def _draw_accuracies(axes: Axes, rows: Sequence[Row], measure: str, name: str) -> None:
    scores = [row.scores[measure] for row in rows]
    metric = METRICS[name]
    factor = 100 if metric.is_share else 1
    accuracies = [factor * (row.finite_accuracy() or 0.0) for row in rows]
    spreads = [row.spread(measure) or 0.0 for row in rows]
    axes.errorbar(scores, accuracies, xerr=spreads, fmt="o", ecolor="0.6")
    axes.margins(0.1)
    scores = _mark_outliers(axes, scores, accuracies)
    unit = " (%)" if metric.is_share else ""
    axes.set_ylabel(f"{metric.title} after fine-tuning{unit}")
    by_accuracy = sorted(range(len(rows)), key=lambda i: -accuracies[i])
    # The rows are ordered by score.
    named = [0, by_accuracy[0], by_accuracy[-1], *range(1, min(5, len(rows)))]
    if len(rows) <= _MOST_LABELS:
        named += by_accuracy
    # If two labels do not fit, the one named first stays.
    names = {i: _name(rows[i]) for i in named}
    _label(axes, scores, accuracies, spreads, names)


def _mark_outliers(
    axes: Axes, scores: Sequence[float], accuracies: Sequence[float]
) -> list[float]:
    """Limit the horizontal axis to the bulk of the scores.

    Returns:
      The places of the points. That of an outlier is at the edge, with an arrowhead.
    """
    low, high = bulk(scores)
    if (low, high) == (min(scores), max(scores)):
        return list(scores)
    margin = 0.1 * (high - low)
    left, right = low - margin, high + margin
    axes.set_xlim(left, right)
    places = [min(max(score, left), right) for score in scores]
    for marker, end in (("<", left), (">", right)):
        heights = [a for x, a in zip(places, accuracies, strict=True) if x == end]
        axes.plot([end] * len(heights), heights, marker, color="C0", clip_on=False)
    return places


def _draw_scores(axes: Axes, rows: Sequence[Row], measure: str) -> None:
    scores = [row.scores[measure] for row in rows]
    spreads = [row.spread(measure) or 0.0 for row in rows]
    places = range(len(rows))
    axes.errorbar(scores, places, xerr=spreads, fmt="o", ecolor="0.6", capsize=3)
    axes.set_yticks(places, list(map(_name, rows)), parse_math=False)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.margins(x=0.1)


def _label(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    spreads: Sequence[float],
    names: dict[int, str],
) -> None:
    """Write names beside points where they cover no point, bar or other name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    with warnings.catch_warnings():
        # Matplotlib's font may lack letters of a name.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        # Positions are valid only after the layout is final.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        renderer = FigureCanvasAgg(figure).get_renderer()
        room = figure.bbox
        lows, highs = (
            axes.transData.transform(
                [(a + sign * s, b) for a, b, s in zip(x, y, spreads, strict=True)]
            )
            for sign in (-1, 1)
        )
        taken = [
            Bbox.from_extents(low[0] - 4, low[1] - 4, high[0] + 4, high[1] + 4)
            for low, high in zip(lows, highs, strict=True)
        ]
        for i, name in names.items():
            for dx, dy, horizontal, vertical in _PLACES:
                text = axes.annotate(
                    name,
                    (x[i], y[i]),
                    xytext=(dx, dy),
                    textcoords="offset points",
                    ha=horizontal,
                    va=vertical,
                    fontsize="small",
                    parse_math=False,
                )
                box = text.get_window_extent(renderer)
                is_inside = room.x0 <= box.x0 and box.x1 <= room.x1
                if is_inside and not any(box.overlaps(other) for other in taken):
                    taken.append(box)
                    break
                text.remove()


def _name(row: Row) -> str:
    name = printable(row.checkpoint)
    half = (_NAME_LENGTH - 1) // 2
    return name if len(name) <= _NAME_LENGTH else f"{name[:half]}…{name[-half:]}"


def _figure_class() -> type[Figure]:
    """Return Matplotlib's figure, which notebooks also show without pyplot."""
    # Imported here for start-up time: Matplotlib takes a second.
    from matplotlib import figure

    class Figure(figure.Figure):
        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Figure
