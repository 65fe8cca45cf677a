"""Drawings as inline SVG with the fonts and colors of the page.

Colors and fonts are classes of the style sheet, so one drawing fits the light, dark and
print styles. Positions are attributes, because the page's policy forbids `style`.
"""

from __future__ import annotations

import dataclasses
import html
import math
import unicodedata
from collections.abc import Iterable, Sequence

from rankckpt_jax.results.formatting import format_large

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""

Range = tuple[float, float]
"""The lowest and the highest value."""

CLASSES = 6
"""Number of colors for classes and lines: `class0` to `class5` of the style sheet."""

_LARGEST = 1e300
"""Larger values are drawn here, so that no difference overflows."""

_FONT = 11.0
"""Size of the text in a plot, in units of the drawing; as in the style sheet."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """A range of values along one direction.

    Attributes:
      low: The value at the left or lower end.
      high: The value at the right or upper end.
      ticks: Value and text of each tick.
      name: The name beside the axis, or empty.
      is_logarithmic: Whether equal factors have equal lengths. Needs `low` > 0.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...] = ()
    name: str = ""
    is_logarithmic: bool = False

    def share(self, value: float) -> float:
        """Return the position of a value as a share of the axis, in [0, 1]."""
        low, high = self.low, self.high
        if self.is_logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return min(max((value - low) / (high - low), 0.0), 1.0)


def axis(values: Iterable[float], name: str = "", num_ticks: int = 5) -> Axis:
    """Return an axis for finite values, with a margin and about that many ticks."""
    low, high = _range(values)
    step = _step(low, high, num_ticks)
    ticks = _multiples(low, high, step)
    return Axis(low, high, tuple(zip(ticks, _texts(ticks, step), strict=True)), name)


def bulk(values: Sequence[float]) -> Range:
    """Return the range that an axis shows, so that an outlier does not fill it.

    Outliers are more than three interquartile ranges outside the quartiles (Tukey's
    "far out" values, 1977). They are left out if they more than double the range of the
    others. The caller draws them at the edge.
    """
    low, high = min(values), max(values)
    ordered = sorted(values)
    lower, upper = _quantile(ordered, 0.25), _quantile(ordered, 0.75)
    # Halves, since the difference of huge values overflows.
    reach = 6 * (upper / 2 - lower / 2)
    inside = [value for value in ordered if lower - reach <= value <= upper + reach]
    is_owned = reach and inside[-1] / 2 - inside[0] / 2 < (high / 2 - low / 2) / 2
    return (inside[0], inside[-1]) if is_owned else (low, high)


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    i, rest = int(place), place % 1
    return ordered[i] * (1 - rest) + ordered[min(i + 1, len(ordered) - 1)] * rest


def percent_axis(values: Iterable[float], name: str = "", num_ticks: int = 5) -> Axis:
    """Return an axis for shares in [0, 1], with ticks in percent."""
    low, high = _range(values)
    # The margin would include impossible shares.
    low, high = max(low, 0.0), min(high, 1.0)
    ticks = _multiples(low, high, _step(low, high, num_ticks))
    return Axis(low, high, tuple((t, f"{round(100 * t, 6):g}%") for t in ticks), name)


def _range(values: Iterable[float]) -> tuple[float, float]:
    clipped = [min(max(value, -_LARGEST), _LARGEST) for value in values]
    low, high = min(clipped), max(clipped)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin


def _step(low: float, high: float, num_ticks: int) -> float:
    """Return the distance of the ticks: 1, 2 or 5 times a power of ten."""
    rough = (high - low) / num_ticks
    power = 10.0 ** math.floor(math.log10(rough))
    return next((f * power for f in (1, 2, 5) if f * power >= rough), 10 * power)


def _multiples(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step), math.floor(high / step)
    return [i * step for i in range(first, last + 1)]


def _texts(ticks: Sequence[float], step: float) -> list[str]:
    largest = max(map(abs, ticks), default=0.0)
    if largest >= 1e15 or step < 1e-6:
        return [f"{tick:.4g}" for tick in ticks]
    if largest >= 1e4:
        texts = [("-" if t < 0 else "") + format_large(abs(t)) for t in ticks]
        if len(set(texts)) == len(texts):
            return texts
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    # Adding 0 turns a negative zero into a positive one.
    return [f"{round(tick, digits) + 0.0:,.{digits}f}" for tick in ticks]


@dataclasses.dataclass(frozen=True)
class Plot:
    """The place of a plot's axes.

    Attributes:
      x: The horizontal axis.
      y: The vertical axis.
      width: Width of the drawing. The page scales it to its column.
      height: Height of the drawing.
    """

    x: Axis
    y: Axis
    width: float = 340
    height: float = 264

    @property
    def area(self) -> Box:
        """The area inside the axes."""
        texts = [estimate_width(text) for _, text in self.y.ticks]
        left = max(texts, default=0) + 8 + (18 if self.y.name else 0)
        bottom = (18 if self.x.ticks else 0) + (20 if self.x.name else 0) + 2
        return left, 8, self.width - 10, self.height - bottom

    def place(self, x: float, y: float) -> Point:
        """Return the position of a pair of values."""
        left, top, right, bottom = self.area
        return (
            left + self.x.share(x) * (right - left),
            bottom - self.y.share(y) * (bottom - top),
        )


def draw(plot: Plot, marks: Iterable[str], label: str) -> str:
    """Return a plot as an `<svg>` element.

    Args:
      plot: The axes.
      marks: Elements in the order in which they are drawn.
      label: Description for screen readers.
    """
    left, top, right, bottom = plot.area
    columns = [(plot.place(v, plot.y.low)[0], text) for v, text in plot.x.ticks]
    rows = [(plot.place(plot.x.low, v)[1], text) for v, text in plot.y.ticks]
    grid = "".join(f"M{_n(x)} {_n(top)}V{_n(bottom)}" for x, _ in columns) + "".join(
        f"M{_n(left)} {_n(y)}H{_n(right)}" for y, _ in rows
    )
    middle = (top + bottom) / 2
    frame = f"M{_n(left)} {_n(top)}V{_n(bottom)}H{_n(right)}"
    parts = [
        f'<path class="grid" d="{grid}"/>' if grid else "",
        f'<path class="frame" d="{frame}"/>',
        *(text(t, x, bottom + 14, "tick", "middle") for x, t in columns),
        *(text(t, left - 6, y + 4, "tick", "end") for y, t in rows),
        text(plot.x.name, (left + right) / 2, plot.height - 4, "tick", "middle"),
        text(plot.y.name, 11, middle, "tick", "middle", turned=True),
        *marks,
    ]
    return (
        f'<svg viewBox="0 0 {_n(plot.width)} {_n(plot.height)}" role="img" '
        f'aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
    )


def text(
    content: str,
    x: float,
    y: float,
    classes: str,
    anchor: str = "start",
    *,
    turned: bool = False,
) -> str:
    """Return a line of text, or nothing if it is empty.

    Args:
      content: The text.
      x: Position of its start, middle or end.
      y: Position of its baseline.
      classes: Classes of the style sheet.
      anchor: "start", "middle" or "end".
      turned: Whether it runs upward.
    """
    if not content:
        return ""
    turn = f' transform="rotate(-90 {_n(x)} {_n(y)})"' if turned else ""
    return (
        f'<text class="{classes}" x="{_n(x)}" y="{_n(y)}" '
        f'text-anchor="{anchor}"{turn}>{html.escape(content)}</text>'
    )


def dot(at: Point, hint: str, classes: str = "") -> str:
    """Return a circle that shows a hint on hover."""
    return (
        f'<circle class="{f"dot {classes}".strip()}" cx="{_n(at[0])}" cy="{_n(at[1])}" '
        f'r="4.5">{_title(hint)}</circle>'
    )


def arrow(at: Point, angle: float, hint: str, classes: str = "") -> str:
    """Return an arrowhead for a point beyond the axes, which shows a hint on hover.

    Args:
      at: Its place at the edge.
      angle: Its direction in degrees clockwise from up.
      hint: The text on hover.
      classes: Further classes of the style sheet.
    """
    return (
        f'<path class="{f"dot {classes}".strip()}" d="M0-6.5L5 4.5h-10z" '
        f'transform="translate({_n(at[0])} {_n(at[1])}) rotate({_n(angle)})">'
        f"{_title(hint)}</path>"
    )


def line(points: Sequence[Point], classes: str, hint: str = "") -> str:
    """Return a line through points, which shows a hint on hover if it has one."""
    place = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
    return f'<polyline class="{classes}" points="{place}">{_title(hint)}</polyline>'


def markers(points: Iterable[Point], shape: int, classes: str, hint: str) -> str:
    """Return small marks of one of six shapes, as one element with a hint."""
    outline = _SHAPES[shape % len(_SHAPES)]
    path = "".join(f"M{_n(x)} {_n(y)}{outline}" for x, y in points)
    return f'<path class="{classes}" d="{path}">{_title(hint)}</path>'


_SHAPES = (
    "m-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0z",
    "m-2.3-2.3h4.6v4.6h-4.6z",
    "m0-3.2l3.2 3.2l-3.2 3.2l-3.2-3.2z",
    "m0-3l3 5.2h-6z",
    "m0 3l-3-5.2h6z",
    "m-1-3h2v2h2v2h-2v2h-2v-2h-2v-2h2z",
)
"""Circle, square, diamond, triangles and cross, relative to the center."""


def ruler(scale: Axis, name: str) -> str:
    """Return the ticks of an axis that many strips share, for the head of a column.

    Args:
      scale: The axis.
      name: A name that is unique on the page; `strip` refers to it.
    """
    places = [
        (_percent(scale.share(value)), html.escape(text)) for value, text in scale.ticks
    ]
    lines = "".join(f'<line x1="{x}" x2="{x}" y1="0" y2="26"/>' for x, _ in places)
    texts = "".join(
        f'<text class="tick" x="{x}" y="11" text-anchor="middle">{t}</text>'
        for x, t in places
    )
    return (
        '<svg class="strip" height="16" aria-hidden="true">'
        f'<defs><g id="ticks-{name}">{lines}</g></defs>{texts}</svg>'
    )


def strip(
    scale: Axis,
    name: str,
    value: float,
    spread: float = 0.0,
    *,
    interval: Range | None = None,
    measured: bool = False,
) -> str:
    """Return one value on a shared axis, for a row of a table.

    A value beyond the axis is an arrowhead at its end.

    Args:
      scale: The axis.
      name: The name given to `ruler`.
      value: A finite value.
      spread: Half the length of the interval around it.
      interval: The interval, if it is not symmetric.
      measured: Whether it is drawn as a diamond instead of a circle.
    """
    x = _percent(scale.share(value))
    parts = [f'<use class="grid" href="#ticks-{name}"/>']
    side = int(value > scale.high) - int(value < scale.low)
    if side:
        classes = "measured" if measured else "score"
        head = f'<path class="{classes}" d="M{6 * side} 0l{-10 * side}-5v10z"/>'
        parts.append(f'<svg x="{x}" y="13" overflow="visible">{head}</svg>')
        return _strip(parts)
    if spread and interval is None:
        interval = value - spread, value + spread
    if interval is not None:
        ends = [_percent(scale.share(end)) for end in interval]
        parts.append(
            f'<line class="interval" x1="{ends[0]}" x2="{ends[1]}" y1="13" y2="13"/>'
        )
    if measured:
        # A nested drawing moves a path by a share of the width.
        diamond = '<path class="measured" d="M0-6.5L6.5 0L0 6.5L-6.5 0z"/>'
        parts.append(f'<svg x="{x}" y="13" overflow="visible">{diamond}</svg>')
    else:
        parts.append(f'<circle class="score" cx="{x}" cy="13" r="5"/>')
    return _strip(parts)


def stack(scale: Axis, parts: Sequence[float]) -> str:
    """Return the parts of a sum as one bar, for a row of a table.

    Positive parts are to the right of zero, negative ones to the left. The i-th part
    has the color of class i.

    Args:
      scale: An axis that includes zero and both ends of the bar.
      parts: Finite values, at most `CLASSES`.
    """
    ends = {1: 0.0, -1: 0.0}
    rects = []
    for i, part in enumerate(parts):
        side = 1 if part > 0 else -1
        start, end = sorted((ends[side], ends[side] + part))
        ends[side] += part
        x, width = scale.share(start), scale.share(end) - scale.share(start)
        rects.append(
            f'<rect class="part class{i}" x="{_percent(x)}" y="7" height="12" '
            f'width="{_percent(width)}"/>'
        )
    zero = _percent(scale.share(0.0))
    line = f'<line class="frame" x1="{zero}" x2="{zero}" y1="1" y2="25"/>'
    return _strip([*rects, line])


def _strip(parts: Iterable[str]) -> str:
    return f'<svg class="strip" height="26" aria-hidden="true">{"".join(parts)}</svg>'


def estimate_width(content: str, size: float = _FONT) -> float:
    """Return a width that no usual sans-serif font exceeds by much, for a layout."""
    return size * sum(map(_letter_width, content))


def _letter_width(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.05
    if letter in "ijltfrI.,:;'|!()[]/ ":
        return 0.42
    if letter in "mwMW@%—…" or letter.isupper():
        return 0.92
    return 0.66


def _title(hint: str) -> str:
    return f"<title>{html.escape(hint, quote=False)}</title>" if hint else ""


def _percent(share: float) -> str:
    return f"{_n(100 * share)}%"


def _n(value: float) -> str:
    """Return a number of the drawing with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
