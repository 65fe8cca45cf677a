"""What many checkpoints leave behind; tests/benchmarks/long_run.py measures memory."""

import gc
import shutil

import jax
import pytest

from rankckpt_jax import features, stages
from rankckpt_jax.configs import default
from tests.benchmarks import long_run


@pytest.fixture
def run(image_folder, pool, tmp_path):
    """Ranks so many checkpoints and tells what is traced, compiled and open then."""

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
        assert len(stages.run(config).rows) == count
        gc.collect()
        return sum(features.NUM_TRACES.values()), programs(), long_run.handles()

    return run


def programs():
    return len(jax.local_devices()[0].client.live_executables())


def test_more_checkpoints_of_a_network_leave_nothing_behind(run):
    after_two = run(2)
    assert run(12) == after_two


def test_a_forward_pass_that_is_dropped_leaves_no_program(run):
    run(1)
    before = programs()
    features._forward.cache_clear()
    gc.collect()
    assert programs() < before
