"""Runs that are stopped, lack disk space or read damaged files; see `tests.faults`."""

import collections
import contextlib
import gc
import logging
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import time

import pytest

from rankckpt_jax.errors import InputError, StorageError
from rankckpt_jax.run import ablation
from rankckpt_jax.run import run as run_lib
from tests import faults

pytestmark = [
    pytest.mark.multiprocess,
    # If Orbax fails to write or read, some of its coroutines are never awaited.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

# Written by every run, or read only by TensorBoard, which has its own checksums.
REWRITTEN = ("ranking.csv", "ranking.json", "report.html", "events.out.tfevents")


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    made = faults.Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def grid():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "GRID", faults.GRID)
        yield


@pytest.fixture(scope="module")
def small(demo):
    """Work directory of an undisturbed small run."""
    assert not faults.leftovers(demo.workdir)
    return demo.workdir


@pytest.fixture(scope="module")
def complete(grid, tmp_path_factory):
    """Work directory of an undisturbed run with every stage."""
    workdir = tmp_path_factory.mktemp("complete") / "runs"
    run_lib.run(faults.config(workdir, faults.COMPLETE))
    assert not faults.leftovers(workdir)
    return workdir


def assert_same_results(workdir, undisturbed, number=signal.SIGKILL):
    results, expected = faults.results(workdir), faults.results(undisturbed)
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        found = results[name]
        if number == signal.SIGINT and "/finetune/metrics/" in name:
            # The mean loss since the last line is written before a stop too.
            found, value = map(accuracies, (found, value))
        assert found == value, name
    assert not faults.leftovers(workdir)


def accuracies(metrics):
    return [(line["step"], line["accuracy"]) for line in metrics if line["accuracy"]]


class Victim:
    """A work directory of runs that a signal stops, with checks after each run."""

    def __init__(self, forks, workdir, fields, number=signal.SIGKILL):
        self._forks, self.workdir, self._fields = forks, workdir, fields
        self._number = number
        self.log = ""
        self._times = {}
        self._computed = collections.Counter()

    def run(self, **limits):
        """Run until the process ends or is stopped; return whether it was stopped."""
        code, _, log = self._forks.run(
            self.workdir, self._fields, **limits, number=self._number
        )
        self.log += log
        interrupted = self._number == signal.SIGINT
        assert code in (0, 130 if interrupted else -9), log
        assert "Traceback" not in log
        if code == 130:
            # 2 s, and more on a busy machine.
            assert self._forks.seconds_to_end < 4, log
            *_, last = log.splitlines()
            assert last.endswith("Run it again to resume.")
            assert log.count("Run it again to resume.") == 1
        # Intact results of earlier runs were not written again.
        now = faults.modification_times(self.workdir)
        assert {path: now.get(path) for path in self._times} == self._times
        self._times = now
        # No result was computed twice.
        for title, results in re.findall(r"\d\d:\d\d (.*): computed (.*)", log):
            works = re.findall(r"(\S+) \(", results)
            self._computed.update(f"{title}: {work}" for work in works)
        self._computed.update(re.findall(r"pre-training: saved \w+", log))
        assert max(self._computed.values(), default=0) <= 1, self._computed
        return code != 0


SIGNALS = (signal.SIGKILL, signal.SIGINT)

MOMENTS = (
    "/.labels_3.partial",
    "random_weights/features/train/.manifest.json",
    "labels_3/scores/.leep.json",
    "labels_3/finetune/state/lr0.03_steps6/4",
    "labels_3/finetune/.result.json",
    "/.ranking.csv",
)
"""Changes to the work directory, in order, before which a run is killed."""


@pytest.mark.parametrize(
    "number",
    # tests/test_launch.py stops runs by a signal that they handle.
    [
        pytest.param(n, marks=pytest.mark.slow) if n == signal.SIGINT else n
        for n in SIGNALS
    ],
    ids=lambda number: number.name,
)
@pytest.mark.parametrize(
    "moments",
    [MOMENTS[1:4:2], pytest.param(MOMENTS, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_run_stopped_at_each_stage_resumes_to_the_same_results(
    forks, small, tmp_path, moments, number
):
    victim = Victim(forks, tmp_path / "runs", faults.SMALL, number)
    for moment in moments:
        assert victim.run(before=moment), moment
    assert not victim.run()
    # After SIGINT a training this short may take its last steps within the grace time.
    assert number == signal.SIGINT or "training: resuming from step" in victim.log
    assert_same_results(victim.workdir, small, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize(("name", "kills"), [("small", 25), ("complete", 25)])
def test_run_stopped_at_random_resumes_to_the_same_results(
    forks, tmp_path, name, kills, number, request
):
    """Half of the signals are at a time, half before a change to the work directory.

    If a run ends before it is stopped, another one starts from scratch.
    """
    undisturbed = request.getfixturevalue(name)
    fields = getattr(faults, name.upper())
    draw = random.Random(0)
    start = time.monotonic()
    _, changes, _ = forks.run(tmp_path / "counted", fields)
    seconds = time.monotonic() - start
    runs = 0
    while kills:
        runs += 1
        victim = Victim(forks, tmp_path / f"runs_{runs}", fields, number)
        killed = True
        while killed:
            if not kills:
                limits = {}
            elif draw.random() < 0.5:
                limits = {"seconds": draw.uniform(0.1, seconds / 2)}
            else:
                limits = {"operation": draw.randint(1, changes // 2)}
            killed = victim.run(**limits)
            kills -= killed
            # Shown with -s, because this takes minutes.
            end = f"stopped in {forks.seconds_to_end:.2f} s" if killed else "complete"
            print(f"run {runs}, {limits}: {end}")
        assert_same_results(victim.workdir, undisturbed, number)
        shutil.rmtree(victim.workdir)


def rounds(workdir):
    """Divide the files of a finished run into rounds, one file per directory.

    The first of two damaged files in one directory may hide the second. A training
    run's CSV is written without a log line if the run is repeated, so it comes after
    the outcome. The JSON file of a run is read only if the outcome is damaged.
    """
    directories = collections.defaultdict(list)
    for path in sorted(pathlib.Path(workdir).rglob("*"), reverse=True):
        if (
            path.is_file()
            and path.parent.name != ".lock"
            and not path.name.startswith(REWRITTEN)
        ):
            place = path.parent
            # A damaged file makes pre-training start over.
            if place.name == "metrics" or place.parent.name == "pretrained":
                place = place.parent
            directories[place].append(path.relative_to(workdir))
    for i in range(max(map(len, directories.values()))):
        yield [names[i] for names in directories.values() if len(names) > i]


def flip(path, draw):
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def truncate(path, draw):
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


@pytest.mark.parametrize(
    ("damage", "fields"),
    [
        (flip, "small"),
        pytest.param(flip, "complete", marks=pytest.mark.slow),
        pytest.param(truncate, "complete", marks=pytest.mark.slow),
    ],
)
def test_run_logs_and_recomputes_every_damaged_file(
    tmp_path, caplog, damage, fields, request
):
    undisturbed = request.getfixturevalue(fields)
    config = faults.config(tmp_path / "runs", getattr(faults, fields.upper()))
    workdir = pathlib.Path(shutil.copytree(undisturbed, config.workdir))
    draw = random.Random(0)
    for damaged in rounds(undisturbed):
        for name in damaged:
            damage(workdir / name, draw)
        caplog.clear()
        run_lib.run(config)
        unnamed = [name for name in damaged if str(workdir / name) not in caplog.text]
        assert not unnamed
        assert_same_results(workdir, undisturbed)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run_lib.run(config)
    assert "loaded cached features" in caplog.text
    assert not re.search(": computed|recomputing|pre-training: saved", caplog.text)


@contextlib.contextmanager
def files_no_larger_than(size):
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


def assert_refused(error, where, reason):
    """Check that the message names the place and how to fix it."""
    text = str(error.value)
    assert re.search(rf"\n  where: .*{re.escape(where)}", text), text
    assert re.search(rf"\n  found: .*{reason}", text), text
    assert "\n  to fix: free disk space" in text and text.count("\n") == 3


@pytest.mark.parametrize(
    ("largest", "where", "kept"),
    [
        (1_000, "model.ckpt", 0),
        (20_000, "features.npy", 0),
        (200_000, "random_weights/finetune/state", 1),
    ],
)
def test_run_raises_storage_error_at_file_size_limit_and_resumes(
    small, tmp_path, largest, where, kept
):
    config = faults.config(tmp_path / "runs", faults.SMALL)
    workdir = pathlib.Path(config.workdir)
    if where != "model.ckpt":
        shutil.copytree(small / "pretrained", workdir / "pretrained")
    with files_no_larger_than(largest), pytest.raises(StorageError) as error:
        run_lib.run(config)
    assert_refused(error, where, "File too large|too large")
    # Collect Orbax's warnings here instead of in a later test.
    gc.collect()
    assert len(list(workdir.glob("*/*/features/train/manifest.json"))) == kept
    assert not list(workdir.glob("*/*/finetune/result.json"))
    run_lib.run(config)
    assert_same_results(workdir, small)


@contextlib.contextmanager
def small_disk(place, size):
    """Mount a small file system, which only root can do, and not in every container."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    made = shutil.which("mount") and subprocess.run(command, capture_output=True)
    if not made or made.returncode:
        pytest.skip("cannot mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_run_raises_storage_error_on_full_disk_and_resumes(small, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "16m"):
        config = faults.config(disk / "runs", faults.SMALL)
        (disk / "other").write_bytes(bytes(14_000_000))
        with pytest.raises(StorageError) as error:
            run_lib.run(config)
        assert_refused(error, str(disk / "runs"), "[Nn]o space left|RESOURCE_EXHAUSTED")
        (disk / "other").unlink()
        run_lib.run(config)
        assert_same_results(disk / "runs", small)


def test_run_rejects_read_only_workdir(tmp_path):
    workdir = tmp_path / "disk"
    with contextlib.ExitStack() as stack:
        if os.geteuid():
            workdir.mkdir(mode=0o500)
        else:
            stack.enter_context(small_disk(workdir, "1m"))
            command = ["mount", "-o", "remount,ro", str(workdir)]
            subprocess.run(command, check=True)
        with pytest.raises(InputError) as error:
            run_lib.run(faults.config(workdir, faults.SMALL))
    text = str(error.value)
    assert text.startswith("The work directory cannot be written\n")
    assert f"where: {workdir}" in text
