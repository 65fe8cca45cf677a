"""CSV that reads back exactly and that no spreadsheet runs."""

import csv
import io

from hypothesis import given, settings
from hypothesis import strategies as st

from rankckpt_jax.report import columns as table
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row


def _read(ranking):
    return list(csv.DictReader(io.StringIO(table.to_csv(ranking))))


def test_one_line_for_each_checkpoint_in_order(realistic):
    lines = _read(realistic)
    assert [line["checkpoint"] for line in lines] == [
        row.checkpoint for row in realistic.rows
    ]
    assert [line["rank"] for line in lines] == ["1", "2", "3", "4", "5", ""]
    assert lines[0]["nleep_spread"] == "0.01"
    assert lines[0]["leep_seconds"] == "0.01"
    assert lines[0]["num_parameters"] == "3217226"
    assert lines[4]["leep"] == ""
    assert lines[4]["warnings"] == "leep: there is no classifier"
    assert lines[5]["failure"] == "two variables; found: 263 < 265"


def test_numbers_have_full_precision_and_are_never_escaped():
    scores = [-1 / 3, -1e-17, 2.0**60 + 0.1, float("nan")]
    rows = [
        Row(str(i), scores={"nleep": score}, accuracy=1 / 7)
        for i, score in enumerate(scores)
    ]
    lines = {line["checkpoint"]: line for line in _read(rank("t", ["nleep"], rows))}
    for i, score in enumerate(scores):
        assert lines[str(i)]["nleep"] == repr(score)
        assert float(lines[str(i)]["accuracy"]) == 1 / 7


def test_names_cannot_become_formulas(hostile):
    text = table.to_csv(hostile)
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


def test_names_read_back_as_they_were(hostile):
    found = table.from_csv(table.to_csv(hostile), hostile.task)
    assert [row.checkpoint for row in found.rows] == [
        row.checkpoint for row in hostile.rows
    ]
    assert found.measures == hostile.measures
    assert [row.scores for row in found.rows] == [row.scores for row in hostile.rows]
    assert [row.group for row in found.rows] == [row.group for row in hostile.rows]


@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.text("=+-@\t\r\n'\\\"x01u ＝", max_size=8))
def test_any_text_survives_a_csv_file_and_is_no_formula(text):
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow([table.text_cell(text), "end"])
    (line,) = csv.reader(io.StringIO(file.getvalue()))
    assert table.read_cell(line[0]) == text
    assert line[0].isprintable()
    assert not line[0].lstrip().startswith(tuple("=+-@＝＋－＠"))


def test_degenerate_rankings(degenerate):
    assert len(_read(degenerate)) == len(degenerate.rows)
