"""Axes and drawings."""

import itertools
import math
from xml.etree import ElementTree

import pytest
from matplotlib import ticker

from rankckpt_jax.report import svg


@pytest.mark.parametrize(
    "values",
    [(0.0, 1.0), (-1.5, -0.7), (2e6, 3e7), (1e-12, 2e-12), (1e9, 1e9 + 1), (0.3, 0.31)],
)
def test_axis_has_round_ticks_that_enclose_the_values(values):
    axis = svg.axis(values)
    assert axis.low < min(values) and max(values) < axis.high
    ticks = [value for value, _ in axis.ticks]
    assert 3 <= len(ticks) <= 8
    assert len({text for _, text in axis.ticks}) == len(ticks)
    assert axis.low <= ticks[0] and ticks[-1] <= axis.high
    # Matplotlib's locator with steps of 1, 2 and 5 gives the same ticks.
    (step,) = {float(f"{b - a:.6g}") for a, b in itertools.pairwise(ticks)}
    locator = ticker.MultipleLocator(step)
    expected = [
        v
        for v in locator.tick_values(axis.low, axis.high)
        if axis.low <= v <= axis.high
    ]
    assert ticks == pytest.approx(expected, rel=1e-9, abs=1e-9 * step)
    assert step / 10 ** math.floor(math.log10(step) + 1e-9) == pytest.approx(
        round(step / 10 ** math.floor(math.log10(step) + 1e-9))
    )


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((-1.0, 1.0), ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        ((2e6, 3e7), ["0", "10.0 M", "20.0 M", "30.0 M"]),
        ((1e18, 4e18), ["1e+18", "2e+18", "3e+18", "4e+18"]),
        ((5.0, 5.0), ["4.8", "4.9", "5.0", "5.1", "5.2"]),
    ],
)
def test_axis_writes_ticks_with_the_digits_that_tell_them_apart(values, texts):
    found = [
        text.replace("\N{NO-BREAK SPACE}", " ") for _, text in svg.axis(values).ticks
    ]
    assert found == texts


@pytest.mark.parametrize("values", [(0.0,), (1.0,), (-1e308, 1e308), (1e-320, 2e-320)])
def test_axis_places_extreme_values_inside(values):
    axis = svg.axis(values)
    assert all(0 <= axis.share(value) <= 1 for value in values)


def test_percent_axis_stays_within_possible_shares():
    axis = svg.percent_axis([0.0, 1.0])
    assert (axis.low, axis.high) == (0, 1)
    assert [text for _, text in axis.ticks] == [
        "0%",
        "20%",
        "40%",
        "60%",
        "80%",
        "100%",
    ]


def test_share_of_a_logarithmic_axis():
    axis = svg.Axis(1, 100, is_logarithmic=True)
    assert axis.share(10) == pytest.approx(0.5)


def test_draw_escapes_every_text():
    plot = svg.Plot(svg.axis([0, 1], "<x>"), svg.axis([0, 1], "a & b"))
    marks = [svg.dot((1, 2), '<script>"'), svg.text("<b>", 1, 2, "label")]
    drawn = svg.draw(plot, marks, 'label "<i>"')
    root = ElementTree.fromstring(drawn)
    assert root.get("aria-label") == 'label "<i>"'
    texts = [element.text for element in root.iter("text")]
    assert {"<x>", "a & b", "<b>"} <= set(texts)
    assert [title.text for title in root.iter("title")] == ['<script>"']


def test_bulk_leaves_out_far_values_that_fill_the_axis():
    assert svg.bulk([1.0, 2, 3, 4, 5, -580_000]) == (1, 5)
    assert svg.bulk([1.0, 2, 3, 4, 5, 7]) == (1, 7)
    # With half of the values equal, there is no scale to compare with.
    assert svg.bulk([1.0, 1, 1, 1, 9]) == (1, 9)
    assert svg.bulk([-1e308, 1e308]) == (-1e308, 1e308)
    assert svg.bulk([2.0]) == (2, 2)


def test_strip_of_an_outlier_is_an_arrowhead():
    axis = svg.axis([0, 10])
    for value, start in ((-50, "M-6"), (50, "M6")):
        root = ElementTree.fromstring(svg.strip(axis, "score", value, 2))
        (path,) = root.iter("path")
        assert path.get("d").startswith(start)
        assert not list(root.iter("circle"))


def test_strip_places_the_value_between_the_ends_of_its_interval():
    axis = svg.Axis(0, 10)
    root = ElementTree.fromstring(svg.strip(axis, "score", 5, 2))
    line, circle = root.find("line"), root.find("circle")
    assert (line.get("x1"), circle.get("cx"), line.get("x2")) == ("30%", "50%", "70%")
    root = ElementTree.fromstring(svg.strip(axis, "score", 5, measured=True))
    assert root.find("circle") is None
    assert root.find("svg").get("x") == "50%"
    root = ElementTree.fromstring(svg.strip(axis, "score", 5, interval=(1, 6)))
    assert (root.find("line").get("x1"), root.find("line").get("x2")) == ("10%", "60%")


def test_stack_puts_positive_parts_right_of_zero_and_negative_ones_left():
    root = ElementTree.fromstring(svg.stack(svg.Axis(-5, 5), [2, -1, 1, -2]))
    places = [
        tuple(float(rect.get(key)[:-1]) for key in ("x", "width"))
        for rect in root.iter("rect")
    ]
    assert places == [(50, 20), (40, 10), (70, 10), (20, 20)]
    assert root.find("line").get("x1") == "50%"
