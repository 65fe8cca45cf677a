import contextlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import lock

HOLDER = """
import sys, time, filelock
with filelock.FileLock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
"""


def records(directory):
    return list((directory / ".lock").glob("*.json"))


def write_record(directory, shard=""):
    """Writes the record of a run on another host."""
    holder = {"host": "elsewhere", "process": 4711, "shard": shard}
    path = directory / ".lock" / "run-0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**holder, "started": "2026-01-01 00:00:00 UTC"}))
    return path


def test_exclusive_takes_the_directory_literally(tmp_path):
    directory = tmp_path / "runs[1]"
    refused = pytest.raises(InputError, match="Another run is using")
    with lock.exclusive(directory), refused, lock.exclusive(directory):
        pass


@pytest.mark.parametrize(
    ("first", "second", "allowed"),
    [
        ("", "", False),
        ("", "1-of-2", False),
        ("1-of-2", "", False),
        ("1-of-2", "1-of-2", False),
        ("1-of-2", "2-of-2", True),
    ],
)
@pytest.mark.parametrize("place", ["local", "bucket"])
def test_exclusive_admits_only_different_shards(
    first, second, allowed, place, tmp_path, request
):
    directory, files = tmp_path / "task", tmp_path / "task"
    if place == "bucket":
        files = request.getfixturevalue("bucket") / "task"
        directory = "gs://bucket/task"
    with pytest.raises(ZeroDivisionError), lock.exclusive(directory, first):
        refused = pytest.raises(InputError, match=f"process {os.getpid()} on .*started")
        with (
            contextlib.nullcontext() if allowed else refused as raised,
            lock.exclusive(directory, second),
        ):
            assert len(records(files)) == 2
        if raised:
            assert "--config.workdir" in str(raised.value)
        assert len(records(files)) == 1
        raise ZeroDivisionError
    # Neither an error nor a refusal leaves anything.
    assert not records(files)
    with lock.exclusive(directory, second):
        assert len(records(files)) == 1


def test_exclusive_takes_over_from_a_killed_process(tmp_path, caplog):
    path = write_record(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path.with_suffix(".lock"))],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"locked\n"
        with (
            pytest.raises(InputError, match="process 4711 on elsewhere"),
            lock.exclusive(tmp_path),
        ):
            pass
        process.kill()
    with caplog.at_level("INFO"), lock.exclusive(tmp_path):
        assert "process 4711 on elsewhere" in caplog.text
        assert path not in records(tmp_path)


def test_exclusive_names_the_record_left_in_a_bucket(bucket):
    write_record(bucket / "task")
    with (
        pytest.raises(InputError, match="process 4711 on elsewhere") as raised,
        lock.exclusive("gs://bucket/task", "1-of-2"),
    ):
        pass
    assert "remove gs://bucket/task/.lock/run-0.json" in str(raised.value)


def test_exclusive_admits_one_of_many_threads(tmp_path):
    inside, most, refused = [], [], []
    start = threading.Barrier(4)

    def work():
        start.wait()
        try:
            with lock.exclusive(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.5)
                inside.pop()
        except InputError:
            refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and len(refused) == 3
