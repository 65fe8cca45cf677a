"""Stops a run cleanly on SIGTERM, on all of its processes at the same point."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import types
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

EXIT_RETRY = 75
"""Exit code of a run that was stopped and goes on when started again: EX_TEMPFAIL."""

_told_to_stop = threading.Event()


@dataclasses.dataclass
class _Questions:
    """How often `should_stop` has asked; equal on all processes, or they never meet."""

    asked: int = 0


question_count = _Questions()


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Turns SIGTERM, a scheduler's notice, into the answer of `should_stop`.

    With several processes JAX's own preemption service listens: whichever of them is
    told, all stop at the same question.
    """
    if jax.process_count() > 1 or threading.current_thread() is not (
        threading.main_thread()
    ):
        yield
        return

    def note(number: int, frame: types.FrameType | None) -> None:
        del number, frame
        _told_to_stop.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _told_to_stop.clear()


def should_stop() -> bool:
    """Whether this run has been told to end; the same answer on every process."""
    # JAX counts questions, and tells all processes at the same one.
    if jax.process_count() > 1:
        question_count.asked += 1
        if multihost_utils.reached_preemption_sync_point(question_count.asked):
            _told_to_stop.set()
    return _told_to_stop.is_set()
