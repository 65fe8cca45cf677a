import pytest

from rankckpt_jax.benchmark import published
from rankckpt_jax.errors import InputError
from rankckpt_jax.results.row import Row


def test_load_accuracies_selects_the_task():
    found, source = published.load_accuracies("published", "flowers_1k")
    assert found["vae"] == pytest.approx(0.1825)
    assert source == published.SOURCE
    assert published.load_accuracies("published", "pets")[0] == {}
    assert published.load_accuracies("", "flowers") == ({}, "")


def test_load_accuracies_reads_heading_and_percentages(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("checkpoint,accuracy\na,81.5\nb,0.5\n\n")
    found, source = published.load_accuracies(str(file), "pets")
    assert found == {"a": 0.815, "b": 0.005} and source == "mine.csv"


def test_merge_accuracies_keeps_measured_ones():
    rows = [Row("a", accuracy=0.9), Row("b"), Row("c")]
    filled = published.merge_accuracies(rows, {"a": 0.1, "b": 0.2}, "file")
    assert [row.accuracy for row in filled] == [0.9, 0.2, None]
    assert [row.accuracy_source for row in filled] == ["", "file", ""]


def test_load_accuracies_raises_for_bad_line_or_missing_file(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("a,0.5\nb,high\n")
    with pytest.raises(InputError, match="line 2"):
        published.load_accuracies(str(file), "pets")
    with pytest.raises(InputError, match="cannot be read"):
        published.load_accuracies(str(tmp_path / "none.csv"), "pets")
