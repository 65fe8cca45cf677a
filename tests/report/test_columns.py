"""The columns of a ranking's table."""

import math

import pytest

from rankckpt_jax.report import columns
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row


@pytest.fixture(scope="module")
def ranking():
    rows = [
        Row("a", scores={"m": 3.0}, spreads={"m": 0.123}, accuracy=0.5),
        Row("b", scores={"m": 1.0}, accuracy=math.nan),
        Row("c", scores={"m": math.inf}, accuracy=0.25),
    ]
    return rank("t", ["m"], rows)


def test_shown_omits_empty_optional_columns(ranking):
    names = [column.name for column in columns.shown(ranking, "terminal")]
    assert names == ["rank", "checkpoint", "m", "accuracy"]
    empty = rank("t", ["m"], [Row("a")])
    names = [column.name for column in columns.shown(empty, "page")]
    assert names == ["rank", "checkpoint", "m"]


def test_cells_format_finite_values(ranking):
    by_name = {column.name: column for column in columns.columns(ranking)}
    a, b, c = columns.cells(by_name["m"], ranking.rows, "-")
    assert a == columns.Cell(3.0, "3.000", "0.12", True)
    assert b == columns.Cell(1.0, "1.000")
    assert c == columns.Cell(None, "-")
    a, b, c = columns.cells(by_name["accuracy"], ranking.rows, "-")
    assert (a.text, a.is_best) == ("50.0%", True)
    assert (b.text, c.text, c.is_best) == ("-", "25.0%", False)


def test_every_column_has_a_help(ranking):
    for column in columns.columns(ranking):
        assert column.help.endswith(".")
