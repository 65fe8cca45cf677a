"""The plots: well formed, self-contained, with the colors of the page."""

import re
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


def test_scatter_uses_only_variables_of_the_page(svgs):
    svg = svgs["nleep"]
    assert "http" not in svg
    assert "xlink" not in svg
    assert "font-family" not in svg
    assert "<style" not in svg
    assert "style=" not in svg
    assert set(re.findall(r'(?:fill|stroke)="([^"]+)"', svg)) == {
        "none",
        "var(--ink)",
        "var(--muted)",
        "var(--line)",
        "var(--accent)",
        "var(--page)",
    }


def test_ids_are_unique_on_the_page_and_references_exist(svgs):
    ids = [i for svg in svgs.values() for i in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in svgs.values():
        for reference in re.findall(r"(?:href=\"|url\()#([^\")]+)", svg):
            assert f'id="{reference}"' in svg


def test_scatter_is_deterministic(realistic, svgs):
    assert plots.scatter(realistic, "leep") == svgs["leep"]


def test_scatter_escapes_hostile_names(hostile):
    svg = plots.scatter(hostile, hostile.measures[0])
    assert "<script" not in svg
    assert ElementTree.fromstring(svg).find(".//script") is None


def test_scatter_labels_many_points_with_ranks():
    rng = np.random.default_rng(0)
    rows = [
        Row(f"checkpoint_{i}", scores={"nleep": q + 0.1 * rng.normal()}, accuracy=q)
        for i, q in enumerate(rng.uniform(0.3, 0.9, 41))
    ]
    texts = _texts(plots.scatter(rank("t", ["nleep"], rows), "nleep"))
    assert not any("checkpoint_" in text for text in texts)
    assert sum(text.startswith("#") for text in texts) > 20


def test_scatter_labels_do_not_cover_the_bars_of_spreads():
    rows = [
        Row(f"net{i}", scores={"nleep": i}, spreads={"nleep": 0.8}, accuracy=0.5)
        for i in range(3)
    ]
    svg = plots.scatter(rank("t", ["nleep"], rows), "nleep")
    root = ElementTree.fromstring(svg)
    heights = {
        group.get("id").partition("-")[2]: float(use.get("y"))
        for group in root.iter("g")
        if "point" in (group.get("id") or "")
        for use in group.iter("use")
    }
    assert heights, svg
    for text in root.iter("text"):
        if "".join(text.itertext()).startswith("net"):
            place = text.get("transform") or f"({text.get('x')} {text.get('y')})"
            y = float(re.findall(r"[\d.]+", place)[1])
            assert abs(y - next(iter(heights.values()))) > 4


def test_scatter_does_not_warn_of_missing_glyphs():
    rows = [Row(f"名前{i}", scores={"nleep": i}, accuracy=0.1 * i) for i in range(3)]
    assert "名前2" in plots.scatter(rank("t", ["nleep"], rows), "nleep")


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
