import contextlib
import errno
import json
import os
import socket
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


def write_record(directory, number=4711, **fields):
    """Writes the record of a run of this host, unless `fields` name another."""
    holder = {"host": socket.gethostname(), "process": number, "shard": ""}
    holder |= {"process_start": "17", "started": "2026-01-01 00:00:00 UTC", **fields}
    path = directory / ".lock" / "run-0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(holder))
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
    path = write_record(tmp_path, host="elsewhere")
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
    write_record(bucket / "task", host="elsewhere")
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


def without_locks(monkeypatch):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)


@pytest.mark.parametrize("place", ["bucket", "no locks"])
@pytest.mark.parametrize("process", ["ended", "reused number", "this process"])
def test_exclusive_takes_over_from_an_ended_process_without_locks(
    place, process, tmp_path, monkeypatch, request, caplog
):
    """As a container that is killed and restarted: same host, often the same number."""
    directory, folder = tmp_path / "task", tmp_path / "task"
    if place == "bucket":
        folder = request.getfixturevalue("bucket") / "task"
        directory = "gs://bucket/task"
    else:
        without_locks(monkeypatch)
    with subprocess.Popen(["true"]) as ended:
        number = ended.pid
    numbers = {"ended": number, "reused number": os.getppid()}
    write_record(folder, number=numbers.get(process, os.getpid()))
    with caplog.at_level("INFO"), lock.exclusive(directory):
        assert "has ended; taking over" in caplog.text
        assert len(records(folder)) == 1
        # The run itself is not taken for an ended one.
        with pytest.raises(InputError, match="Another run"), lock.exclusive(directory):
            pass
    assert not records(folder)


@pytest.mark.parametrize("started", ["2026-01-01 00:00:00 UTC", "2999-01-01"])
def test_exclusive_ignores_dates(bucket, started):
    """A clock of another host decides nothing; the message names the record."""
    path = write_record(bucket / "task", host="elsewhere", started=started)
    refused = pytest.raises(InputError, match=f"started {started}")
    with refused as error, lock.exclusive("gs://bucket/task"):
        pass
    assert f"remove gs://bucket/task/.lock/{path.name}" in str(error.value)
    path.unlink()
    write_record(bucket / "other", started=started, number=2**30)
    with lock.exclusive("gs://bucket/other"):
        pass


def test_exclusive_waits_for_a_running_process_without_locks(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as process:
        start = lock._process_start(process.pid)
        write_record(tmp_path, number=process.pid, process_start=start)
        with pytest.raises(InputError, match="Another run"), lock.exclusive(tmp_path):
            pass
        process.kill()
    with lock.exclusive(tmp_path):
        pass
