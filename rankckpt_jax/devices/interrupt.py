"""Ends the program within about two seconds of Ctrl-C (SIGINT), at any moment.

The first Ctrl-C asks the run to stop: training saves its state after the step, and the
program ends. Python handles a signal only between two of its instructions, which can be
a minute apart while a network is compiled or converted. So a thread receives the signal
through a pipe, and ends the process after a grace time or a second Ctrl-C. Nothing is
lost, because results are written atomically. No KeyboardInterrupt is raised: other
libraries ignore it, or crash.

This module imports nothing slow, so that it can handle signals during other imports.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading

EXIT_CODE = 130
"""Exit code after Ctrl-C, as of a shell's command that SIGINT ended."""

_GRACE_SECONDS = 1.2

_MESSAGE = "Interrupted. Run it again to resume."

# No `threading.Event`, whose lock a second signal could find held.
_requested = False
_ending = threading.Lock()


def handle() -> None:
    """Handle SIGINT from now on, unless it is ignored, as in a background job.

    Call it in the main thread.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, lambda number, frame: _request())
    watcher = threading.Thread(target=_watch, args=(receiver,), daemon=True)
    watcher.start()


def requested() -> bool:
    """Return whether Ctrl-C was pressed."""
    return _requested


def end_if_requested(message: str = _MESSAGE) -> None:
    """End the process with one line if Ctrl-C was pressed."""
    if requested():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        _end(message)


def _request() -> None:
    global _requested
    _requested = True


def _watch(receiver: int) -> None:
    _receives_sigint(receiver, None)
    _request()
    _receives_sigint(receiver, _GRACE_SECONDS)
    _end(_MESSAGE)


def _receives_sigint(receiver: int, seconds: float | None) -> bool:
    """Wait for SIGINT, at most so many seconds; the pipe has other signals too."""
    while select.select([receiver], [], [], seconds)[0]:
        if signal.SIGINT in os.read(receiver, 1):
            return True
    return False


def _end(message: str) -> None:
    # Held until the process has ended, so that only one thread prints its line.
    _ending.acquire()
    with contextlib.suppress(OSError):  # Standard error may be closed.
        # A progress bar ends without a line break.
        start = "\n" if os.isatty(2) else ""
        os.write(2, f"{start}{message}\n".encode())
    # A regular exit would wait for threads that still compute, and may crash.
    os._exit(EXIT_CODE)
