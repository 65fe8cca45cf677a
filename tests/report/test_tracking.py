"""What trackers record, read back with each tracker's own reader."""

import json
import logging
import os
import pathlib
import pickle
import struct
import subprocess
import sys

import pytest

from rankckpt_jax import report
from rankckpt_jax.report import tracking
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.summary import summarize

BEST = "mobilenet_v1_1.0_224_model.ckpt"
"""The name of the realistic ranking's first checkpoint in keys."""


@pytest.fixture
def realistic_summary(realistic):
    return summarize(realistic)


def _track(name, summary, directory):
    report.write(summary, directory)
    tracking.track([name], summary, directory)


def _events(directory):
    """Return the summaries by tag that TensorFlow reads from a directory."""
    import tensorflow as tf

    (path,) = directory.glob("*tfevents*")
    records = tf.compat.v1.train.summary_iterator(str(path))
    return {value.tag: value for event in records for value in event.summary.value}


def test_tensorboard_has_the_scores_and_accuracy_of_each_checkpoint(
    tmp_path, realistic, realistic_summary
):
    _track("tensorboard", realistic_summary, tmp_path)
    place = tmp_path / "tensorboard"
    for row in realistic.rows:
        values = {**row.scores, "accuracy": row.accuracy}
        run = place / tracking._key(row.checkpoint)
        assert run.exists() != bool(row.failure)
        if run.exists():
            events = _events(run)
            for name, value in values.items():
                assert events[name].simple_value == pytest.approx(value)
            assert "_hparams_/session_start_info" in events
    events = _events(place)
    tau = realistic.evaluation["nleep"]["kendall"]
    assert events["kendall/nleep"].simple_value == pytest.approx(tau)
    text = events["ranking/text_summary"].tensor.string_val[0].decode()
    assert realistic_summary.sentences[0].split()[0] in text
    assert "caltech101" in events["config/text_summary"].tensor.string_val[0].decode()


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_shows_every_run(tmp_path, realistic_summary):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_multiplexer

    _track("tensorboard", realistic_summary, tmp_path)
    runs = event_multiplexer.EventMultiplexer()
    runs.AddRunsFromDirectory(str(tmp_path / "tensorboard"))
    runs.Reload()
    assert len(runs.Runs()) == 6
    (point,) = runs.Scalars(BEST, "nleep")
    assert point.step == 0 and point.value == pytest.approx(-0.412)
    content = runs.GetAccumulator(BEST).PluginTagToContent("hparams")
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(content)


def test_tensorboard_replaces_the_runs_of_an_earlier_pool(tmp_path, realistic):
    _track("tensorboard", summarize(realistic), tmp_path)
    smaller = rank("caltech101", ["nleep"], realistic.rows[1:])
    for _ in range(2):
        _track("tensorboard", summarize(smaller), tmp_path)
        assert not (tmp_path / "tensorboard" / BEST).exists()
        runs = [p for p in (tmp_path / "tensorboard").iterdir() if p.is_dir()]
        assert len(runs) == 4


def test_tensorboard_accepts_hostile_and_degenerate_rankings(
    tmp_path, hostile, degenerate, caplog
):
    for ranking in (hostile, degenerate):
        _track("tensorboard", summarize(ranking), tmp_path)
        assert "ranking/text_summary" in _events(tmp_path / "tensorboard")
    assert "not recorded" not in caplog.text


def test_track_warns_of_a_failing_tracker_and_continues(
    tmp_path, realistic_summary, monkeypatch, caplog
):
    def fail(summary, directory):
        raise ConnectionError("https://user:hunter2@host/ is down")

    recorded = []
    trackers = {
        "one": tracking.Tracker("one", fail, "math", ""),
        "two": tracking.Tracker("two", lambda *a: recorded.append(a), "math", ""),
    }
    monkeypatch.setattr(tracking, "_TRACKERS", trackers)
    tracking.track(["one", "two"], realistic_summary, tmp_path)
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    text = warning.getMessage()
    assert text.startswith("one: the ranking was not recorded: ConnectionError")
    assert "--config.stages=report" in text and "hunter2" not in text
    assert recorded == [(realistic_summary, tmp_path)]


def test_metrics_have_one_name_for_each_checkpoint(realistic):
    names = [name for name, _ in tracking._scores(realistic).values()]
    assert len(set(names)) == 5
    metrics = tracking._metrics(realistic)
    assert metrics[f"nleep/{BEST}"] == -0.412
    assert metrics[f"accuracy/{BEST}"] == 0.873
    twins = ["a/b", "a?b"]
    rows = [
        type(realistic.rows[0])(twin, scores={"nleep": float(i)})
        for i, twin in enumerate(twins)
    ]
    names = [name for name, _ in tracking._scores(rank("t", ["nleep"], rows)).values()]
    assert names[0] == "a_b" and names[1].startswith("a_b-")


# Weights & Biases and MLflow start threads and servers, and their dependencies warn,
# so each runs in a process of its own, with a secret on its command line.
_RECORD = """
import logging, pickle, sys
from rankckpt_jax import report
from rankckpt_jax.report import tracking
from rankckpt_jax.results.summary import summarize
logging.basicConfig()
summary = summarize(pickle.load(open("ranking.pickle", "rb")))
report.write(summary, "report")
for _ in range(2):
    tracking.track(sys.argv[1:2], summary, "report")
"""


def _record(name, ranking, directory, **environment):
    (directory / "ranking.pickle").write_bytes(pickle.dumps(ranking))
    result = subprocess.run(
        [sys.executable, "-c", _RECORD, name, "https://user:hunter2@host/"],
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
            "HOME": str(directory),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "not recorded" not in result.stderr, result.stderr


def _wandb_records(path):
    """Yield the records of an offline run, a log in LevelDB's format."""
    from wandb.proto import wandb_internal_pb2

    data, block, header = path.read_bytes(), 32768, struct.Struct("<IHB")
    position, parts = 7, b""
    while position + header.size <= len(data):
        if block - position % block < header.size:
            position += block - position % block
            continue
        _, length, kind = header.unpack_from(data, position)
        position += header.size + length
        parts += data[position - length : position]
        # 1 is a complete record and 4 is the last part of one.
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


@pytest.mark.filterwarnings("ignore")
def test_wandb_has_scores_table_config_and_page(tmp_path, realistic):
    pytest.importorskip("wandb")
    _record("wandb", realistic, tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    for run in runs:
        (path,) = run.glob("*.wandb")
        summary, config, artifacts = {}, {}, []
        for record in _wandb_records(path):
            for item in record.summary.update:
                key = item.key or "/".join(item.nested_key)
                summary[key] = json.loads(item.value_json)
            for item in record.run.config.update:
                config[item.key] = json.loads(item.value_json)
            if record.run.project:
                assert record.run.project == tracking.PROJECT
                assert record.run.display_name == "caltech101"
            if record.request.log_artifact.artifact.name:
                artifacts.append(record.request.log_artifact.artifact)
            if record.artifact.name:
                artifacts.append(record.artifact)
        assert summary[f"nleep/{BEST}"] == -0.412
        assert summary[f"accuracy/{BEST}"] == 0.873
        assert summary["kendall/nleep"] == realistic.evaluation["nleep"]["kendall"]
        assert config["task"] == {"name": "caltech101"}
        names = {e.path for a in artifacts for e in a.manifest.contents}
        assert {"ranking.csv", "ranking.json", "report.html"} <= names
        (page,) = run.glob("files/media/html/report*.html")
        assert page.read_text() == (tmp_path / "report/report.html").read_text()
        (table,) = run.glob("files/media/table/ranking*.json")
        table = json.loads(table.read_text())
        assert table["data"][0][table["columns"].index("checkpoint")].startswith("mob")
        assert len(table["data"]) == len(realistic.rows)
    written = [p for p in (tmp_path / "wandb").rglob("*") if p.is_file()]
    assert not any(b"hunter2" in path.read_bytes() for path in written)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_scores_config_and_files(tmp_path, realistic):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    uri = f"sqlite:///{tmp_path}/tracking.db"
    _record("mlflow", realistic, tmp_path, MLFLOW_TRACKING_URI=uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(tracking.PROJECT)
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2
    for run in runs:
        assert run.info.run_name == "caltech101" and run.info.status == "FINISHED"
        assert run.data.metrics[f"nleep/{BEST}"] == -0.412
        assert run.data.metrics[f"accuracy/{BEST}"] == 0.873
        tau = realistic.evaluation["nleep"]["kendall"]
        assert run.data.metrics["kendall/nleep"] == tau
        assert run.data.params == {"task.name": "caltech101", "seeds": "(0, 1)"}
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert files == {"ranking.csv", "ranking.json", "report.html"}
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not any(b"hunter2" in path.read_bytes() for path in written)
