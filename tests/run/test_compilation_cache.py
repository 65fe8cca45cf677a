"""Compiled programs and the time spent on compiling, over whole runs."""

import collections
import json

import jax
import pytest
from etils import epath

from rankckpt_jax import finetune
from rankckpt_jax.devices import background
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract
from rankckpt_jax.storage import store

CACHE = "/jax/compilation_cache/"

# Only the head is trained, which compiles quickly.
HEAD = {"frozen": True, "num_steps": 2, "batch_size": 8, "evaluations": 1}


@pytest.fixture
def events():
    """Count the events of JAX's persistent compilation cache."""
    counted = collections.Counter()

    def listen(event, **_):
        counted[event.removeprefix(CACHE)] += 1

    jax.monitoring.register_event_listener(listen)
    yield counted
    jax.monitoring.unregister_event_listener(listen)


def test_run_compiles_nothing_that_an_earlier_run_has_compiled(
    scene, tmp_path, events, caplog
):
    def run(name):
        # As in a new process.
        jax.clear_caches()
        events.clear()
        return scene.run(
            workdir=str(tmp_path / name), compilation_cache=str(tmp_path / "compiled")
        )

    first = run("first")
    assert events["cache_misses"] > 0
    assert list((tmp_path / "compiled").glob("jaxlib-*/*-cache"))
    second = run("second")
    assert events["cache_misses"] == 0
    assert events["cache_hits"] == events["compile_requests_use_cache"] > 0
    assert "Compilation cache" not in caplog.text
    for a, b in zip(first.rows, second.rows, strict=True):
        assert a.scores == b.scores
        assert set(a.compile_seconds) == {"features", "h_score"}
    assert first.rows[0].ranking_compile_seconds("h_score") > 0


def test_run_reads_results_without_the_time_spent_on_compiling(scene):
    scene.run()
    [path] = epath.Path(scene.folder / "runs").glob("*/first/scores/h_score.json")
    stored = json.loads(path.read_text())
    del stored["result"]["compile_seconds"]
    store.save_result(path, stored["request"], stored["result"])
    rows = {row.checkpoint: row for row in scene.run().rows}
    assert "h_score" in rows["first"].scores
    assert set(rows["first"].compile_seconds) == {"features"}
    assert set(rows["second"].compile_seconds) == {"features", "h_score"}


def test_run_compiles_fine_tuning_ahead_unless_it_is_stored(scene, monkeypatch):
    compiled = []
    monkeypatch.setattr(background, "_is_useful", lambda: True)
    monkeypatch.setattr(
        finetune, "compile_programs", lambda backbone, *_: compiled.append(backbone)
    )
    for _ in range(2):
        ranking = scene.run(stages="extract,score,finetune", finetune=HEAD)
        assert all(row.accuracy is not None for row in ranking.rows)
        assert [backbone.name for backbone in compiled] == ["first", "second"]


def test_run_loads_the_next_checkpoint_ahead(scene, monkeypatch):
    compiled = []
    monkeypatch.setattr(background, "_is_useful", lambda: True)
    monkeypatch.setattr(
        extract, "compile_forward", lambda backbone, **_: compiled.append(backbone.name)
    )
    expected = scene.run(workdir=str(scene.folder / "expected"))
    assert compiled == ["second"]
    # All results are stored.
    scene.run(workdir=str(scene.folder / "expected"))
    assert compiled == ["second"]
    data = scene.pool / "second" / "model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:100])
    rows = {row.checkpoint: row for row in scene.run().rows}
    assert compiled == ["second"] and rows["second"].failure
    [first] = [row for row in expected.rows if row.checkpoint == "first"]
    assert rows["first"].scores == pytest.approx(first.scores, rel=1e-9)


def test_run_writes_traces(scene, tmp_path):
    scene.run(
        stages="extract,score,finetune",
        finetune=HEAD,
        profile=str(tmp_path / "traces"),
    )
    folders = (tmp_path / "traces").glob("*/plugins/profile/*/*.xplane.pb")
    assert {path.parts[-5] for path in folders} == {
        *("extract", "score_h_score", "train")
    }


def test_run_refuses_traces_in_a_bucket(scene):
    with pytest.raises(InputError, match=r"config\.profile"):
        scene.run(profile="gs://bucket/traces")
