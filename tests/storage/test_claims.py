import json
import os
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import claims


def files(directory):
    return list((epath.Path(directory) / ".claims").glob("*/*.json"))


def another(directory, name="row", own_name=f"0123456789ab-4711-{'0' * 32}"):
    """The claim of a living process, of another host unless told otherwise."""
    holder = {
        "id": own_name,
        "host": "elsewhere",
        "pid": 4711,
        "since": "2026-01-01 00:00:00 UTC",
        "shared": False,
        "new": False,
    }
    path = epath.Path(directory) / ".claims" / name / f"{own_name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(holder))
    return path


def test_a_claim_lasts_as_long_as_its_context(tmp_path):
    with claims.held(tmp_path, "row"):
        assert len(files(tmp_path)) == 1
        with (
            pytest.raises(claims.Taken, match=f"process {os.getpid()} on"),
            claims.held(tmp_path, "row"),
        ):
            pass
        with claims.held(tmp_path, "another"):
            pass
    assert not files(tmp_path)
    with claims.held(tmp_path, "row"):
        pass


def test_a_claim_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), claims.held(tmp_path, "row"):
        raise ZeroDivisionError
    assert not files(tmp_path)


def test_shared_claims_stand_beside_each_other_but_not_beside_others(tmp_path):
    with claims.held(tmp_path, "run", shared=True):
        with claims.held(tmp_path, "run", shared=True):
            pass
        with pytest.raises(claims.Taken), claims.held(tmp_path, "run"):
            pass


def test_a_whole_run_is_refused_with_the_holder_and_the_ways_out(tmp_path):
    another(tmp_path, "run")
    with (
        pytest.raises(InputError, match="process 4711 on elsewhere") as refused,
        claims.sole(tmp_path, shared=False),
    ):
        pass
    assert "--config.workdir" in str(refused.value)


def test_one_that_is_not_renewed_counts_as_dead(tmp_path):
    path = another(tmp_path)
    old = time.time() - 2 * claims.DEAD_AFTER
    os.utime(path, (old, old))
    with claims.held(tmp_path, "row"):
        assert not path.exists()


def test_a_process_of_this_machine_that_is_gone_is_noticed_at_once(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    machine, _, rest = claims.process_token().split("-")
    path = another(tmp_path, own_name=f"{machine}-{gone.pid}-{rest}")
    # Damaged, it says as much; and what was being written when it was killed goes too.
    path.write_text("{")
    partial = path.parent / f".{path.name}.partial"
    partial.write_text("")
    with claims.held(tmp_path, "row"):
        assert not path.exists() and not partial.exists()
    # Of another machine, the same number says nothing.
    another(tmp_path, own_name=f"0123456789ab-{gone.pid}-{rest}")
    with pytest.raises(claims.Taken), claims.held(tmp_path, "row"):
        pass


def test_one_that_died_beside_another_leaves_nothing(tmp_path):
    with claims.held(tmp_path, "row"):
        # It came later, so only the end of this one can notice it.
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        machine, _, rest = claims.process_token().split("-")
        another(tmp_path, own_name=f"{machine}-{gone.pid}-{rest}")
    assert not files(tmp_path)


def test_a_claim_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RENEWED_EVERY", 0.02)
    with claims.held(tmp_path, "row"):
        (path,) = files(tmp_path)
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().mtime > 1


def test_of_many_at_once_never_two_hold_it(tmp_path):
    inside, most, times = 0, 0, 0
    lock = threading.Lock()

    def work():
        nonlocal inside, most, times
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                with claims.held(tmp_path, "row"):
                    with lock:
                        inside, times = inside + 1, times + 1
                        most = max(most, inside)
                    time.sleep(0.005)
                    with lock:
                        inside -= 1
                return
            except claims.Taken:
                time.sleep(0.01)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, times) == (1, 8)
