"""Matplotlib's drawings as inline SVG that follows the page's fonts and colors.

Matplotlib draws in stand-ins for colors, and the SVG gets the page's variables
instead: one drawing follows light, dark and print.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#010101", "#020202", "#030303"
ACCENT, PAGE = "#040404", "#050505"
CLASSES = ("#060606", "#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b")
"""Of classes in a picture of features."""

_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    PAGE: "var(--page)",
} | {color: f"var(--class{i})" for i, color in enumerate(CLASSES)}

_SVG = "http://www.w3.org/2000/svg"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"

SIZE = (4.6, 3.6)
"""Inches, at 72 dots each: the page scales the drawing to its column."""


def draw(
    paint: Callable[[Figure, Axes], None],
    prefix: str,
    label: str,
    hints: Mapping[str, str],
    size: tuple[float, float] = SIZE,
) -> str:
    """Makes an `<svg>` element of what `paint` draws.

    Args:
      paint: Draws on the axes it is given.
      prefix: Put before every id, which a page must not hold twice.
      label: What a screen reader says of the drawing.
      hints: Text to show on hover, by `gid` of an artist.
      size: Inches.

    Returns:
      The element, without XML declaration or namespaces, to stand inside HTML. Its
      colors are variables such as `--ink`.
    """
    # Imported here: it takes a second, and only the report needs it.
    import matplotlib
    from matplotlib.figure import Figure

    # A fixed salt gives the same bytes for the same ranking.
    text_as_text = matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "rankckpt_jax"}
    )
    with text_as_text, warnings.catch_warnings():
        # Names may need letters that Matplotlib's font lacks; the browser draws them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=size, dpi=72, layout="constrained")
        axes = figure.add_subplot()
        quiet(axes)
        paint(figure, axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    return _inline(file.getvalue(), prefix, label, hints)


def quiet(axes: Axes) -> None:
    """Draws quiet axes: two spines, a faint grid, few ticks."""
    from matplotlib import ticker

    axes.margins(0.1)
    axes.grid(color=LINE, linewidth=0.7, alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(length=0, labelcolor=MUTED, labelsize=10, pad=6)
    for label in axes.xaxis.label, axes.yaxis.label:
        label.set(color=MUTED, fontsize=10.5)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Writes what the axes show."""
    axes.set_xlabel(x, labelpad=7, parse_math=False)
    axes.set_ylabel(y, labelpad=7)


def percent(axes: Axes) -> None:
    """Writes shares upwards as percentages, within what can be."""
    axes.yaxis.set_major_formatter(lambda y, _: f"{round(100 * y, 6):g}%")
    # Margins must not suggest accuracies that cannot be.
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, 1.0))


def _inline(svg: str, prefix: str, label: str, hints: Mapping[str, str]) -> str:
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
        # The page's policy lets no attribute `style` in.
        declared = _declarations(element.attrib.pop("style", ""))
        for key, value in {**element.attrib, **declared}.items():
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
    """Rewrites one attribute: own ids, the page's font and colors."""
    if key == "id":
        return f"{prefix}-{value}"
    if key == "href":
        return value.replace("#", f"#{prefix}-")
    value = value.replace("url(#", f"url(#{prefix}-")
    return _VARIABLES.get(value, value)


def _declarations(style: str) -> dict[str, str]:
    """The attributes that say what a `style` does; the font is the page's."""
    pairs = (part.split(":", 1) for part in style.split(";") if ":" in part)
    found = {key.strip(): value.strip() for key, value in pairs}
    found.pop("font-family", None)
    if size := re.match(r"[\d.]+px", found.pop("font", "")):
        found["font-size"] = size[0]
    return found
