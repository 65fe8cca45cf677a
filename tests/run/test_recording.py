"""What a run records in the history."""

import dataclasses
import os
import shutil
import types

import numpy as np
import pytest

from rankckpt_jax import evaluation
from rankckpt_jax.configs import default, demo
from rankckpt_jax.data import targets
from rankckpt_jax.errors import InputError, Interrupted
from rankckpt_jax.finetune import make_sweep
from rankckpt_jax.finetune.results import SweepResult
from rankckpt_jax.prediction import history, history_lines
from rankckpt_jax.prediction.history_lines import Entry
from rankckpt_jax.results.row import Row, Tried
from rankckpt_jax.run import finetuning, recording
from rankckpt_jax.run import run as run_lib
from tests.run.test_run import make_config

PROTOCOL = (
    "accuracy; vtab_1k batch_norm_decay=0.9; head only; 32 px; vtab; 6 steps of 8; "
    "rate 0.01"
)


@pytest.fixture
def config(image_folder, pool, tmp_path, monkeypatch):
    """A config that fine-tunes two checkpoints, of known results."""
    shutil.copytree(pool, tmp_path / "secret" / "pool")
    config = make_config(
        image_folder, tmp_path / "secret" / "pool", tmp_path / "secret" / "runs"
    )
    config.stages = "extract,score,finetune"
    config.finetune.frozen = True
    config.history = str(tmp_path / "history")
    config.task.name = str(tmp_path / "secret" / "pets")

    def run(directory, backbone, task, sweep, **_):
        del directory, task
        accuracy = 0.5 + 0.1 * (backbone.name == "second")
        return SweepResult(
            *(sweep.name, 0, "none", accuracy, accuracy, None, 0.01, 6, -1, 1.5, 8, ())
        )

    monkeypatch.setattr(finetuning.finetune, "run", run)
    return config


def entries(config):
    return {
        e.get("checkpoint"): e
        for e in history.read(history.locate(config.history)).entries
    }


def test_run_records_each_fine_tuning_once_and_no_path(config, tmp_path, caplog):
    with caplog.at_level("INFO"):
        run_lib.run(config)
    assert "History: 2 fine-tunings -> " in caplog.text
    [path] = (tmp_path / "history").glob("*.csv")
    text, changed = path.read_text(), path.stat().st_mtime_ns
    for secret in (str(tmp_path), "secret", os.path.expanduser("~"), "/"):
        assert secret not in text and "\\" not in text
    [task] = evaluation.read_table(path).tasks
    np.testing.assert_allclose(task.accuracies, [0.5, 0.6], rtol=1e-15)
    assert set(task.scores) == {"h_score", "leep"} and task.num_test == 12
    cells = entries(config)["second"].cells
    expected = {
        "task": "pets",
        "seed": "0",
        "family": "mobilenet_v1",
        "protocol": PROTOCOL,
        "train_images": "24",
        "scored_images": "24",
        "classes": "3",
        "feature_dim": "256",
        "image_size": "32",
        "finetune_seconds": "1.5",
    }
    assert {k: cells[k] for k in expected} == expected
    # The second network has no classifier, so there is no score.
    assert "leep" not in cells
    assert len(cells["task_fingerprint"]) == len(cells["checkpoint_fingerprint"]) == 16

    caplog.clear()
    with caplog.at_level("INFO"):
        run_lib.run(config)
    assert "History: 2 fine-tunings on 1 task, by 1 protocol" in caplog.text
    assert "->" not in caplog.text and path.stat().st_mtime_ns == changed
    # Another seed is another fine-tuning.
    config.seed = 1
    run_lib.run(config)
    assert len(history.read(tmp_path / "history").entries) == 4


def test_run_records_nothing_if_it_is_told_not_to(config, tmp_path):
    config.history = "off"
    run_lib.run(config)
    assert not (tmp_path / "history").exists()
    config.history = ""
    config.stages = "extract,score"
    run_lib.run(config)
    assert demo.get_config().history == "off"
    assert default.get_config().history == ""


def test_run_continues_if_the_history_cannot_be_written(
    config, tmp_path, caplog, monkeypatch
):
    (tmp_path / "history").write_text("a file")
    assert [row.accuracy for row in run_lib.run(config).rows if row.accuracy]
    assert "History: not recorded in" in caplog.text
    assert "Set config.history to a directory" in caplog.text

    def fail(*_):
        raise KeyError("a bug, or an error of a bucket")

    monkeypatch.setattr(recording.history_file, "append", fail)
    run_lib.run(config)
    assert "an error of a bucket" in caplog.text


def test_run_that_is_stopped_records_what_it_has_finished(config, monkeypatch):
    finish = run_lib.checkpoint.evaluate

    def evaluate(context, member, *more):
        if member.name == "second":
            raise Interrupted("stopped")
        return finish(context, member, *more)

    monkeypatch.setattr(run_lib.checkpoint, "evaluate", evaluate)
    with pytest.raises(Interrupted):
        run_lib.run(config)
    assert entries(config).keys() == {"first"}


def test_shards_record_together(config):
    for shard in ("1/2", "2/2"):
        config.shard = shard
        run_lib.run(config)
    assert entries(config).keys() == {"first", "second"}


def test_earlier_results_are_of_other_tasks_and_the_same_protocol(config, tmp_path):
    run_lib.run(config)
    recorded = [e.cells for e in entries(config).values()]
    other = {"task": "cars", "task_fingerprint": "other", "date": "2026"}
    renamed = [
        Entry({**cells, **other, "checkpoint": f"old {cells['checkpoint']}"})
        for cells in recorded
    ]
    shared = [
        *renamed,
        *(Entry({**e.cells, "protocol": "of others"}) for e in renamed),
        Entry({"task": "cars", "checkpoint": "unknown", "accuracy": "0.3"}),
    ]
    (tmp_path / "team.csv").write_text(history_lines.to_csv(shared))
    config.shared_histories = str(tmp_path / "team.csv")
    with run_lib.load(config) as context:
        rows = [
            Row(c["checkpoint"], weights=c["checkpoint_fingerprint"] + 48 * "0")
            for c in recorded
        ]
        table = recording.earlier_results(context, rows)
    assert table is not None and table.name == PROTOCOL
    [task] = table.tasks
    assert task.name == "cars" and task.checkpoints == ("first", "second")
    np.testing.assert_allclose(task.accuracies, [0.5, 0.6], rtol=1e-15)


def share_with_other_task(config, path):
    """Write the history of a config as that of a team, of another task."""
    other = {"task": "cars", "task_fingerprint": "other"}
    shared = [Entry({**e.cells, **other}) for e in entries(config).values()]
    path.write_text(history_lines.to_csv(shared))
    config.shared_histories = str(path)


def test_run_predicts_from_the_history_and_from_accuracies_of_the_run(config, tmp_path):
    run_lib.run(config)
    share_with_other_task(config, tmp_path / "team.csv")
    config.finetune.top = 1
    config.workdir = str(tmp_path / "again")
    config.stages += ",report"
    ranking = run_lib.run(config)
    [tuned] = [r for r in ranking.rows if r.accuracy is not None]
    [other] = [r for r in ranking.rows if r.accuracy is None]
    prediction = ranking.predict()
    assert prediction is ranking.prediction and prediction.num_earlier == 1
    assert "history" in prediction.best.contributions
    assert tuned.predicted.measured == tuned.accuracy
    low, high = other.predicted_interval
    assert 0 < low < other.predicted_accuracy < high < 1
    assert "<h2>Prediction</h2>" in (
        next((tmp_path / "again").rglob("report.html")).read_text()
    )


def test_run_survives_a_history_that_fails_and_skips_the_demo(
    config, monkeypatch, caplog
):
    def fail(*_):
        raise InputError("The history is broken")

    monkeypatch.setattr(recording, "earlier_results", fail)
    config.stages = "extract,score"
    ranking = run_lib.run(config)
    assert ranking.best is not None and ranking.prediction is None
    assert "Accuracies not predicted: The history is broken" in caplog.text
    demo = types.SimpleNamespace(config={"pretrain": {}})
    assert run_lib._add_prediction(ranking, demo) is ranking


def test_run_refuses_shared_histories_before_it_works(config, tmp_path):
    config.shared_histories = str(tmp_path / "none.csv")
    with pytest.raises(InputError, match="A history cannot be read"):
        run_lib.run(config)
    assert not (tmp_path / "secret" / "runs").exists()


@dataclasses.dataclass
class Context:
    """The part of a context that describes a protocol."""

    sweep: object
    metric: str = "accuracy"
    preprocess: str = "own"
    config: object = None


def test_describe_protocol_tells_protocols_apart():
    def describe(tried=None, image_size=0, moving=False, **settings):
        config = {"image_size": image_size, "use_moving_averages": moving}
        context = Context(make_sweep(settings, seed=3), config=config)
        return recording.describe_protocol(context, tried)

    assert describe(recipe="quick") == (
        "accuracy; quick; all weights; own size; own; 300 steps of 64; rate "
        "0.003/0.001/0.0003"
    )
    tried = Tried(0.01, 96, 96, 0.5, True)
    changes = [
        {"frozen": True},
        {"image_size": 96},
        {"moving": True},
        {"num_steps": (10, 20)},
        {"batch_size": 8},
        {"learning_rate": 0.1},
        {"decay_at": (0.5, 0.7)},
        {"select_by": "val"},
        {"recipe": "vit"},
        {"tried": tried, "budget": 1000},
    ]
    texts = {describe(**change) for change in [{}, *changes]}
    assert len(texts) == len(changes) + 1
    assert any("decay_at=0.5/0.7" in text for text in texts)
    assert any("successive halving up to 96 steps of 64" in text for text in texts)
    # These do not change an accuracy.
    assert describe(evaluations=2, save_every=7) == describe()


def test_make_entries_leaves_out_what_was_not_measured_here(config):
    rows = [
        Row("good", accuracy=0.5, finetune_seconds=1.0),
        Row("elsewhere", accuracy=0.5, finetune_seconds=1.0, accuracy_source="paper"),
        Row("diverged", accuracy=float("nan"), finetune_seconds=1.0),
        Row("failed", failure="broken"),
        Row("scored", scores={"h_score": 1.0}),
    ]
    with run_lib.load(config) as context:
        made = recording.make_entries(context, rows)
        assert [e.get("checkpoint") for e in made] == ["good"]
        task = dataclasses.replace(context.task, target=targets.REGRESSION)
        other = dataclasses.replace(context, task=task)
        assert not recording.make_entries(other, rows)
        other = dataclasses.replace(context, stages=("score", "report"))
        assert not recording.make_entries(other, rows)
