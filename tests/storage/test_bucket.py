"""A work directory in a bucket."""

import pathlib
import shutil

import pytest

from rankckpt_jax import checkpoints, measures
from rankckpt_jax.configs import folder
from rankckpt_jax.features import extract
from rankckpt_jax.run import run as run_lib


def test_run_writes_to_a_bucket_and_loads_from_it(
    bucket, image_folder, pool, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = folder.get_config()
    config.task.path = str(image_folder)
    config.checkpoints = str(pool)
    config.workdir = "gs://bucket/runs"
    config.image_size = 32
    config.measures = "h_score"
    before = set(pathlib.Path().iterdir())
    ranking = run_lib.run(config)
    assert len(ranking.scored_rows) == 2
    place = bucket / "runs" / "images"
    assert "h_score" in (place / "ranking.csv").read_text()
    assert (place / "report.html").exists()
    assert list(place.glob("first/features/train/features*.npy"))
    assert not list(bucket.rglob("*.partial"))
    # No local directory with the bucket's name was created.
    assert set(pathlib.Path().iterdir()) == before

    monkeypatch.setattr(extract, "extract", lambda *a, **k: pytest.fail("extracted"))
    monkeypatch.setattr(
        measures, "compute_prepared", lambda *a, **k: pytest.fail("scored")
    )
    again = run_lib.run(config)
    assert [row.scores for row in again.rows] == [row.scores for row in ranking.rows]


def test_run_reads_checkpoints_from_a_bucket(bucket, scene, monkeypatch):
    shutil.copytree(scene.pool, bucket / "pool")
    monkeypatch.setenv("RANKCKPT_DOWNLOADS", str(scene.folder / "downloads"))
    ranking = scene.run(checkpoints="gs://bucket/pool")
    local = scene.run(workdir=str(scene.folder / "others"))
    assert [row.failure for row in ranking.rows] == ["", ""]
    assert [row.scores for row in ranking.rows] == [row.scores for row in local.rows]
    prefix = "gs://bucket/pool/first/model.ckpt"
    loaded = checkpoints.load_slim("mobilenet_v1_025", prefix)
    assert loaded.fingerprint == scene.load().fingerprint
