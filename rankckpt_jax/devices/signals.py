"""Clean stop on SIGTERM, at the same point on all processes, and on Ctrl-C.

A single process stops on Ctrl-C at the same points; see `interrupt`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import types
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from rankckpt_jax.devices import interrupt

EXIT_RETRY = 75
"""Exit code of a run that was stopped and resumes when started again: EX_TEMPFAIL."""

_stop = threading.Event()
# Number of calls of `should_stop`. JAX pairs the processes' calls by it, so it must be
# equal on all of them.
_num_checks = 0


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Make `should_stop` return True after SIGTERM, the notice of a scheduler.

    With several processes JAX's own preemption service receives the signal. If one
    process receives it, all stop at the same call of `should_stop`.
    """
    if jax.process_count() > 1 or threading.current_thread() is not (
        threading.main_thread()
    ):
        yield
        return

    def handle(number: int, frame: types.FrameType | None) -> None:
        del number, frame
        _stop.set()

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        _stop.clear()


def should_stop() -> bool:
    """Return whether this run was asked to stop; the same answer on every process."""
    if jax.process_count() > 1:
        set_num_checks(_num_checks + 1)
        if multihost_utils.reached_preemption_sync_point(_num_checks):
            _stop.set()
        return _stop.is_set()
    return _stop.is_set() or interrupt.requested()


def num_checks() -> int:
    """Return how often this process has called `should_stop`."""
    return _num_checks


def set_num_checks(count: int) -> None:
    """Set the number of calls of `should_stop`, to equal that of other processes."""
    global _num_checks
    _num_checks = count
