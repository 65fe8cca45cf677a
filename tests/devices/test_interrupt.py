"""Ctrl-C while a program starts, computes or ends; test_faults.py interrupts runs."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import faults

pytestmark = pytest.mark.multiprocess

BUSY = """
import signal, sys, time
signal.signal(signal.SIGINT, {initial})
from rankckpt_jax.devices import interrupt
interrupt.handle()
print("ready", flush=True)
{work}
interrupt.end_if_requested("Stopped at step 3. Run it again to resume.")
"""
WAITS = "time.sleep(0.5)"
BLOCKS = "import threading; threading.Lock().acquire(); threading.Barrier(2).wait()"


def interrupted(work, *pauses, initial="signal.default_int_handler"):
    """Press Ctrl-C after each pause; return (exit code, last message, seconds)."""
    code = BUSY.format(work=work, initial=initial)
    with subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdout=-1, stderr=-1
    ) as process:
        assert process.stdout.readline() == "ready\n"
        start = time.monotonic()
        for pause in pauses:
            time.sleep(pause)
            process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=60)
    return process.returncode, message, time.monotonic() - start


def test_ctrl_c_lets_the_program_stop_at_its_next_step():
    code, message, _ = interrupted(WAITS, 0.1)
    assert (code, message) == (130, "Stopped at step 3. Run it again to resume.\n")


def test_ctrl_c_ends_a_program_that_does_not_answer():
    code, message, seconds = interrupted(BLOCKS, 0.1)
    assert (code, message) == (130, "Interrupted. Run it again to resume.\n")
    assert seconds < 4


def test_second_ctrl_c_ends_at_once():
    code, message, seconds = interrupted(BLOCKS, 0.1, 0.1)
    assert (code, message) == (130, "Interrupted. Run it again to resume.\n")
    assert seconds < 1


def test_ctrl_c_of_a_background_job_stays_ignored():
    code, message, _ = interrupted(WAITS, 0.1, 0.1, initial="signal.SIG_IGN")
    assert (code, message) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10])
def test_ctrl_c_ends_a_command_at_any_time_after_its_start(tmp_path, seconds):
    command = [sys.executable, "-m", "rankckpt_jax.main"]
    command += faults.flags(tmp_path / "runs", faults.SMALL)
    with subprocess.Popen(
        command,
        text=True,
        stdout=-1,
        stderr=-1,
        # It is ignored if the tests run in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    ) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, log = process.communicate(timeout=60)
    assert process.returncode == 130, log
    # 2 s, and more on a busy machine.
    assert time.monotonic() - start < 4
    assert log.endswith("Run it again to resume.\n") and "Traceback" not in log
