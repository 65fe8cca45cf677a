"""`config.finetune.budget` in minutes: the most promising checkpoints come first."""

import dataclasses

import pytest

from rankckpt_jax import finetune
from rankckpt_jax.errors import InputError, Interrupted
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
    scored_config.finetune.choose_after = 1.0
    return scored_config


@pytest.fixture
def tuned(monkeypatch):
    """Replace fine-tuning by one that takes 200 s, and list the checkpoints."""

    def expected(rows, images):
        return {r.checkpoint: 200.0 for r in rows if r.finetune_seconds is None}

    monkeypatch.setattr(planned, "expected_seconds", expected)
    names = []

    def finetune_later(context, member, row, title, *, only_start):
        assert not only_start
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

    def fail_first(context, member, row, title, **options):
        result = fake(context, member, row, title, **options)
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
        checkpoint, "finetune_later", lambda *_, **__: pytest.fail("trained again")
    )
    second = {row.checkpoint: row.accuracy for row in run_lib.run(config).rows}
    assert second == first


@pytest.fixture
def begun(config, monkeypatch):
    """Replace fine-tuning by one in two parts, of 100 and 200 s, and list them."""
    config.finetune.choose_after = None
    # Twelve test images say little.
    config.finetune.confidence = 0.7
    parts = []

    def expected(rows, images):
        left = {row.checkpoint: row for row in rows if row.finetune_seconds is None}
        return {name: 200.0 if row.started else 300.0 for name, row in left.items()}

    monkeypatch.setattr(planned, "expected_seconds", expected)

    def finetune_later(context, member, row, title, *, only_start):
        name = member.name
        parts.append((name, "first part" if only_start else "rest"))
        if only_start:
            early = {"first": 0.5, "second": 0.9, "third": 0.2}[name]
            started = finetune.Start(0.01, 30, 100, early, 200, 100.0, 0.0)
            return dataclasses.replace(row, started=started)
        accuracy = {"first": 0.6, "second": 0.95, "third": 0.3}[name]
        return dataclasses.replace(row, accuracy=accuracy, finetune_seconds=300.0)

    monkeypatch.setattr(checkpoint, "finetune_later", finetune_later)
    return parts


def test_run_leaves_weak_checkpoints_after_their_first_part(config, begun, caplog):
    config.finetune.budget = "1h"
    with caplog.at_level("INFO"):
        ranking = run_lib.run(config)
    # Without earlier results, the first has the highest score.
    assert begun[0] == ("second", "first part")
    assert ("second", "rest") in begun and ("third", "rest") not in begun
    rows = {row.checkpoint: row for row in ranking.rows}
    assert rows["second"].accuracy == 0.95 and rows["second"].started is not None
    assert rows["third"].accuracy is None
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "starting to fine-tune second next" in text
    assert "second is at 90.0% on held-out images after 30 of 100 steps" in text
    assert "going on with second next" in text and "second reaches 95.0%" in text
    assert "fine-tuned ones with a probability of" in text


def test_first_parts_count_as_used_time(config, begun):
    # Enough for the first complete one, and no more.
    config.finetune.budget = "590s"
    run_lib.run(config)
    assert begun == [("second", "first part"), ("second", "rest")]


def test_started_checkpoints_are_on_the_page(config, begun, tmp_path):
    config.finetune.budget = "1h"
    config.stages = "extract,score,finetune,report"
    ranking = run_lib.run(config)
    left = [row.checkpoint for row in ranking.rows if row.accuracy is None]
    assert left
    assert any(row.started for row in ranking.rows if row.checkpoint in left)
    page = (tmp_path / "runs" / "images" / "report.html").read_text()
    sentence = (
        "Fine-tuned for the first 30 of 100 steps only, with the held-out accuracy"
    )
    assert sentence in " ".join(page.split())


def test_a_plan_in_parts_resumes_and_ends_alike(config, monkeypatch):
    """With real fine-tunings: parts are stored, and count in a second run."""
    config.finetune.choose_after = 0.3
    config.finetune.confidence = 1.0
    config.finetune.budget = "1h"
    later, calls = checkpoint.finetune_later, []

    def stop_after_two(context, member, row, title, **options):
        calls.append((member.name, options["only_start"]))
        if len(calls) == 3:
            raise Interrupted("stopped")
        return later(context, member, row, title, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "finetune_later", stop_after_two)
        with pytest.raises(Interrupted):
            run_lib.run(config)
    done = calls[:2]
    calls.clear()

    def record(context, member, row, title, **options):
        calls.append((member.name, options["only_start"]))
        return later(context, member, row, title, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "finetune_later", record)
        first = {row.checkpoint: row for row in run_lib.run(config).rows}
    assert not set(done) & set(calls) and calls
    assert any(row.accuracy is not None for row in first.values())
    assert all(row.started for row in first.values() if row.accuracy is not None)
    monkeypatch.setattr(
        checkpoint, "finetune_later", lambda *_, **__: pytest.fail("trained again")
    )
    second = {row.checkpoint: row for row in run_lib.run(config).rows}
    assert {n: (r.accuracy, r.started) for n, r in first.items()} == {
        n: (r.accuracy, r.started) for n, r in second.items()
    }


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
    # 2,000 images at 0.01 and 0.03 s.
    images = planned.Images(600, 1400)
    new = planned.expected_seconds([row("a", 6, 5), row("b", 8, 5)], images)
    assert new == pytest.approx({"a": 20 * 4 + 20, "b": 60 * 4 + 20})
    rows = [row("a", 6, 5, 70, 10), row("b", 8, 5), Row("c")]
    after = planned.expected_seconds(rows, images)
    # Without features, the time is the median of the others.
    assert after == pytest.approx({"b": 60 * 3 + 10, "c": 40 * 3 + 10})


def test_expected_seconds_of_a_started_one_are_those_of_the_rest():
    images = planned.Images(600, 1400)
    start = finetune.Start(0.01, 30, 100, 0.5, 50, seconds=22.0, compile_seconds=4.0)
    started = dataclasses.replace(row("a", 6, 5), started=start)
    # 18 s for 600 images with a forward pass of 0.01 s: three passes per image.
    expected = {"a": 3 * 14, "b": 3 * 60 + 4}
    found = planned.expected_seconds([started, row("b", 8, 5)], images)
    assert found == pytest.approx(expected)
    diverged = dataclasses.replace(start, accuracy=None)
    left = planned.expected_seconds(
        [dataclasses.replace(started, started=diverged), row("b", 8, 5)], images
    )
    assert left.keys() == {"b"}
