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


def test_cells_show_the_time_spent_on_compiling_apart():
    times = {"extract_seconds": 9.0, "score_seconds": {"m": 1.0}}
    rows = [
        Row("a", **times, compile_seconds={"features": 5.0, "m": 0.75}),
        Row("b", **times, compile_seconds={"m": 0.05}),
        Row("c", **times),
        Row("d"),
    ]
    ranking = rank("t", ["m"], rows)
    by_name = {column.name: column for column in columns.columns(ranking)}
    cells = columns.cells(by_name["ranking_seconds"], ranking.rows, "-")
    assert [cell.text for cell in cells] == ["4.2 + 5.8", "10.0", "10.0", "-"]
    assert [cell.value for cell in cells] == [10.0, 10.0, 10.0, None]


def test_every_column_has_a_help(ranking):
    for column in columns.columns(ranking):
        assert column.help.endswith(".")


def test_columns_have_unique_names_if_a_baseline_is_a_measure():
    rows = [Row("a", scores={"num_parameters": 6.0}, num_parameters=1_000_000)]
    found = columns.columns(rank("t", ["num_parameters"], rows))
    assert len(found) == len({column.name for column in found})
    [column] = [c for c in found if c.name == "num_parameters"]
    assert column.value(rows[0]) == 6.0
