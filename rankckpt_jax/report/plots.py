"""Plots as inline SVG that takes its fonts and colours from the page around it."""

import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from rankckpt_jax.ranking import Ranking, Row
from rankckpt_jax.report.text import format_percent, format_scores, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SVG = "http://www.w3.org/2000/svg"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"

# Matplotlib draws in these stand-ins, and the SVG gets the page's variables instead:
# so one drawing follows light, dark and print.
_INK, _MUTED, _LINE = "#010101", "#020202", "#030303"
_ACCENT, _PAGE = "#040404", "#050505"
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _ACCENT: "var(--accent)",
    _PAGE: "var(--page)",
}

_SIZE = (4.6, 3.6)
"""Inches, at 72 dots each: the page scales the drawing to its column."""

_LABEL_LENGTH = 26
_MOST_NAMED = 15
"""Beyond this many points names crowd a plot, and ranks stand in for them."""

# Where a label may stand, as its offset from the point in dots and its alignment.
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
    """Draws fine-tuned accuracy against the score by one measure.

    Every point tells its checkpoint, score and accuracy on hover, and bears its name
    where there is room for it, else its place in the ranking, else nothing. Horizontal
    bars are the spreads of the scores. The highest accuracy is drawn filled.

    Args:
      ranking: The ranking.
      measure: One of its measures, with at least one paired row.

    Returns:
      An `<svg>` element without XML declaration or namespaces, to stand inside HTML.
      Its colours are the variables `--ink`, `--muted`, `--line`, `--accent` and
      `--page`.
    """
    # Imported here: it takes a second, and only the report needs it.
    import matplotlib
    from matplotlib.figure import Figure

    rows = ranking.paired(measure)
    scores = [row.scores[measure] for row in rows]
    accuracies = [row.fine_tuned() or 0.0 for row in rows]
    # A fixed salt gives the same bytes for the same ranking.
    text_as_text = matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "rankckpt_jax"}
    )
    with text_as_text, warnings.catch_warnings():
        # Names may need letters that Matplotlib's font lacks; the browser draws them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=_SIZE, dpi=72, layout="constrained")
        axes = figure.add_subplot()
        _style(axes, scores)
        axes.set_xlabel(f"{printable(measure)} score", labelpad=7, parse_math=False)
        axes.set_ylabel("fine-tuned accuracy", labelpad=7)
        for i, row in enumerate(rows):
            filled = accuracies[i] == max(accuracies)
            spread = row.spread(measure)
            if spread:
                axes.errorbar(
                    scores[i], accuracies[i], xerr=spread, color=_MUTED, zorder=1
                )
            axes.plot(
                scores[i],
                accuracies[i],
                "o",
                gid=f"point{i}",
                markersize=7,
                markeredgecolor=_ACCENT,
                markerfacecolor=_ACCENT if filled else _PAGE,
                markeredgewidth=1.5,
                clip_on=False,
            )
        # Margins must not suggest accuracies that cannot be.
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.0), min(high, 1.0))
        _label(
            figure,
            axes,
            list(zip(scores, accuracies, strict=True)),
            _names(ranking, rows),
        )
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    texts = format_scores(scores)
    hints = {
        f"point{i}": f"{printable(row.checkpoint)}\n"
        f"{printable(measure)} {texts[i]}, fine-tuned {format_percent(accuracies[i])}"
        for i, row in enumerate(rows)
    }
    label = (
        f"Fine-tuned accuracy against {printable(measure)} score "
        f"of {len(rows)} checkpoints"
    )
    prefix = f"plot{ranking.measures.index(measure)}"
    return _inline(file.getvalue(), prefix, label, hints)


def _style(axes: "Axes", scores: Sequence[float]) -> None:
    """Draws quiet axes: two spines, a faint grid, few ticks, percent upwards."""
    from matplotlib import ticker

    axes.margins(0.1)
    axes.grid(color=_LINE, linewidth=0.7, alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_LINE)
    axes.tick_params(length=0, labelcolor=_MUTED, labelsize=10, pad=6)
    for label in axes.xaxis.label, axes.yaxis.label:
        label.set(color=_MUTED, fontsize=10.5)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.yaxis.set_major_formatter(lambda y, _: f"{round(100 * y, 6):g}%")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    if max(map(abs, scores)) >= 1e4:
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    else:
        plain = ticker.ScalarFormatter(useOffset=False, useMathText=False)
        plain.set_scientific(False)
        axes.xaxis.set_major_formatter(plain)


def _names(ranking: Ranking, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """For each row its short name and its rank, which stands in where names crowd."""
    heads = [row.checkpoint.strip("/").split("/")[0] for row in rows]
    # A folder's name alone will do where every checkpoint has a folder of its own.
    unique = len(set(heads)) == len(heads)
    positions = dict(zip(map(id, ranking.rows), ranking.positions, strict=True))
    names = []
    for row, head in zip(rows, heads, strict=True):
        name = printable(head if unique else row.checkpoint)
        if len(name) > _LABEL_LENGTH:
            half = (_LABEL_LENGTH - 1) // 2
            name = f"{name[:half]}…{name[-half:]}"
        position = positions[id(row)]
        names.append(
            (
                name if len(rows) <= _MOST_NAMED else "",
                "" if position is None else f"#{position}",
            )
        )
    return names


def _label(
    figure: "Figure",
    axes: "Axes",
    points: Sequence[tuple[float, float]],
    names: Sequence[tuple[str, str]],
) -> None:
    """Labels points, the best first, each where it covers no point or other label.

    Greedy: a label takes the first of `_PLACES` that is free; if its name fits nowhere,
    its rank may; else the point stays without a label.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    # The layout must be final before positions in dots mean anything.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    renderer = FigureCanvasAgg(figure).get_renderer()
    dots = axes.transData.transform(points)
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
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
                color=_INK,
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


def _inline(svg: str, prefix: str, label: str, hints: dict[str, str]) -> str:
    """Turns Matplotlib's SVG file into an element for a page with several of them.

    Args:
      svg: The file's text.
      prefix: Put before every id, which a page must not hold twice.
      label: What a screen reader says of the drawing.
      hints: Text to show on hover, by id of an element.

    Returns:
      The `<svg>` element.
    """
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in list(parent):
            # Metadata, and a style sheet that would apply to the whole page.
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        if _XLINK_HREF in element.attrib:
            element.set("href", element.attrib.pop(_XLINK_HREF))
        for key, value in element.attrib.items():
            element.set(key, _rewrite(key, value, prefix))
        hint = hints.get(element.get("id", "").removeprefix(f"{prefix}-"))
        if hint:
            title = ElementTree.Element("title")
            title.text = hint
            element.insert(0, title)
    for name in "width", "height", "version":
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


def _rewrite(key: str, value: str, prefix: str) -> str:
    """Rewrites one attribute: own ids, the page's font and colours."""
    if key == "id":
        return f"{prefix}-{value}"
    if key == "href":
        return value.replace("#", f"#{prefix}-")
    value = value.replace("url(#", f"url(#{prefix}-")
    if key == "style":
        value = re.sub(r"font-family: [^;]*;?", "", value)
        for colour, variable in _VARIABLES.items():
            value = value.replace(colour, variable)
    return value
