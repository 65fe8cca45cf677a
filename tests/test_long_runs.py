"""Leaks of long runs: traces, compiled programs and open files."""

import gc
import os
import shutil
import subprocess
import sys

import jax
import pytest

from rankckpt_jax.configs import default
from rankckpt_jax.features import extract
from rankckpt_jax.run import run as run_lib


@pytest.fixture
def run(image_folder, pool, tmp_path):
    """Return a function that ranks checkpoints and counts what they leave."""

    def run(count):
        for number in range(count):
            name = ("first", "second")[number % 2]
            place = tmp_path / "many" / f"c{number:02}"
            if not place.exists():
                shutil.copytree(pool / name, place)
        config = default.get_config()
        config.task.path = str(image_folder)
        config.checkpoints = str(tmp_path / "many")
        config.workdir = str(tmp_path / "runs")
        config.image_size = 32
        config.measures = "h_score,logme,leep"
        config.stages = "extract,score"
        assert len(run_lib.run(config).rows) == count
        gc.collect()
        return sum(extract.NUM_TRACES.values()), programs(), open_files()

    return run


def programs():
    return len(jax.local_devices()[0].client.live_executables())


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_run_leaks_nothing_with_more_checkpoints_of_a_network(run):
    after_two = run(2)
    assert run(12) == after_two


DROPS = """
import gc
import jax, numpy as np
from rankckpt_jax.devices import mapping
from tests.test_long_runs import programs

mapping.MAX_PROGRAMS = 2

@mapping.bounded_cache
def scale(factor):
    return mapping.map_devices(lambda x: factor * x)

after = []
for factor in range(1, 8):
    (value,) = scale(factor)(np.ones((jax.local_device_count(), 1)))[0]
    assert value == factor
    gc.collect()
    after.append(programs())
assert scale(7) is scale(7)
# The count repeats after the first time that programs were dropped.
assert after[2:4] == after[4:6] and after[6] == after[2], after
"""


def test_bounded_cache_drops_programs():
    # In another process, because it drops the programs of all other tests as well.
    done = subprocess.run([sys.executable, "-c", DROPS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
