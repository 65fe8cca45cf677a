"""Matplotlib figures as inline SVG with the fonts and colors of the page.

Matplotlib draws with placeholder colors, which are then replaced by the page's CSS
variables. So one drawing fits the light, dark and print styles.
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
"""Colors of classes in plots of features."""

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
"""Width and height in inches. The page scales the drawing to its column."""


def draw(
    paint: Callable[[Figure, Axes], None],
    prefix: str,
    label: str,
    hints: Mapping[str, str],
    size: tuple[float, float] = SIZE,
) -> str:
    """Return a drawing as an `<svg>` element.

    Args:
      paint: Draws on the given axes.
      prefix: Prefix of every id, so that ids are unique on the page.
      label: Description for screen readers.
      hints: Text to show on hover, by `gid` of an artist.
      size: Width and height in inches.

    Returns:
      The element for use inside HTML, without XML declaration or namespaces. Its colors
      are CSS variables such as `--ink`.
    """
    # Imported here for start-up time: Matplotlib takes a second.
    import matplotlib
    from matplotlib.figure import Figure

    # With a fixed salt, the same ranking gives the same bytes.
    text_as_text = matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "rankckpt_jax"}
    )
    with text_as_text, warnings.catch_warnings():
        # Matplotlib's font may lack letters of a name; the browser's fonts have them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=size, dpi=72, layout="constrained")
        axes = figure.add_subplot()
        simplify_axes(axes)
        paint(figure, axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    return _inline(file.getvalue(), prefix, label, hints)


def simplify_axes(axes: Axes) -> None:
    """Reduce the axes to two spines, a faint grid and few ticks."""
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
    """Write the labels of the axes."""
    axes.set_xlabel(x, labelpad=7, parse_math=False)
    axes.set_ylabel(y, labelpad=7)


def percent(axes: Axes) -> None:
    """Format the vertical axis as percentages from 0 to 100."""
    axes.yaxis.set_major_formatter(lambda y, _: f"{round(100 * y, 6):g}%")
    # The margins would include impossible accuracies.
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, 1.0))


def _inline(svg: str, prefix: str, label: str, hints: Mapping[str, str]) -> str:
    """Return the content of Matplotlib's SVG file as an element for the page.

    The arguments are those of `draw`.
    """
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in list(parent):
            # A style sheet would apply to the whole page.
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        if _XLINK_HREF in element.attrib:
            element.set("href", element.attrib.pop(_XLINK_HREF))
        # The page's policy forbids `style` attributes.
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
    """Return the value of an attribute with prefixed ids and the page's colors."""
    if key == "id":
        return f"{prefix}-{value}"
    if key == "href":
        return value.replace("#", f"#{prefix}-")
    value = value.replace("url(#", f"url(#{prefix}-")
    return _VARIABLES.get(value, value)


def _declarations(style: str) -> dict[str, str]:
    """Return the attributes for a `style`, without its font family."""
    pairs = (part.split(":", 1) for part in style.split(";") if ":" in part)
    declared = {key.strip(): value.strip() for key, value in pairs}
    declared.pop("font-family", None)
    if size := re.match(r"[\d.]+px", declared.pop("font", "")):
        declared["font-size"] = size[0]
    return declared
