import os
import threading
import time

import pytest
from etils import epath

from rankckpt_jax.devices import signals
from rankckpt_jax.errors import Interrupted
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import division
from rankckpt_jax.storage import claims


def makers(made, names, seconds=0.0):
    def make(name):
        time.sleep(seconds)
        made.append(name)
        return Row(name, scores={"nleep": -1.0}, curve=((1, 0.5),))

    return {name: lambda name=name: make(name) for name in names}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(division, "_SECONDS_BETWEEN_LOOKS", 0.02)


def test_rows_come_in_order_whoever_made_them(tmp_path):
    names = [f"c{i:02}" for i in range(12)]
    made, found = [], []

    def work():
        found.append(division.rows(tmp_path, makers(made, names, 0.02), "v"))

    jobs = [threading.Thread(target=work) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert sorted(made) == names
    assert [[row.checkpoint for row in rows] for rows in found] == 3 * [names]
    assert found[0] == found[1] == found[2]
    assert found[0][0].curve == ((1, 0.5),)


def test_rows_of_another_request_or_an_earlier_run_are_made_anew(tmp_path):
    made = []
    division.rows(tmp_path, makers(made, ["a"]), "v")
    # File times are told in whole seconds.
    os.utime(tmp_path / "a" / "row.json", (0, time.time() - 2))
    division.rows(tmp_path, makers(made, ["a"]), "v")
    division.rows(tmp_path, makers(made, ["a"]), "w")
    assert made == ["a", "a", "a"]


def test_a_job_waits_for_what_another_holds_and_takes_it_where_that_one_fails(tmp_path):
    made = []
    held = claims.held(epath.Path(tmp_path), "a")
    held.__enter__()
    timer = threading.Timer(0.3, lambda: held.__exit__(None, None, None))
    timer.start()
    started = time.monotonic()
    division.rows(tmp_path, makers(made, ["a", "b"]), "v")
    assert made == ["b", "a"] and time.monotonic() - started > 0.25
    timer.join()


def test_a_job_that_is_told_to_end_ends_between_checkpoints(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(signals, "should_stop", lambda: bool(made))
    with pytest.raises(Interrupted, match="as asked"):
        division.rows(tmp_path, makers(made, ["a", "b", "c"]), "v")
    assert len(made) == 1
