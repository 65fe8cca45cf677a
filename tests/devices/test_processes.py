import os
import subprocess
import sys

import pytest

from rankckpt_jax.devices import processes
from rankckpt_jax.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_processes": 2}, "coordinator` is not set"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "host"),
        ({"coordinator": "host:1", "num_processes": 2}, "process_id` is not set"),
        (
            {"coordinator": "host:1", "num_processes": 2, "process_id": 2},
            "out of range",
        ),
    ],
)
def test_join_refuses_incomplete_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        processes.join(**arguments)


RUN = """
import sys, time, pathlib
from rankckpt_jax.devices import processes
processes.join(timeout_seconds=60)
place, name, count = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
(place / f"{name}-{processes.process_index()}-of-{processes.process_count()}").touch()
deadline = time.monotonic() + 60
while len(list(place.glob("*-of-*"))) < count and time.monotonic() < deadline:
    time.sleep(0.1)
processes.barrier("end")
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("tasks", [1, 2])
def test_join_separates_the_runs_of_one_slurm_step(tmp_path, tasks):
    step = {
        "JAX_PLATFORMS": "cpu",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(tasks),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path), run, str(2 * tasks)],
            env={
                **os.environ,
                **step,
                "SLURM_PROCID": str(task),
                "SLURM_LOCALID": str(task),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for run in ("first", "second")
        for task in range(tasks)
    ]
    errors = [process.communicate(timeout=180)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 2 * tasks, errors
    # Both runs were complete, at the same time.
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{run}-{task}-of-{tasks}"
        for run in ("first", "second")
        for task in range(tasks)
    }


def test_check_devices_names_an_absent_platform():
    code = "from rankckpt_jax.devices import processes; processes.check_devices()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "rocm"},
    )
    assert "InputError: JAX cannot use the devices" in done.stderr
    assert "where: JAX_PLATFORMS=rocm" in done.stderr
