"""The ranking as a Matplotlib figure."""

import io
import math

import pytest
from matplotlib.figure import Figure
from PIL import Image

from rankckpt_jax.errors import InputError
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row


def _names(figure):
    axes = figure.axes[0]
    return [text.get_text() for text in axes.texts]


def _points(figure):
    [container] = figure.axes[0].containers
    return list(zip(*container.lines[0].get_data(), strict=True))


def test_plot_draws_accuracies_against_scores(realistic):
    figure = realistic.plot()
    assert isinstance(figure, Figure)
    points = sorted((r.scores["nleep"], 100 * r.accuracy) for r in realistic.rows[:5])
    for point, expected in zip(sorted(_points(figure)), points, strict=True):
        assert point == pytest.approx(expected)
    assert set(_names(figure)) <= {row.checkpoint for row in realistic.rows}
    assert "mobilenet_v1_1.0_224/model.ckpt" in _names(figure)
    axes = figure.axes[0]
    assert axes.get_xlabel() == "nleep score (higher is better)"
    assert axes.get_ylabel() == "accuracy after fine-tuning (%)"
    # The bars are the spreads of the scores.
    [bars] = axes.containers[0].lines[2]
    assert [s[1][0] - s[0][0] for s in bars.get_segments()] == pytest.approx([0.02] * 5)
    assert realistic.plot("h_score").axes[0].get_xlabel().startswith("h_score")


def test_plot_puts_an_outlier_at_the_edge():
    scores = [-580_000.0, 1, 2, 3, 4, 5, 6]
    rows = [
        Row(f"net{i}", scores={"gbc": s}, accuracy=0.5 + i / 20)
        for i, s in enumerate(scores)
    ]
    axes = rank("t", ["gbc"], rows).plot().axes[0]
    low, high = axes.get_xlim()
    assert -1 < low < 1 and 6 < high < 8
    arrows = [line for line in axes.lines if line.get_marker() == "<"]
    assert [list(line.get_xydata()[0]) for line in arrows] == [[low, pytest.approx(50)]]


def test_plot_draws_scores_without_accuracies():
    rows = [
        Row("b", scores={"nleep": 1.0}, spreads={"nleep": 0.1}, accuracy=0.5),
        Row("a", scores={"nleep": 2.0}),
        Row("failed", failure="x"),
    ]
    axes = rank("t", ["nleep"], rows).plot().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert _points(axes.figure) == [(2.0, 0), (1.0, 1)]
    # The highest score is on top.
    assert axes.yaxis_inverted()


def test_plot_names_few_of_many_points():
    rows = [
        Row(f"net{i}", scores={"nleep": -i}, accuracy=abs(i - 30) / 50)
        for i in range(40)
    ]
    names = set(_names(rank("t", ["nleep"], rows).plot()))
    assert names <= {"net0", "net1", "net2", "net3", "net4", "net30"}
    assert {"net0", "net30"} <= names


def test_plot_is_an_image_in_a_notebook(hostile, degenerate):
    for ranking in hostile, degenerate:
        image = Image.open(io.BytesIO(ranking.plot()._repr_png_()))
        assert image.format == "PNG" and min(image.size) >= 200


def test_plot_raises_for_an_unknown_measure(realistic):
    with pytest.raises(InputError, match="nlep"):
        realistic.plot("nlep")


def test_plot_omits_unknown_values():
    rows = [Row("a", scores={"nleep": math.nan}), Row("b", scores={"nleep": 1.0})]
    assert _points(rank("t", ["nleep"], rows).plot()) == [(1.0, 0)]
