"""Accuracies that were not measured here."""

import pytest

from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.benchmark import published as accuracies
from rankckpt_jax.errors import InputError
from rankckpt_jax.results.row import Row


def test_published_ones_follow_the_task():
    found, source = accuracies.load_accuracies("published", "flowers_1k")
    assert found["vae"] == pytest.approx(0.1825)
    assert source == neucrab.PUBLISHED_SOURCE
    assert accuracies.load_accuracies("published", "pets")[0] == {}
    assert accuracies.load_accuracies("", "flowers") == ({}, "")


def test_a_file_may_have_a_heading_and_per_cent(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("checkpoint,accuracy\na,81.5\nb,0.5\n\n")
    found, source = accuracies.load_accuracies(str(file), "pets")
    assert found == {"a": 0.815, "b": 0.005} and source == "mine.csv"


def test_what_was_measured_here_stays(tmp_path):
    rows = [Row("a", accuracy=0.9), Row("b"), Row("c")]
    filled = accuracies.merge_accuracies(rows, {"a": 0.1, "b": 0.2}, "file")
    assert [row.accuracy for row in filled] == [0.9, 0.2, None]
    assert [row.accuracy_source for row in filled] == ["", "file", ""]


def test_a_line_without_a_number_is_named(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("a,0.5\nb,high\n")
    with pytest.raises(InputError, match="line 2"):
        accuracies.load_accuracies(str(file), "pets")
    with pytest.raises(InputError, match="cannot be read"):
        accuracies.load_accuracies(str(tmp_path / "none.csv"), "pets")
