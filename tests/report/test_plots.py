"""The plots: well formed, self-contained, with the colors of the page."""

import re
from importlib.resources import files
from xml.etree import ElementTree

import numpy as np
import pytest

from rankckpt_jax.report import plots
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row


@pytest.fixture(scope="module")
def svgs(realistic):
    return {m: plots.scatter(realistic, m) for m in realistic.measures}


def _texts(svg):
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter("text")]


def test_scatter_points_have_names_and_hints(svgs):
    svg = svgs["h_score"]
    root = ElementTree.fromstring(svg)
    hints = [title.text for title in root.iter("title")]
    assert len(hints) == 5
    assert "inception_v3/model.ckpt-300000\nh_score 2.110, fine-tuned 89.1%" in hints
    # Every checkpoint has its own folder, so the folder's name is enough.
    assert {"inception_v3", "random_initialization"} <= set(_texts(svg))
    assert root.get("role") == "img"
    assert "5 checkpoints" in root.get("aria-label")


def test_scatter_has_no_style_of_its_own(svgs):
    svg = svgs["nleep"]
    assert "http" not in svg
    for name in "xlink", "font-family", "<style", "style=", "fill=", "stroke=":
        assert name not in svg
    css = (files("rankckpt_jax.report.page") / "plots.css").read_text()
    root = ElementTree.fromstring(svg)
    for name in {c for e in root.iter() for c in (e.get("class") or "").split()}:
        # Labels have the style of all texts.
        assert f".{name}" in css or name == "label"


def test_scatter_is_deterministic(realistic, svgs):
    assert plots.scatter(realistic, "leep") == svgs["leep"]


def test_scatter_escapes_hostile_names(hostile):
    svg = plots.scatter(hostile, hostile.measures[0])
    assert "<script" not in svg
    assert ElementTree.fromstring(svg).find(".//script") is None


def _many(n=40):
    rng = np.random.default_rng(0)
    rows = [
        Row(f"net_{i:02}", scores={"nleep": q + 0.1 * rng.normal()}, accuracy=q)
        for i, q in enumerate(rng.uniform(0.3, 0.9, n))
    ]
    return rank("t", ["nleep"], rows)


def test_scatter_labels_only_the_most_important_of_many_points():
    ranking = _many()
    texts = _texts(plots.scatter(ranking, "nleep"))
    labels = {text for text in texts if text.startswith(("net_", "#"))}
    rows = sorted(ranking.rows, key=lambda row: row.accuracy)
    important = [*ranking.rows[:5], rows[0], rows[-1]]
    ranks = dict(zip((r.checkpoint for r in ranking.rows), ranking.ranks, strict=True))
    allowed = {r.checkpoint for r in important}
    allowed |= {f"#{ranks[r.checkpoint]}" for r in important}
    assert len(labels) >= 4
    assert labels <= allowed
    # The best is labeled first, so its name always fits.
    assert rows[-1].checkpoint in labels


def test_scatter_names_every_point_if_they_are_few():
    texts = _texts(plots.scatter(_many(4), "nleep"))
    assert {f"net_{i:02}" for i in range(4)} <= set(texts)


def test_scatter_labels_do_not_cover_the_bars_of_spreads():
    rows = [
        Row(f"net{i}", scores={"nleep": i}, spreads={"nleep": 0.8}, accuracy=0.5)
        for i in range(3)
    ]
    root = ElementTree.fromstring(plots.scatter(rank("t", ["nleep"], rows), "nleep"))
    bars = [e for e in root.iter("polyline") if e.get("class") == "whisker"]
    assert len(bars) == 3
    (height,) = {float(p.split(",")[1]) for b in bars for p in b.get("points").split()}
    labels = [e for e in root.iter("text") if e.get("class") == "label"]
    assert labels
    for label in labels:
        baseline = float(label.get("y"))
        # Text of 11 units reaches from about 9 above to 3 below its baseline.
        assert baseline + 3 < height or baseline - 9 > height


def test_scatter_labels_names_in_any_script():
    rows = [Row(f"名前{i}", scores={"nleep": i}, accuracy=0.1 * i) for i in range(3)]
    assert "名前2" in plots.scatter(rank("t", ["nleep"], rows), "nleep")


def _arrows(scores, accuracies):
    rows = [
        Row(f"net{i}", scores={"nleep": s}, accuracy=a)
        for i, (s, a) in enumerate(zip(scores, accuracies, strict=True))
    ]
    svg = plots.scatter(rank("t", ["nleep"], rows), "nleep")
    root = ElementTree.fromstring(svg)
    arrows = [e for e in root.iter("path") if (e.get("class") or "").startswith("dot")]
    dots = [float(e.get("cx")) for e in root.iter("circle")]
    return svg, arrows, max(dots) - min(dots)


def test_scatter_puts_an_outlier_at_the_edge():
    scores = [1.0, 2, 3, 4, 5, 6, 7, -580_000]
    svg, (arrow,), width = _arrows(scores, [0.5 + i / 100 for i in range(8)])
    # The others fill the axis, and the hint has the outlier's score.
    assert width > 200
    assert "-580,000" in "".join(arrow.itertext())
    assert "rotate(-90)" in arrow.get("transform")
    _, (arrow,), _ = _arrows(range(8), [0.8 + i / 100 for i in range(7)] + [0.1])
    assert "rotate(180)" in arrow.get("transform")


@pytest.mark.parametrize("scores", [[1, 2, 3, 4, 5, 6, 7, 9], [1] * 7 + [9], [0, 9]])
def test_scatter_shows_values_that_are_not_far_outliers(scores):
    _, arrows, _ = _arrows(scores, [0.5 + i / 100 for i in range(len(scores))])
    assert not arrows


@pytest.mark.parametrize(
    ("scores", "accuracies"),
    [
        ([1.0, 1.0], [1.0, 1.0]),
        ([0.0, 1.0], [0.0, 0.0]),
        ([-1e30, 1e30], [0.2, 0.3]),
        ([1e-12, 2e-12], [0.2, 0.3]),
        ([2e6, 3e7], [0.2, 1.0]),
    ],
)
def test_scatter_of_extreme_values(scores, accuracies):
    rows = [
        Row(str(i), scores={"nleep": s}, accuracy=a)
        for i, (s, a) in enumerate(zip(scores, accuracies, strict=True))
    ]
    svg = plots.scatter(rank("t", ["nleep"], rows), "nleep")
    ticks = [float(t[:-1]) for t in _texts(svg) if re.fullmatch(r"-?[\d.]+%", t)]
    assert ticks
    assert 0 <= min(ticks) <= max(ticks) <= 100
