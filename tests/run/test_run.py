import csv
import dataclasses
import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints, measures
from rankckpt_jax.checkpoints.sources import slim
from rankckpt_jax.configs import default
from rankckpt_jax.configs import features as features_config
from rankckpt_jax.data import corrupt_images, pipeline, transform
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract, views
from rankckpt_jax.finetune import loop
from rankckpt_jax.run import run as run_lib
from rankckpt_jax.storage import lock
from tests.data.test_tasks import invert


def make_config(image_folder, pool, workdir, **changes):
    config = default.get_config()
    config.task.path = str(image_folder)
    config.checkpoints = str(pool)
    config.workdir = str(workdir)
    config.image_size = 32
    config.measures = "h_score,leep"
    config.finetune.num_steps = 6
    config.finetune.batch_size = 8
    config.finetune.batch_norm_decay = 0.9
    config.update(changes)
    return config


def test_run_writes_everything_and_computes_nothing_twice(
    image_folder, pool, tmp_path, monkeypatch
):
    stages = "extract,score,finetune,report"
    config = make_config(image_folder, pool, tmp_path, stages=stages)
    config.preprocess = "slim_vgg"
    ranking = run_lib.run(config)
    rows = {row.checkpoint: row for row in ranking.rows}
    assert rows.keys() == {"first", "second"}
    for row in ranking.rows:
        assert 0 <= row.scores["h_score"] <= 2 + 1e-4
        assert 0 <= row.accuracy <= 1
        assert row.preprocessing == "slim_vgg, values -1 to 1"
    # The second has no classifier, and its cell names the reason.
    assert "leep" in rows["first"].scores
    assert "leep" not in rows["second"].scores
    assert "classifier" in rows["second"].warnings["leep"]

    directory = tmp_path / "images"
    manifest = (directory / "first/features/train/manifest.json").read_text()
    for text in ('"slim_vgg"', "libjpeg"):
        assert text in manifest
    with (directory / "ranking.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 3
    page = (directory / "report.html").read_text()
    for text in (
        *("first", "Ranks by measure", "Accuracy during fine-tuning", "Operations"),
        *(
            "Images through a network",
            "Features",
            "How this was made",
            "Preprocessed images",
        ),
        *("config.image_size", "versions", "slim_vgg, values -1 to 1"),
    ):
        assert text in page
    assert page.count('src="data:image/jpeg;base64,') == 8
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".partial")]

    def fail(*_, **__):
        pytest.fail("computed again")

    monkeypatch.setattr(extract, "extract", fail)
    monkeypatch.setattr(loop, "train_trials", fail)
    monkeypatch.setattr(measures, "compute_prepared", fail)
    # No weights are read, and no image is decoded.
    monkeypatch.setattr(checkpoints, "load", fail)
    monkeypatch.setattr(pipeline, "batches", fail)
    monkeypatch.setattr(corrupt_images, "find", fail)
    monkeypatch.setattr(views, "summarize", fail)
    again = run_lib.run(config)
    page = (directory / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 8
    assert [r.scores for r in again.rows] == [r.scores for r in ranking.rows]
    # The stage `report` alone reads stored results.
    (directory / "report.html").unlink()
    config.stages = "report"
    again = run_lib.run(config)
    assert [r.accuracy for r in again.rows] == [r.accuracy for r in ranking.rows]
    assert (directory / "report.html").exists()


def test_run_has_no_accuracy_if_fine_tuning_diverges(image_folder, pool, tmp_path):
    stages = "extract,score,finetune,report"
    config = make_config(image_folder, pool, tmp_path, stages=stages)
    # H-score ranks nothing for so few images.
    config.measures = "logme"
    # Only the head, which compiles quickly.
    config.finetune.frozen = True
    config.finetune.learning_rate = 1e38
    # H-score is the same for both.
    config.measures = "logme"
    ranking = run_lib.run(config)
    for row in ranking.rows:
        assert row.accuracy is None and row.finite_accuracy() is None
        assert "fine-tuning diverged at step" in row.warnings["accuracy"]
    assert not ranking.evaluated_rows("logme")
    assert "Not verified: no ranked checkpoint was fine-tuned" in str(ranking)
    page = (tmp_path / "images" / "report.html").read_text()
    assert "fine-tuning diverged at step" in page


def test_run_warns_about_one_network_under_two_names(image_folder, pool, tmp_path):
    """The weights are equal except for rounding."""
    backbone = checkpoints.load(str(pool / "second"))
    variables = jax.tree.map(lambda x: x * np.float32(1 + 1e-7), backbone.variables)
    shutil.copytree(pool, tmp_path / "pool")
    copy = tmp_path / "pool" / "third" / "model.ckpt"
    checkpoints.save_slim("mobilenet_v1_025", variables, str(copy))
    config = make_config(image_folder, tmp_path / "pool", tmp_path / "runs")
    ranking = run_lib.run(config)
    rows = {row.checkpoint: row for row in ranking.rows}
    assert "equal those of second" in rows["third"].warnings["features"]
    assert "features" not in {**rows["first"].warnings, **rows["second"].warnings}
    # Lines are wrapped for a terminal.
    assert "network under two names" in " ".join(str(ranking).split())


@pytest.fixture
def features_run(tmp_path):
    """A config that ranks the features of one checkpoint."""
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "net.npz",
        features=random.normal(size=(40, 4)),
        labels=np.arange(40) % 2,
    )
    config = features_config.get_config()
    config.features = str(tmp_path / "net.npz")
    config.workdir = str(tmp_path / "runs")
    config.task.name = "task"
    return config


def test_run_recomputes_scores_for_other_options(features_run, tmp_path):
    features_run.measures = "knn"
    for k in (1, 9):
        features_run.update(measure_options={"knn": {"k": k}})
        [row] = run_lib.run(features_run).rows
        stored = json.loads((tmp_path / "runs/task/net/scores/knn.json").read_text())
        assert stored["result"]["score"] == row.scores["knn"]
        assert f'"k": {k}' in json.dumps(stored)


def test_run_raises_if_another_run_holds_the_lock(features_run, tmp_path):
    features_run.measures = "h_score"
    with (
        lock.exclusive(tmp_path / "runs" / "task"),
        pytest.raises(InputError, match="Another run is using this directory"),
    ):
        run_lib.run(features_run)
    assert run_lib.run(features_run).best.checkpoint == "net"


def test_run_tracks_from_the_main_process_only(features_run, tmp_path, monkeypatch):
    features_run.measures = "h_score"
    features_run.track = "tensorboard"
    events = tmp_path / "runs" / "task" / "tensorboard" / "net"
    with monkeypatch.context() as patch:
        other = {**vars(run_lib.processes), "is_main_process": lambda: False}
        patch.setattr(run_lib, "processes", types.SimpleNamespace(**other))
        run_lib.run(features_run)
    assert not events.exists()
    run_lib.run(features_run)
    assert [path.name for path in events.iterdir()] == ["events.out.tfevents.ranking"]


def test_readme_contains_the_command_that_ci_runs():
    root = pathlib.Path(__file__).parents[2]
    assert "<!-- test command -->" in (root / "README.md").read_text()


def test_run_computes_again_after_images_change_at_equal_size(
    image_folder, pool, tmp_path, caplog
):
    config = make_config(image_folder, pool, tmp_path / "runs", measures="logme")

    def scores():
        return {row.checkpoint: row.scores["logme"] for row in run_lib.run(config).rows}

    before = scores()
    for path in (image_folder / "train").glob("*/*.jpg"):
        invert(path)
    with caplog.at_level("INFO"):
        after = scores()
    assert "Cached result does not match (images " in caplog.text
    assert all(after[name] != pytest.approx(before[name]) for name in before)
    config.workdir = str(tmp_path / "fresh")
    assert scores() == pytest.approx(after)


def test_run_fine_tunes_again_after_test_images_change(image_folder, pool, tmp_path):
    config = make_config(image_folder, pool, tmp_path, stages="finetune,report")
    config.finetune.frozen = True
    run_lib.run(config)
    for path in (image_folder / "test").glob("*/*.jpg"):
        invert(path)
    config.stages = "report"
    assert all(row.accuracy is None for row in run_lib.run(config).rows)


@pytest.mark.parametrize("error", [KeyError("groups"), MemoryError(), OSError("gone")])
def test_run_turns_any_exception_of_a_checkpoint_into_its_row(
    image_folder, pool, tmp_path, monkeypatch, caplog, error
):
    load = checkpoints.load

    def load_or_raise(path, **options):
        if options["name"] == "first":
            raise error
        return load(path, **options)

    monkeypatch.setattr(checkpoints, "load", load_or_raise)
    config = make_config(image_folder, pool, tmp_path, stages="extract,score")
    ranking = run_lib.run(config)
    [failed] = ranking.failed
    assert failed.checkpoint == "first"
    assert failed.failure.startswith(type(error).__name__)
    assert "The log has the traceback" in failed.failure
    assert [row.checkpoint for row in ranking.scored_rows] == ["second"]
    assert "Traceback" in caplog.text and "load_or_raise" in caplog.text


def test_run_with_own_preprocessing_uses_the_rule_of_each_network(
    image_folder, pool, tmp_path, monkeypatch
):
    own = transform.Transform(0.9, "bilinear")
    load = slim.load

    def with_transform(path, options):
        backbone = load(path, options)
        if "second" in str(path):
            backbone = dataclasses.replace(backbone, own_transform=own)
        return backbone

    monkeypatch.setattr(slim, "load", with_transform)
    config = make_config(image_folder, pool, tmp_path, preprocess="own")
    ranking = run_lib.run(config)
    rules = {"first": "slim_inception", "second": "own(35,bilinear,center)"}
    assert {row.checkpoint: row.preprocess for row in ranking.rows} == rules
    for name, rule in rules.items():
        place = tmp_path / "images" / name / "features/train/manifest.json"
        assert json.loads(place.read_text())["request"]["preprocess"] == rule
    assert (
        f"{rules['second']}, values -1 to 1"
        in (tmp_path / "images" / "report.html").read_text()
    )
    samples = json.loads((tmp_path / "images/.images/samples.json").read_text())
    assert samples["request"]["preprocess"] == rules[ranking.best.checkpoint]
