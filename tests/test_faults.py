"""A run that is killed, starved of disk or given damaged files ends as one that is not.

The run is a small but complete demo; see `tests.faults`.
"""

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
import subprocess
import sys
import time

import pytest

from rankckpt_jax.errors import StorageError
from rankckpt_jax.run import ablation
from rankckpt_jax.run import run as stages
from tests import faults

pytestmark = [
    pytest.mark.multiprocess,
    # Where Orbax fails to write or read, coroutines of its own are never awaited.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

# Made anew by every run, or read by TensorBoard alone, which has its own checksums.
REWRITTEN = ("ranking.csv", "report.html", "events.out.tfevents")


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
def small(tmp_path_factory):
    """The work directory of a small run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("small") / "runs"
    stages.run(faults.config(workdir, faults.SMALL))
    assert not faults.left_behind(workdir)
    return workdir


@pytest.fixture(scope="module")
def complete(grid, tmp_path_factory):
    """That of a run with every stage."""
    workdir = tmp_path_factory.mktemp("complete") / "runs"
    stages.run(faults.config(workdir, faults.COMPLETE))
    assert not faults.left_behind(workdir)
    return workdir


def assert_as_undisturbed(workdir, undisturbed):
    found, expected = faults.results(workdir), faults.results(undisturbed)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == value, name
    assert not faults.left_behind(workdir)


class Victim:
    """One work directory on which runs are killed, and what they are held to."""

    def __init__(self, forks, workdir, fields):
        self._forks, self.workdir, self._fields = forks, workdir, fields
        self._known = {}
        self._computed = collections.Counter()

    def run(self, **limits):
        """Runs until it is killed, or to its end; returns whether it was killed."""
        code, _, log = self._forks.run(self.workdir, self._fields, **limits)
        assert code in (0, -9), log
        assert "Traceback" not in log
        # What was whole before was not touched.
        now = faults.whole(self.workdir)
        assert {path: now.get(path) for path in self._known} == self._known
        self._known = now
        # What was said to be computed was not computed again.
        told = re.findall(r"\d\d:\d\d:\d\d (.*) computed in", log)
        self._computed.update(told + re.findall(r"pre-trained to step \d+", log))
        assert max(self._computed.values(), default=0) <= 1, self._computed
        return code != 0


MOMENTS = (
    "/.step_3.partial",
    "step_0/features/train/.manifest.json",
    "step_3/scores/.leep.json",
    "step_3/finetune/state/4",
    "step_3/finetune/.result.json",
    "/.ranking.csv",
)
"""Changes to the work directory, in their order, before which a run is killed."""


@pytest.mark.parametrize(
    "moments",
    [MOMENTS[1:4:2], pytest.param(MOMENTS, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_a_run_killed_at_any_stage_ends_as_one_that_was_not(
    forks, small, tmp_path, moments
):
    victim = Victim(forks, tmp_path / "runs", faults.SMALL)
    for moment in moments:
        assert victim.run(before=moment), moment
    assert not victim.run()
    assert_as_undisturbed(victim.workdir, small)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kills"), [("small", 25), ("complete", 25)])
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(
    forks, tmp_path, name, kills, request
):
    """Half of the moments are of time, half before a change to the work directory.

    Where a run ends before its moment comes, another begins from nothing.
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
        victim = Victim(forks, tmp_path / f"runs_{runs}", fields)
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
            # Seen with -s: this takes minutes.
            print(f"run {runs}, {limits}:", "killed" if killed else "complete")
        assert_as_undisturbed(victim.workdir, undisturbed)
        shutil.rmtree(victim.workdir)


def rounds(workdir):
    """The files of a finished run, none of a round beside another of it.

    Of two damaged files in one directory the first may hide the second. A training
    run's CSV is written without a word where the run is repeated, so it comes after
    the outcome; the JSON file of a run is only read where the outcome is damaged.
    """
    directories = collections.defaultdict(list)
    for path in sorted(pathlib.Path(workdir).rglob("*"), reverse=True):
        if path.is_file() and not path.name.startswith(REWRITTEN):
            place = path.parent
            # What pre-training left is made again as a whole.
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
def test_whatever_file_is_damaged_is_named_and_made_again(
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
        stages.run(config)
        unnamed = [name for name in damaged if str(workdir / name) not in caplog.text]
        assert not unnamed
        assert_as_undisturbed(workdir, undisturbed)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        stages.run(config)
    told = caplog.text.replace("nothing to compute", "")
    assert "found" in told and "comput" not in told and "again" not in told


@contextlib.contextmanager
def files_no_larger_than(size):
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


def assert_refused(error, where, reason):
    """One message that names the place and says what to do."""
    told = str(error.value)
    assert re.search(rf"\n  where: .*{re.escape(where)}", told), told
    assert re.search(rf"\n  found: .*{reason}", told), told
    assert "\n  to fix: make room" in told and told.count("\n") == 3


@pytest.mark.parametrize(
    ("largest", "where", "kept"),
    [
        (1_000, "model.ckpt", 0),
        (20_000, "features.npy", 0),
        (200_000, "step_0/finetune/state", 1),
    ],
)
def test_where_files_take_no_more_the_run_ends_with_one_error_and_goes_on_later(
    small, tmp_path, largest, where, kept
):
    config = faults.config(tmp_path / "runs", faults.SMALL)
    workdir = pathlib.Path(config.workdir)
    if where != "model.ckpt":
        shutil.copytree(small / "pretrained", workdir / "pretrained")
    with files_no_larger_than(largest), pytest.raises(StorageError) as error:
        stages.run(config)
    assert_refused(error, where, "File too large|too large")
    # Orbax's warnings are told of here, not in whichever test comes next.
    gc.collect()
    assert len(list(workdir.glob("*/*/features/train/manifest.json"))) == kept
    assert not list(workdir.glob("*/*/finetune/result.json"))
    stages.run(config)
    assert_as_undisturbed(workdir, small)


@contextlib.contextmanager
def small_disk(place, size):
    """A file system of its own; only root can make one, and not in every container."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    made = shutil.which("mount") and subprocess.run(command, capture_output=True)
    if not made or made.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_message_and_the_run_goes_on_when_there_is_room(
    small, tmp_path
):
    disk = tmp_path / "disk"
    with small_disk(disk, "16m"):
        config = faults.config(disk / "runs", faults.SMALL)
        (disk / "other").write_bytes(bytes(14_000_000))
        with pytest.raises(StorageError) as error:
            stages.run(config)
        assert_refused(error, str(disk / "runs"), "[Nn]o space left|RESOURCE_EXHAUSTED")
        (disk / "other").unlink()
        stages.run(config)
        assert_as_undisturbed(disk / "runs", small)


def test_a_read_only_workdir_is_refused_before_any_work(tmp_path):
    workdir = tmp_path / "disk"
    with contextlib.ExitStack() as stack:
        if os.geteuid():
            workdir.mkdir(mode=0o500)
        else:
            stack.enter_context(small_disk(workdir, "1m"))
            command = ["mount", "-o", "remount,ro", str(workdir)]
            subprocess.run(command, check=True)
        command = [sys.executable, "-m", "rankckpt_jax.main"]
        done = subprocess.run(
            [*command, f"--config.workdir={workdir}"], capture_output=True, text=True
        )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: The work directory cannot be written\n")
    assert f"where: {workdir}" in done.stderr and done.stderr.count("\n") < 6
