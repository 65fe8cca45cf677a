"""CSV files that read back exactly and that no spreadsheet runs."""

import csv
import io
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from rankckpt_jax.report.csv import from_csv, read_cell, text_cell, to_csv
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row


def _read(ranking):
    return list(csv.DictReader(io.StringIO(to_csv(ranking))))


def test_to_csv_writes_rows_in_order(realistic):
    lines = _read(realistic)
    assert [line["checkpoint"] for line in lines] == [
        row.checkpoint for row in realistic.rows
    ]
    assert [line["rank"] for line in lines] == ["1", "2", "3", "4", "5", ""]
    assert lines[0]["nleep_spread"] == "0.01"
    assert lines[0]["leep_seconds"] == "0.01"
    assert lines[0]["num_parameters"] == "3217226"
    assert lines[4]["leep"] == ""
    assert lines[4]["warnings"] == "leep: no logits"
    assert lines[5]["failure"] == "two variables; found: 263 < 265"


def test_to_csv_writes_numbers_in_full_precision():
    scores = [-1 / 3, -1e-17, 2.0**60 + 0.1]
    rows = [
        Row(str(i), scores={"nleep": score}, accuracy=1 / 7)
        for i, score in enumerate(scores)
    ]
    lines = {line["checkpoint"]: line for line in _read(rank("t", ["nleep"], rows))}
    for i, score in enumerate(scores):
        assert lines[str(i)]["nleep"] == repr(score)
        assert float(lines[str(i)]["accuracy"]) == 1 / 7


def test_to_csv_leaves_cells_of_nan_empty():
    row = Row("a", scores={"nleep": math.nan}, spreads={"nleep": math.nan})
    [line] = _read(rank("t", ["nleep"], [row]))
    assert line["nleep"] == line["nleep_spread"] == ""


def test_to_csv_escapes_formulas(hostile):
    text = to_csv(hostile)
    text.encode("utf-8")
    for line in csv.reader(io.StringIO(text)):
        for cell in line:
            try:
                float(cell)
            except ValueError:
                assert not cell.startswith(tuple("=+-@\t\r＝＋－＠"))
                assert cell.isprintable()
    names = {line["checkpoint"] for line in _read(hostile)}
    assert {"'=cmd()", "'+1", "'-1", "'@a", "\\tb", "'＝c"} <= names


def test_from_csv_restores_names(hostile):
    result = from_csv(to_csv(hostile), hostile.task)
    assert [row.checkpoint for row in result.rows] == [
        row.checkpoint for row in hostile.rows
    ]
    assert result.measures == hostile.measures
    assert [row.scores for row in result.rows] == [row.scores for row in hostile.rows]
    assert [row.group for row in result.rows] == [row.group for row in hostile.rows]


@settings(max_examples=100, deadline=None)
@given(text=st.text() | st.text("=+-@\t\r\n'\\\"x01u ＝", max_size=8))
def test_read_cell_restores_any_text(text):
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow([text_cell(text), "end"])
    (line,) = csv.reader(io.StringIO(file.getvalue()))
    assert read_cell(line[0]) == text
    assert line[0].isprintable()
    assert not line[0].lstrip().startswith(tuple("=+-@＝＋－＠"))


def test_to_csv_of_degenerate_rankings(degenerate):
    assert len(_read(degenerate)) == len(degenerate.rows)
