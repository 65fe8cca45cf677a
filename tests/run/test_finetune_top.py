"""`config.finetune.top`: only the best-ranked checkpoints are fine-tuned."""

import dataclasses
import shutil

import pytest

from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import loop
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import checkpoint, validation
from rankckpt_jax.run import run as run_lib
from tests.run.test_run import make_config


@pytest.fixture
def config(image_folder, pool, tmp_path):
    """A config that ranks `first`, `second` and `third` by a file of scores."""
    shutil.copytree(pool, tmp_path / "pool")
    shutil.copytree(pool / "first", tmp_path / "pool" / "third")
    config = make_config(image_folder, tmp_path / "pool", tmp_path / "runs")
    config.stages = "extract,score,finetune"
    # Only the head, which compiles quickly.
    config.finetune.frozen = True
    config.finetune.top = 1
    (tmp_path / "scores.csv").write_text("first,1\nsecond,3\nthird,2\n")
    config.measures = "static"
    config.measure_options.static = {"csv_file": str(tmp_path / "scores.csv")}
    return config


def accuracies(config):
    return {row.checkpoint: row.accuracy for row in run_lib.run(config).rows}


def test_run_fine_tunes_the_best_ranked_checkpoints_only(
    config, tmp_path, caplog, monkeypatch
):
    with caplog.at_level("INFO"):
        first_run = accuracies(config)
    assert [name for name, a in first_run.items() if a is not None] == ["second"]
    # The pool is scored before any training.
    lines = [record.getMessage() for record in caplog.records]
    [start] = [
        i for i, line in enumerate(lines) if "fine-tuning the best 1 of 3" in line
    ]
    assert any("third: scoring static" in line for line in lines[:start])
    assert not any("scoring static" in line for line in lines[start:])

    # A stored accuracy of a checkpoint that is no longer chosen is still shown.
    (tmp_path / "scores.csv").write_text("first,1\nsecond,0\nthird,2\n")
    second_run = accuracies(config)
    assert second_run.pop("first") is None
    assert second_run["second"] == first_run["second"]
    assert second_run["third"] is not None

    monkeypatch.setattr(loop, "train_trials", lambda *_, **__: pytest.fail("trained"))
    assert accuracies(config) == {**second_run, "first": None}


def test_run_fine_tunes_tied_checkpoints_in_the_order_of_the_ranking(
    config, tmp_path, monkeypatch
):
    (tmp_path / "scores.csv").write_text("first,2\nsecond,2\nthird,2\n")
    config.finetune.top = 2
    tuned = []

    def finetune(context, member, row, title, on_computed):
        tuned.append((title, row.scores))
        return dataclasses.replace(row, accuracy=0.5)

    monkeypatch.setattr(checkpoint, "finetune_later", finetune)
    ranking = run_lib.run(config)
    assert [title for title, _ in tuned] == ["[1/2] first", "[2/2] second"]
    assert all(scores == {"static": 2} for _, scores in tuned)
    assert [row.accuracy for row in ranking.rows] == [0.5, 0.5, None]


def test_run_turns_a_failure_of_fine_tuning_into_the_row(config, monkeypatch):
    def fail(*_, **__):
        raise InputError("The batch does not fit")

    monkeypatch.setattr(loop, "train_trials", fail)
    ranking = run_lib.run(config)
    [failed] = ranking.failed
    assert failed == Row("second", failure="The batch does not fit")
    assert [row.checkpoint for row in ranking.scored_rows] == ["third", "first"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"finetune.top": -1}, "at least 0"),
        ({"shard": "1/2"}, "score with all shards first"),
        ({"measures": "early_stopping,nleep"}, "another first measure"),
    ],
)
def test_check_raises_if_the_best_cannot_be_chosen(config, changes, text):
    config.update_from_flattened_dict(changes)
    stages = config.stages.split(",")
    with pytest.raises(InputError, match=text):
        validation.check(config, stages, config.measures.split(","))
    # Without fine-tuning the field decides nothing.
    validation.check(config, stages[:-1], config.measures.split(","))
