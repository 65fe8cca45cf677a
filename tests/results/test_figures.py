"""The four main numbers of a ranking."""

import math

import pytest

from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize


def _figures(rows, *measures):
    return summarize(rank("task", measures or ["nleep"], rows)).conclusion.figures


def _rows(accuracies, **fields):
    n = len(accuracies)
    return [
        Row(f"ckpt{i}", scores={"nleep": n - i}, accuracy=accuracy, **fields)
        for i, accuracy in enumerate(accuracies)
    ]


def test_main_figures_without_accuracies():
    rows = _rows(
        [None] * 3,
        spreads={"nleep": 0.25},
        extract_seconds=16.0,
        score_seconds={"nleep": 3.0, "knn": 1.0},
    )
    assert _figures(rows, "nleep", "knn") == (
        ("Measures that agree", "1 of 1", "rank it first of 3"),
        ("Lead over the second", "2.8 ×", "the noise of the score"),
        ("Verified", "0 of 3", "checkpoints fine-tuned"),
        ("Time to rank", "1 min 0 s", "48.0 s features, 12.0 s scores"),
    )


def test_main_figures_with_accuracies_have_the_loss_instead_of_the_lead():
    figures = _figures(_rows([0.9, 0.95, 0.8, 0.7, 0.6, 0.5]))
    assert figures[1:3] == (
        ("Loss from following nleep", "5.0 points", "its first reaches 90.0%"),
        ("Verified", "6 of 6", "fine-tuned; Kendall's tau 0.87, significant"),
    )
    assert _figures(_rows([0.9, 0.8]))[1][1] == "none"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [Row("a", failure="x")],
        [Row("a")],
        _rows([None]),
        _rows([math.nan, None]),
        [Row(name, scores={"nleep": 1.0}) for name in "ab"],
    ],
)
def test_main_figures_are_always_four(rows):
    figures = _figures(rows)
    assert [name for name, _, _ in figures] == [
        *("Measures that agree", "Lead over the second", "Verified", "Time to rank")
    ]
    assert figures[1][1] == "–" and figures[3] == ("Time to rank", "–", "not recorded")


def test_main_figures_state_the_time_spent_on_compiling():
    row = Row(
        "a",
        extract_seconds=16.0,
        score_seconds={"nleep": 3.0},
        compile_seconds={"features": 12.0, "nleep": 2.5},
    )
    note = "14.5 s compiling, 4.0 s features, 0.50 s scores"
    assert _figures([row])[3] == ("Time to rank", "19.0 s", note)
