"""A work directory in a bucket: everything goes through `epath`, nothing beside it."""

import pathlib

import pytest
from etils.epath import backend, gpath

from rankckpt_jax import measures
from rankckpt_jax.configs import folder
from rankckpt_jax.features import extract as features
from rankckpt_jax.run import run as stages

BUCKET = "gs://bucket"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that stands for a bucket: what `epath` is asked of it happens there."""
    root = tmp_path / "bucket"
    root.mkdir()

    def local(argument):
        if isinstance(argument, str) and argument.startswith(BUCKET):
            return str(root) + argument.removeprefix(BUCKET)
        return argument

    def redirected(name):
        original = getattr(backend.os_backend, name)

        def call(self, *arguments, **options):
            found = original(*map(local, arguments), **options)
            if name == "glob":
                return [BUCKET + path.removeprefix(str(root)) for path in found]
            return found

        return call

    names = "open exists isdir listdir glob makedirs mkdir rmtree remove rename replace"
    methods = {name: redirected(name) for name in [*names.split(), "copy", "stat"]}
    stand_in = type("StandIn", (type(backend.os_backend),), methods)()
    # Buckets are TensorFlow's or fsspec's, whichever is there.
    for name in ("tf_backend", "fsspec_backend"):
        monkeypatch.setattr(backend, name, stand_in)
    monkeypatch.setattr(gpath, "_GCS_BACKENDS", (stand_in,))
    return root


def test_a_run_writes_to_a_bucket_and_finds_it_again(
    bucket, image_folder, pool, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = folder.get_config()
    config.task.path = str(image_folder)
    config.checkpoints = str(pool)
    config.workdir = f"{BUCKET}/runs"
    config.image_size = 32
    config.measures = "h_score"
    before = set(pathlib.Path().iterdir())
    ranking = stages.run(config)
    assert len(ranking.scored_rows) == 2
    place = bucket / "runs" / "images"
    assert "h_score" in (place / "ranking.csv").read_text()
    assert (place / "report.html").exists()
    assert list(place.glob("first/features/train/features*.npy"))
    assert not list(bucket.rglob("*.partial"))
    # Nothing has taken the address for a local path.
    assert set(pathlib.Path().iterdir()) == before

    monkeypatch.setattr(features, "extract", lambda *a, **k: pytest.fail("extracted"))
    monkeypatch.setattr(
        measures, "compute_prepared", lambda *a, **k: pytest.fail("scored")
    )
    again = stages.run(config)
    assert [row.scores for row in again.rows] == [row.scores for row in ranking.rows]
