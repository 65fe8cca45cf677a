import shutil

import numpy as np
import pytest

from rankckpt_jax.configs import default
from rankckpt_jax.configs import features as features_config
from rankckpt_jax.errors import InputError
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import run as run_lib
from rankckpt_jax.run import shard
from rankckpt_jax.storage import files


def test_shards_divide_the_positions():
    shards = [shard.parse(f"{i}/3") for i in (1, 2, 3)]
    for position in range(8):
        owners = [s for s in shards if s.contains(position)]
        assert owners == [shards[0].owner(position)]
    assert [p for p in range(8) if shards[1].contains(p)] == [1, 4, 7]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/2", "-1/2", "1/2/3"])
def test_parse_raises_for_invalid_shard(text):
    with pytest.raises(InputError, match="1 <= i <= n"):
        shard.parse(text)


def test_load_row_restores_row_for_the_same_key(tmp_path):
    row = Row("a", scores={"nleep": -1.0}, curve=((1, 0.5),), warnings={"x": "y"})
    shard.save_row(tmp_path, row, {"seed": 0})
    assert shard.load_row(tmp_path, "a", {"seed": 0}) == row
    assert shard.load_row(tmp_path, "a", {"seed": 1}) is None
    assert shard.load_row(tmp_path, "b", {"seed": 0}) is None


def test_run_reports_stored_rows_of_other_shards(tmp_path):
    labels = np.arange(40) % 2
    for i in range(4):
        drawn = np.random.default_rng(i).normal(size=(40, 4))
        (tmp_path / "nets").mkdir(exist_ok=True)
        np.savez(tmp_path / "nets" / f"c{i}.npz", features=drawn, labels=labels)
    np.savez(tmp_path / "nets" / "c3.npz", features=np.ones((40, 4)), labels=labels)
    config = features_config.get_config()
    config.features = str(tmp_path / "nets")
    config.workdir = str(tmp_path / "runs")
    config.measures = "h_score"

    def run(text, **changes):
        config.shard = text
        config.update(changes)
        return {row.checkpoint: row for row in run_lib.run(config).rows}

    first = run("1/2")
    assert {name for name, row in first.items() if row.scores} == {"c0", "c2"}
    assert not any(row.failure for row in first.values())
    for name in ("c1", "c3"):
        assert "--config.shard=2/2" in first[name].warnings["shard"]
    both = run("2/2")
    assert {name for name, row in both.items() if row.scores} == {"c0", "c1", "c2"}
    assert both["c0"] == first["c0"] and "40 equal rows" in both["c3"].failure
    assert run("1/2") == both
    assert "40 equal rows" in (tmp_path / "runs/nets/report.html").read_text()
    # Rows of other features or of another seed are not reported.
    shutil.copy(tmp_path / "nets" / "c0.npz", tmp_path / "nets" / "c1.npz")
    assert "shard" in run("1/2")["c1"].warnings
    assert run("2/2")["c1"].scores and run("1/2")["c1"].scores == first["c0"].scores
    assert "shard" in run("1/2", seed=1)["c1"].warnings


def test_row_of_another_shard_is_not_reported_after_its_files_change(
    tmp_path, pool, image_folder
):
    shutil.copytree(pool, tmp_path / "pool")
    config = default.get_config()
    config.task.path = str(image_folder)
    config.checkpoints = str(tmp_path / "pool")
    config.workdir = str(tmp_path / "runs")
    config.image_size = 32
    config.measures = "static"
    scores = tmp_path / "scores.csv"
    config.measure_options.static = {"csv_file": str(scores)}
    scores.write_text("first,1\nsecond,2\n")

    def run(text):
        config.shard = text
        return {row.checkpoint: row for row in run_lib.run(config).rows}

    run("2/2")
    assert run("1/2")["second"].scores == {"static": 2}
    scores.write_text("first,1\nsecond,3\n")
    assert "shard" in run("1/2")["second"].warnings
    run("2/2")
    assert run("1/2")["second"].scores == {"static": 3}
    # The same file names, with other weights.
    for file in (pool / "first").iterdir():
        shutil.copy(file, tmp_path / "pool" / "second" / file.name)
    stale = run("1/2")["second"]
    assert not stale.scores and "--config.shard=2/2" in stale.warnings["shard"]


def test_shards_use_different_temporary_files(tmp_path):
    other = tmp_path / ".ranking.csv.2-of-2.partial"
    other.write_text("half")
    with files.writer(".1-of-2"):
        files.write_text_atomically(tmp_path / "ranking.csv", "all")
    assert other.read_text() == "half"
    assert {path.name for path in tmp_path.iterdir()} == {"ranking.csv", other.name}
