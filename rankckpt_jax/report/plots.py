"""The plots of the page, as inline SVG with the page's fonts and colors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rankckpt_jax.report import svg
from rankckpt_jax.results.ablation import Ablation
from rankckpt_jax.results.formatting import format_percent, format_scores, printable
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rankckpt_jax.features.views import FeatureSummary

_LABEL_LENGTH = 26
_MOST_NAMED = 15
"""With more points than this, labels are ranks, because names would overlap."""

# Possible places of a label: its offset from the point in dots, and its alignment.
_PLACES = (
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    (0, 7, "center", "bottom"),
    (0, -7, "center", "top"),
    (6, 6, "left", "bottom"),
    (-6, 6, "right", "bottom"),
    (6, -6, "left", "top"),
    (-6, -6, "right", "top"),
)


def scatter(ranking: Ranking, measure: str) -> str:
    """Draw accuracies against the scores of one measure.

    Hovering over a point shows its checkpoint, score and accuracy. Its label is the
    name or, where that does not fit, the rank. Horizontal bars are the spreads of the
    scores. The point with the highest accuracy is filled.

    Args:
      ranking: The ranking.
      measure: One of its measures, with at least one evaluated row.
    """
    rows = ranking.evaluated_rows(measure)
    scores = [row.scores[measure] for row in rows]
    accuracies = [row.finite_accuracy() or 0.0 for row in rows]

    def paint(figure: "Figure", axes: "Axes") -> None:
        svg.name_axes(axes, f"{printable(measure)} score", "accuracy after fine-tuning")
        _format_scores_axis(axes, scores)
        spreads = [row.spread(measure) or 0.0 for row in rows]
        if any(spreads):
            axes.errorbar(
                scores, accuracies, xerr=spreads, fmt="none", color=svg.MUTED, zorder=1
            )
        for i in range(len(rows)):
            filled = accuracies[i] == max(accuracies)
            axes.plot(
                scores[i],
                accuracies[i],
                "o",
                gid=f"point{i}",
                markersize=7,
                markeredgecolor=svg.ACCENT,
                markerfacecolor=svg.ACCENT if filled else svg.PAGE,
                markeredgewidth=1.5,
                clip_on=False,
            )
        svg.percent(axes)
        _label(
            figure,
            axes,
            list(zip(scores, accuracies, strict=True)),
            _names(ranking, rows),
            spreads,
        )

    texts = format_scores(scores)
    hints = {
        f"point{i}": f"{printable(row.checkpoint)}\n"
        f"{printable(measure)} {texts[i]}, fine-tuned {format_percent(accuracies[i])}"
        for i, row in enumerate(rows)
    }
    label = (
        f"Accuracy after fine-tuning against {printable(measure)} score "
        f"of {len(rows)} checkpoints"
    )
    return svg.draw(paint, f"plot{ranking.measures.index(measure)}", label, hints)


def curves(ranking: Ranking) -> str:
    """Draw accuracy over the steps of fine-tuning, with a line for each checkpoint.

    The lines of the best checkpoint and of the one ranked first are thick.

    Args:
      ranking: A ranking with at least one row that has a curve.
    """
    rows = [row for row in ranking.rows if len(row.curve) > 1]
    ends = [row.curve[-1][1] for row in rows]
    best = rows[max(range(len(rows)), key=ends.__getitem__)]

    def paint(figure: "Figure", axes: "Axes") -> None:
        svg.name_axes(axes, "training steps", "accuracy")
        for i, row in enumerate(rows):
            steps, accuracies = zip(*row.curve, strict=True)
            is_first = row is ranking.best and not ranking.ranks_nothing
            heavy = row is best or is_first
            axes.plot(
                steps,
                accuracies,
                marker="o" if len(steps) < 12 else "",
                gid=f"line{i}",
                color=svg.ACCENT if heavy else svg.MUTED,
                alpha=1 if heavy else 0.6,
                linewidth=2.4 if heavy else 1.2,
                linestyle="--" if heavy and row is not best else "-",
                markersize=3.5,
                zorder=3 if heavy else 2,
            )
        svg.percent(axes)

    hints = {
        f"line{i}": f"{printable(row.checkpoint)}\n"
        f"{format_percent(row.curve[-1][1])} after {row.curve[-1][0]} steps"
        for i, row in enumerate(rows)
    }
    label = f"Accuracy over the steps of fine-tuning of {len(rows)} checkpoints"
    return svg.draw(paint, "curves", label, hints, (7.2, 3.8))


def spectrum(ranking: Ranking) -> str:
    """Draw the share of the variance in the first principal components.

    Args:
      ranking: A ranking with at least one view.
    """

    def paint(figure: "Figure", axes: "Axes") -> None:
        svg.name_axes(axes, "principal components", "share of the variance")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.axhline(0.8, color=svg.MUTED, linewidth=1, linestyle=":")
        for i, view in enumerate(ranking.views):
            axes.plot(
                range(1, len(view.cumulative) + 1),
                view.cumulative,
                gid=f"spectrum{i}",
                color=svg.CLASSES[i % len(svg.CLASSES)],
                linestyle=("-", "--", "-.", ":")[i % 4],
                linewidth=2,
                label=_cut(printable(view.checkpoint)),
            )
        axes.set_ylim(0, 1)
        svg.percent(axes)
        axes.legend(frameon=False, fontsize=9.5, labelcolor=svg.INK, loc="lower right")

    hints = {
        f"spectrum{i}": f"{printable(view.checkpoint)}\n"
        f"80% of the variance in {view.dimensions} of {len(view.cumulative)} components"
        for i, view in enumerate(ranking.views)
    }
    label = "Share of the variance in the first principal components"
    return svg.draw(paint, "spectrum", label, hints, (7.2, 3.8))


def separation(view: "FeatureSummary", number: int) -> str:
    """Draw images of some classes in the plane in which the class means differ most.

    Args:
      view: The features of one checkpoint.
      number: A number that is unique on the page.
    """
    markers = "osD^vP"

    def paint(figure: "Figure", axes: "Axes") -> None:
        axes.tick_params(labelbottom=False, labelleft=False)
        for i in range(len(view.classes)):
            points = [
                p for p, c in zip(view.points, view.labels, strict=True) if c == i
            ]
            x, y = zip(*points, strict=True)
            axes.plot(
                x,
                y,
                markers[i % len(markers)],
                gid=f"class{i}",
                color=svg.CLASSES[i % len(svg.CLASSES)],
                markersize=5,
                alpha=0.75,
                markeredgewidth=0,
                linestyle="none",
            )

    hints = {f"class{i}": printable(name) for i, name in enumerate(view.classes)}
    label = (
        f"Features of {printable(view.checkpoint)}, "
        f"images of {len(view.classes)} classes"
    )
    return svg.draw(paint, f"separation{number}", label, hints, (3.6, 3.0))


def ablation(ablation: Ablation) -> str:
    """Draw the agreement of NLEEP for several values of one option."""
    metrics = {
        "kendall": ("Kendall", svg.ACCENT, "-o"),
        "pearson": ("Pearson", svg.MUTED, "--s"),
    }

    def paint(figure: "Figure", axes: "Axes") -> None:
        svg.name_axes(axes, printable(ablation.title), "correlation")
        for name, (legend, color, style) in metrics.items():
            axes.plot(
                ablation.values,
                [point[name] for point in ablation.evaluations],
                style,
                gid=name,
                color=color,
                markersize=5,
                linewidth=2,
                label=legend,
            )
        axes.axvline(ablation.default, color=svg.LINE, linewidth=6, alpha=0.6, zorder=0)
        axes.set_xticks(ablation.values)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        low, high = axes.get_ylim()
        axes.set_ylim(max(-1.02, min(low, high - 0.1)), min(1.02, high))
        axes.legend(frameon=False, fontsize=9.5, labelcolor=svg.INK)

    hints = {
        name: "\n".join(
            f"{value:g}: {legend} {point[name]:.2f}"
            for value, point in zip(ablation.values, ablation.evaluations, strict=True)
        )
        for name, (legend, _, _) in metrics.items()
    }
    label = f"Agreement of NLEEP by {printable(ablation.title)}"
    return svg.draw(paint, f"ablation-{ablation.option}", label, hints)


def _format_scores_axis(axes: "Axes", scores: Sequence[float]) -> None:
    from matplotlib import ticker

    if max(map(abs, scores)) >= 1e4:
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    else:
        plain = ticker.ScalarFormatter(useOffset=False, useMathText=False)
        plain.set_scientific(False)
        axes.xaxis.set_major_formatter(plain)


def _names(ranking: Ranking, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return two candidates for the label of each row: a short name and the rank."""
    heads = [row.checkpoint.strip("/").split("/")[0] for row in rows]
    # The folder's name is enough if every checkpoint has its own folder.
    unique = len(set(heads)) == len(heads)
    ranks = dict(zip(map(id, ranking.rows), ranking.ranks, strict=True))
    names = []
    for row, head in zip(rows, heads, strict=True):
        name = _cut(printable(head if unique else row.checkpoint))
        rank = ranks[id(row)]
        names.append(
            (
                name if len(rows) <= _MOST_NAMED else "",
                "" if rank is None else f"#{rank}",
            )
        )
    return names


def _cut(name: str) -> str:
    """Return a name, without its middle if it is long."""
    if len(name) <= _LABEL_LENGTH:
        return name
    half = (_LABEL_LENGTH - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _label(
    figure: "Figure",
    axes: "Axes",
    points: Sequence[tuple[float, float]],
    names: Sequence[tuple[str, str]],
    spreads: Sequence[float],
) -> None:
    """Label points, the best first, without covering points, bars or other labels.

    A label takes the first free place of `_PLACES`. If the name fits nowhere, the rank
    is tried. Otherwise the point has no label.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    # Positions in dots are valid only after the layout is final.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    renderer = FigureCanvasAgg(figure).get_renderer()
    dots = axes.transData.transform(points)
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    for (x, y), spread in zip(points, spreads, strict=True):
        if spread:
            ends = axes.transData.transform([(x - spread, y), (x + spread, y)])
            taken.append(Bbox([ends[0] - (0, 1), ends[1] + (0, 1)]))
    room = axes.get_window_extent(renderer)
    right = figure.bbox.x1
    for i in sorted(range(len(points)), key=lambda i: -points[i][1]):
        tries = [(name, place) for name in names[i] if name for place in _PLACES]
        for name, (dx, dy, ha, va) in tries:
            text = axes.annotate(
                name,
                points[i],
                xytext=(dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                color=svg.INK,
                fontsize=10,
                parse_math=False,
            )
            box = text.get_window_extent(renderer)
            inside = room.x0 <= box.x0 and room.y0 <= box.y0 and box.x1 <= right
            others = taken[:i] + taken[i + 1 :]
            if inside and not any(box.overlaps(other) for other in others):
                taken.append(box)
                break
            text.remove()
