"""`config.finetune.budget` in minutes: the most promising checkpoints come first."""

import dataclasses

import pytest

from rankckpt_jax import finetune
from rankckpt_jax.errors import InputError
from rankckpt_jax.results import predicted
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import checkpoint, planned, recording
from rankckpt_jax.run import run as run_lib
from tests.run.test_finetune_top import config as scored_config  # noqa: F401


@pytest.fixture
def config(scored_config):  # noqa: F811
    """A config in which `second` is ranked first, and `first` last."""
    scored_config.finetune.top = 0
    scored_config.finetune.budget = "10min"
    scored_config.finetune.confidence = 1.0
    return scored_config


@pytest.fixture
def tuned(monkeypatch):
    """Replace fine-tuning by one that takes 200 s, and list the checkpoints."""
    expected = dict.fromkeys(("first", "second", "third"), 200.0)
    monkeypatch.setattr(planned, "expected_seconds", lambda *_: expected)
    names = []

    def finetune_later(context, member, row, title, on_computed=None):
        names.append(member.name)
        accuracy = {"first": 0.9, "second": 0.6, "third": 0.7}[member.name]
        return dataclasses.replace(row, accuracy=accuracy, finetune_seconds=200.0)

    monkeypatch.setattr(checkpoint, "finetune_later", finetune_later)
    return names


def test_run_fine_tunes_until_the_time_is_used(config, tuned, caplog):
    config.finetune.budget = "450s"
    with caplog.at_level("INFO"):
        rows = {row.checkpoint: row for row in run_lib.run(config).rows}
    assert len(tuned) == 2
    assert sum(row.accuracy is not None for row in rows.values()) == 2
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "up to 3 checkpoints within 7 min 30 s" in text
    reason = "50.0 s are left, and the shortest takes 3 min 20 s"
    assert f"no more fine-tuning, because {reason}" in text


def test_run_fine_tunes_only_the_best_ranked_within_the_time(config, tuned):
    config.finetune.top = 2
    run_lib.run(config)
    assert sorted(tuned) == ["second", "third"]


def test_run_stops_when_one_is_the_best_with_the_given_probability(config, tuned):
    config.finetune.confidence = 1e-3
    run_lib.run(config)
    assert len(tuned) == 1


def test_run_goes_on_after_a_failure(config, tuned, monkeypatch):
    fake = checkpoint.finetune_later

    def fail_first(context, member, row, *args):
        result = fake(context, member, row, *args)
        return Row(member.name, failure="no memory") if len(tuned) == 1 else result

    monkeypatch.setattr(checkpoint, "finetune_later", fail_first)
    ranking = run_lib.run(config)
    assert len(tuned) == len(set(tuned)) == 3
    [failed] = ranking.failed
    assert failed.checkpoint == tuned[0]


def test_stored_results_count_and_a_second_run_trains_nothing(config, monkeypatch):
    config.finetune.budget = "1h"
    first = {row.checkpoint: row.accuracy for row in run_lib.run(config).rows}
    assert None not in first.values()
    monkeypatch.setattr(
        checkpoint, "finetune_later", lambda *_: pytest.fail("trained again")
    )
    second = {row.checkpoint: row.accuracy for row in run_lib.run(config).rows}
    assert second == first


def test_a_single_checkpoint_is_fine_tuned_without_a_prediction(config, tuned):
    config.checkpoints += "/second"
    [row] = run_lib.run(config).rows
    assert tuned == ["second"]
    assert row.accuracy == 0.6


def test_a_history_that_cannot_be_used_is_a_warning(config, tuned, monkeypatch, caplog):
    predict = predicted.predict

    def refuse(ranking, tables, num_test):
        if tables:
            raise InputError("Two tables contradict each other")
        return predict(ranking, tables, num_test)

    monkeypatch.setattr(predicted, "predict", refuse)
    monkeypatch.setattr(recording, "earlier_results", lambda *_: object())
    run_lib.run(config)
    assert len(tuned) == 3
    assert "Planning without the history: Two tables contradict" in caplog.text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"shard": "1/2"}, "score with all shards first"),
        ({"finetune.metric": "auroc"}, "planned by predicted accuracies"),
        ({"finetune.confidence": 1.5}, "above 0 and at most 1"),
        ({"finetune.confidence": 0.0}, "above 0 and at most 1"),
        ({"finetune.budget": "30 parsecs"}, "90s, 30min or 2h"),
    ],
)
def test_run_refuses_what_it_cannot_plan(config, changes, text):
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=text):
        run_lib.run(config)


def row(name, extract, compiling, finetuning=None, finetune_compiling=0.0):
    compile_seconds = {"features": compiling}
    if finetuning is not None:
        compile_seconds["fine-tuning"] = finetune_compiling
    return Row(
        name,
        extract_seconds=extract,
        extract_images=100,
        compile_seconds=compile_seconds,
        finetune_seconds=finetuning,
    )


def test_expected_seconds_follow_the_features_and_finished_fine_tunings():
    sweep = finetune.make_sweep(
        {
            "recipe": "quick",
            "learning_rate": (0.1, 0.01),
            "num_steps": 50,
            "batch_size": 20,
        },
        0,
    )
    # 2 x 50 x 20 images at 0.01 and 0.03 s.
    new = planned.expected_seconds([row("a", 6, 5), row("b", 8, 5)], sweep)
    assert new == pytest.approx({"a": 20 * 4 + 20, "b": 60 * 4 + 20})
    rows = [row("a", 6, 5, 70, 10), row("b", 8, 5), Row("c")]
    after = planned.expected_seconds(rows, sweep)
    # Without features, the time is the median of the others.
    assert after == pytest.approx({"a": 70, "b": 60 * 3 + 10, "c": 40 * 3 + 10})
