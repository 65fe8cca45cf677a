"""A run that is killed, starved of disk or given damaged files ends as one that is not.

The run is a small but complete demo; see `tests.faults`.
"""

import collections
import contextlib
import os
import pathlib
import random
import re
import shutil
import subprocess

import pytest

from tests import faults

pytestmark = pytest.mark.multiprocess

# Made anew by every run, or told by nobody but TensorBoard.
REWRITTEN = ("ranking.csv", "report.html", "events.out.tfevents")


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    made = faults.Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(forks, tmp_path_factory):
    """The work directory of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "runs"
    code, _, log = forks.run(workdir)
    assert code == 0, log
    assert not faults.left_behind(workdir)
    return workdir


@pytest.fixture
def finished(undisturbed, tmp_path):
    """A copy of it."""
    return pathlib.Path(shutil.copytree(undisturbed, tmp_path / "runs"))


def assert_as_undisturbed(workdir, undisturbed):
    found, expected = faults.results(workdir), faults.results(undisturbed)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == value, name
    assert not faults.left_behind(workdir)


class Victim:
    """One work directory on which runs are killed, and what they are held to."""

    def __init__(self, forks, workdir):
        self._forks, self.workdir = forks, workdir
        self._known = {}
        self._computed = collections.Counter()

    def run(self, **limits):
        """Runs until it is killed, or to its end; returns whether it was killed."""
        code, _, log = self._forks.run(self.workdir, **limits)
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
    "step_3/",
    "step_0/features/train/.manifest.json",
    "step_3/scores/.leep.json",
    "step_3/finetune/state/4",
    "step_6/finetune/.result.json",
    "/.ranking.csv",
)
"""Changes to the work directory, in their order, before which a run is killed."""


def test_a_run_killed_at_every_stage_ends_as_one_that_was_not(
    forks, undisturbed, tmp_path
):
    victim = Victim(forks, tmp_path / "runs")
    for moment in MOMENTS:
        assert victim.run(before=moment), moment
    assert not victim.run()
    assert_as_undisturbed(victim.workdir, undisturbed)


@pytest.mark.slow
def test_fifty_kills_at_random_moments(forks, undisturbed, tmp_path):
    """Half of them at a moment of time, half before a change to the work directory."""
    draw = random.Random(0)
    _, changes, _ = forks.run(tmp_path / "counted")
    kills, runs = 0, 0
    while kills < 50:
        runs += 1
        victim = Victim(forks, tmp_path / f"runs_{runs}")
        killed = True
        while killed:
            if kills >= 50:
                limits = {}
            elif draw.random() < 0.5:
                limits = {"seconds": draw.uniform(0.2, 6)}
            else:
                limits = {"operation": draw.randint(1, changes // 3)}
            killed = victim.run(**limits)
            kills += killed
            print(runs, kills, limits, killed)
        assert_as_undisturbed(victim.workdir, undisturbed)
        shutil.rmtree(victim.workdir)


def rounds(workdir):
    """The files of a finished run, none of a round beside another of it.

    Of two damaged files in one directory the first may hide the second.
    """
    directories = collections.defaultdict(list)
    for path in sorted(pathlib.Path(workdir).rglob("*")):
        if path.is_file() and not path.name.startswith(REWRITTEN):
            directories[path.parent].append(path.relative_to(workdir))
    for i in range(max(map(len, directories.values()))):
        yield [names[i] for names in directories.values() if len(names) > i]


def flip(path, draw):
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def truncate(path, draw):
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


@pytest.mark.parametrize(
    "damage", [flip, pytest.param(truncate, marks=pytest.mark.slow)]
)
def test_whatever_file_is_damaged_is_named_and_made_again(
    forks, undisturbed, finished, damage
):
    draw = random.Random(0)
    for damaged in rounds(undisturbed):
        for name in damaged:
            damage(finished / name, draw)
        code, _, log = forks.run(finished)
        assert code == 0, log
        unnamed = [name for name in damaged if str(finished / name) not in log]
        assert not unnamed, log
        assert_as_undisturbed(finished, undisturbed)
    _, _, log = forks.run(finished)
    assert "computed" not in log and "again" not in log


def assert_refused(log, code, where, reason):
    """One message that names the place, and nothing beside it."""
    assert code == 2, log
    assert log.count("Error: ") == 1 and "Traceback" not in log, log
    assert re.search(f"where: .*{where}", log) and reason in log, log


def test_where_files_take_no_more_the_run_ends_with_one_message_and_goes_on_later(
    forks, undisturbed, tmp_path
):
    victim = Victim(forks, tmp_path / "runs")
    for largest, where, then in (
        (1_000, "model.ckpt", "step_0/features"),
        (20_000, "features.npy", "step_0/finetune/state"),
        (200_000, "step_0/finetune/state", "step_3/features"),
    ):
        code, _, log = forks.run(victim.workdir, largest_file=largest)
        assert_refused(log, code, where, "File too large")
        assert "\n  to mend: make room" in log
        assert victim.run(before=then)
    assert not victim.run()
    assert_as_undisturbed(victim.workdir, undisturbed)


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
    forks, undisturbed, tmp_path
):
    disk = tmp_path / "disk"
    with small_disk(disk, "8m"):
        (disk / "other").write_bytes(bytes(5_000_000))
        code, _, log = forks.run(disk / "runs")
        assert_refused(log, code, str(disk / "runs"), "No space left on device")
        (disk / "other").unlink()
        code, _, log = forks.run(disk / "runs")
        assert code == 0, log
        assert_as_undisturbed(disk / "runs", undisturbed)


def test_a_read_only_workdir_is_refused_before_any_work(forks, tmp_path):
    workdir = tmp_path / "disk"
    with contextlib.ExitStack() as stack:
        if os.geteuid():
            workdir.mkdir(mode=0o500)
        else:
            stack.enter_context(small_disk(workdir, "1m"))
            command = ["mount", "-o", "remount,ro", str(workdir)]
            subprocess.run(command, check=True)
        code, changes, log = forks.run(workdir)
    assert_refused(log, code, str(workdir), "cannot be written")
    assert log.count("\n") < 8
