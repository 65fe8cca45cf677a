"""The main job on a small folder of images and two random checkpoints."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from rankckpt_jax import checkpoints, measures
from rankckpt_jax.configs import default
from rankckpt_jax.features import extract
from rankckpt_jax.finetune import loop
from rankckpt_jax.run import run as run_lib
from tests.processes import with_devices


def config(image_folder, pool, workdir, **changes):
    made = default.get_config()
    made.task.path = str(image_folder)
    made.checkpoints = str(pool)
    made.workdir = str(workdir)
    made.image_size = 32
    made.measures = "h_score,leep"
    made.finetune.num_steps = 6
    made.finetune.batch_size = 8
    made.finetune.batch_norm_decay = 0.9
    made.update(changes)
    return made


def test_everything_is_written_and_nothing_is_done_twice(
    image_folder, pool, tmp_path, monkeypatch
):
    made = config(image_folder, pool, tmp_path, stages="extract,score,finetune,report")
    ranking = run_lib.run(made)
    assert {row.checkpoint for row in ranking.rows} == {"first", "second"}
    for row in ranking.rows:
        assert 0 <= row.scores["h_score"] <= 2 + 1e-4
        assert 0 <= row.accuracy <= 1
    # Only the first has a classifier; the other's cell says why it is empty.
    rows = {row.checkpoint: row for row in ranking.rows}
    assert "leep" in rows["first"].scores
    assert "leep" not in rows["second"].scores
    assert "classifier" in rows["second"].warnings["leep"]

    place = tmp_path / "images"
    with (place / "ranking.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 3
    page = (place / "report.html").read_text()
    assert "first" in page
    for heading in (
        *("Ranks by measure", "Accuracy during fine-tuning", "Operations"),
        *("Images through a network", "Features", "Provenance"),
        "Preprocessed images",
    ):
        assert heading in page
    assert page.count('src="data:image/jpeg;base64,') == 8
    assert "config.image_size" in page and "versions" in page
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".partial")]

    monkeypatch.setattr(extract, "extract", lambda *a, **k: pytest.fail("extracted"))
    monkeypatch.setattr(loop, "train_trials", lambda *a, **k: pytest.fail("trained"))
    monkeypatch.setattr(measures, "compute", lambda *a, **k: pytest.fail("scored"))
    again = run_lib.run(made)
    assert [r.scores for r in again.rows] == [r.scores for r in ranking.rows]
    # The page alone, from what is stored.
    (place / "report.html").unlink()
    made.stages = "report"
    assert [r.accuracy for r in run_lib.run(made).rows] == [
        r.accuracy for r in ranking.rows
    ]
    assert (place / "report.html").exists()


def test_fine_tuning_that_diverges_is_no_accuracy(image_folder, pool, tmp_path):
    made = config(image_folder, pool, tmp_path, stages="extract,score,finetune,report")
    # The head alone, which compiles in no time.
    made.finetune.frozen = True
    made.finetune.learning_rate = 1e38
    ranking = run_lib.run(made)
    for row in ranking.rows:
        assert row.accuracy is None and row.finite_accuracy() is None
        assert "fine-tuning diverged at step" in row.warnings["accuracy"]
    assert not ranking.evaluated_rows("h_score")
    assert "This ranking has not been verified" in str(ranking)
    page = (tmp_path / "images" / "report.html").read_text()
    assert "fine-tuning diverged at step" in page


def test_one_network_under_two_names_is_told(image_folder, pool, tmp_path):
    """The same weights, but for what rounding may do to them."""
    backbone = checkpoints.load(str(pool / "second"))
    variables = jax.tree.map(lambda x: x * np.float32(1 + 1e-7), backbone.variables)
    shutil.copytree(pool, tmp_path / "pool")
    again = tmp_path / "pool" / "third" / "model.ckpt"
    checkpoints.save_slim("mobilenet_v1_025", variables, str(again))
    ranking = run_lib.run(config(image_folder, tmp_path / "pool", tmp_path / "runs"))
    rows = {row.checkpoint: row for row in ranking.rows}
    assert "equal those of second" in rows["third"].warnings["features"]
    assert "features" not in {**rows["first"].warnings, **rows["second"].warnings}
    # Lines are wrapped for a terminal.
    assert "network under two names" in " ".join(str(ranking).split())


def test_preprocessing_is_kept_and_shown(image_folder, pool, tmp_path):
    ranking = run_lib.run(config(image_folder, pool, tmp_path, preprocess="slim_vgg"))
    assert {row.preprocessing for row in ranking.rows} == {"slim_vgg, values -1 to 1"}
    place = tmp_path / "images"
    manifest = json.loads((place / "first/features/train/manifest.json").read_text())
    assert manifest["request"]["preprocess"] == "slim_vgg"
    assert manifest["request"]["input_range"] == [-1, 1]
    assert "libjpeg" in manifest["request"]["jpeg_decoder"]
    assert "slim_vgg, values -1 to 1" in (place / "report.html").read_text()


def test_scores_follow_their_options_and_their_seed(image_folder, pool, tmp_path):
    made = config(image_folder, pool, tmp_path, measures="nleep")
    made.measure_options.nleep.components_per_class = 2
    first = run_lib.run(made)
    made.measure_options.nleep.components_per_class = 3
    second = run_lib.run(made)
    stored = json.loads((tmp_path / "images/first/scores/nleep.json").read_text())
    assert stored["request"]["options"]["components_per_class"] == 3
    assert [r.scores for r in first.rows] != [r.scores for r in second.rows]


def command(image_folder, pool, workdir, *options):
    return [
        *(sys.executable, "-m", "rankckpt_jax.main", "--config=configs/folder.py"),
        f"--config.task.path={image_folder}",
        f"--config.checkpoints={pool}",
        f"--config.workdir={workdir}",
        *("--config.image_size=32", "--config.measures=h_score,leep"),
        *("--config.finetune.num_steps=60", "--config.finetune.save_every=5"),
        "--config.finetune.batch_size=8",
        *options,
    ]


def finish(arguments, env=None):
    """Runs to the end; returns (standard output, standard error)."""
    done = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=600,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.multiprocess
def test_four_devices_give_the_scores_of_one(image_folder, pool, tmp_path):
    scores = {}
    for devices in (1, 4):
        workdir = tmp_path / str(devices)
        finish(
            command(image_folder, pool, workdir, "--config.measures=nleep,h_score,leep")
            + ["--config.measure_options.nleep.components_per_class=2"],
            env=with_devices(devices),
        )
        scores[devices] = {
            path.parent.parent.name + path.name: json.loads(path.read_text())
            for path in workdir.rglob("scores/*.json")
        }
    assert scores[1].keys() == scores[4].keys() and len(scores[1]) == 6
    for name, one in scores[1].items():
        four = scores[4][name]["result"]["score"]
        if one["result"]["score"] is None:
            assert four is None
        else:
            assert four == pytest.approx(one["result"]["score"], rel=1e-5, abs=1e-5)


def test_the_readme_names_the_command_that_ci_runs():
    root = pathlib.Path(__file__).parents[2]
    assert "<!-- test command -->" in (root / "README.md").read_text()
