"""What a run shows while it works: log lines, progress bars and signs of life.

`step` logs a line before slow work. `bar` shows a progress bar in a terminal or a
notebook. In a log file it writes a line every few seconds instead, and so does a step
that has no bar. No silence is longer than 10 s. Log lines have the level INFO.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TextIO

from rankckpt_jax.errors import redact

PACKAGE = "rankckpt_jax"
"""Name of the logger of all log lines."""

SILENCE = 9.0
"""Seconds without a line after which a running step logs one. It is less than 10,
because a line can be late by a fraction of a second."""

_log = logging.getLogger(__name__)


class Bar(Protocol):
    """A progress bar, or the log lines instead of one."""

    def update(self, n: int) -> Any:
        """Count `n` more units as done."""

    def set_postfix(self, *, refresh: bool = True, **values: str) -> Any:
        """Show values, such as the loss, beside the progress."""


@contextlib.contextmanager
def step(title: str, event: str, *, announce: bool = True) -> Iterator[None]:
    """Log that work starts, and while it is silent, that it is still running.

    Example:
      with progress.step("[2/4] resnet_v1_50", "scoring nleep"):
          ...

    Args:
      title: The object of the log lines.
      event: The work, such as "scoring nleep".
      announce: Whether to log a line at the start. Without it, only work that takes
        long is logged.
    """
    if announce:
        _WATCH.heard()
        _log.info("%s: %s", title, event)
    start = time.monotonic()

    def describe() -> str:
        return f"{title}: still {event} ({time.monotonic() - start:.0f} s)"

    with _WATCH.watching(describe):
        yield


@contextlib.contextmanager
def bar(description: str, total: int, unit: str, *, initial: int = 0) -> Iterator[Bar]:
    """Show the description, the share done and the remaining time.

    Bars appear only where this package writes its own log lines (see `Handler`), in a
    terminal or a notebook. Otherwise the progress is logged every few seconds.

    Args:
      description: What is being done, "[2/5] resnet_v1_50: extracting".
      total: Number of units; 0 if unknown.
      unit: Name of a unit in the singular ("image", "step"), or "B" for bytes.
      initial: Number of units that an earlier run has done.

    Yields:
      A bar; call its `update(n)`.
    """
    if not _shows_bars():
        counter = _Counter(description, total, unit, initial)
        with _WATCH.watching(counter.describe):
            yield counter
        return
    with warnings.catch_warnings():
        # Without ipywidgets a notebook shows the bar as text, which needs no warning.
        warnings.simplefilter("ignore")
        # Imported here for start-up time. In a notebook it shows a widget.
        from tqdm import auto

    with (
        auto.tqdm(
            desc=description,
            total=total or None,
            initial=initial,
            unit=f" {unit}",
            unit_scale=unit == "B",
            dynamic_ncols=True,
            leave=False,
            file=_stream(),
        ) as drawn,
        _WATCH.watching(lambda: ""),
    ):
        _BARS.append(drawn)
        try:
            yield drawn
        finally:
            _BARS.remove(drawn)


def describe_seconds(seconds: float) -> str:
    """Return a rough duration.

    Example:
      >>> [describe_seconds(s) for s in (35.2, 200, 9000)]
      ['35 s', '3 min', '2.5 h']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Handler(logging.StreamHandler):
    """Writes log lines with times and without secrets, above progress bars."""

    def __init__(self) -> None:
        """Write to standard error; in a notebook to the output of the cell."""
        super().__init__(_stream())
        self.setFormatter(_Redacted("%(asctime)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, and the bars below it again."""
        _WATCH.heard()
        erased = contextlib.nullcontext()
        if _BARS:
            erased = type(_BARS[0]).external_write_mode(file=self.stream)
        with erased:
            super().emit(record)


@contextlib.contextmanager
def writing_to(stream: TextIO) -> Iterator[None]:
    """Write log lines to a stream while standard error leads elsewhere."""
    ours = [handler for handler in _own_handlers() if handler.stream is sys.stderr]
    for handler in ours:
        handler.setStream(stream)
    try:
        yield
    finally:
        for handler in ours:
            handler.setStream(sys.stderr)


@contextlib.contextmanager
def shown(progress: bool | None) -> Iterator[None]:
    """Show the progress of a call from Python, and leave logging as it was.

    Args:
      progress: True shows log lines and bars, False only warnings. None shows them if
        the application has no handler of log lines. Otherwise it changes nothing: the
        application's handlers and levels decide, and there are no bars.
    """
    logger = logging.getLogger(PACKAGE)
    if progress is None and logger.hasHandlers():
        yield
        return
    level, handler = logger.level, Handler()
    logger.setLevel(logging.WARNING if progress is False else logging.INFO)
    if progress is not False:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Redacted(logging.Formatter):
    """Log lines, also those of other packages, without passwords and keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record and its traceback."""
        return redact(super().format(record))


class _Counter:
    """The progress of a bar that is not shown, for log lines."""

    def __init__(self, description: str, total: int, unit: str, initial: int):
        self._description, self._total, self._unit = description, total, unit
        self._done, self._values, self._start = initial, "", time.monotonic()
        # The count and time of the first update. The time before it is not part of the
        # rate, because it includes compilation.
        self._first: tuple[int, float] | None = None

    def update(self, n: int) -> None:
        """Count `n` more units as done."""
        self._done += n
        if self._first is None:
            self._first = self._done, time.monotonic()

    def set_postfix(self, *, refresh: bool = True, **values: str) -> None:
        """Show values in the next line."""
        self._values = "".join(f", {name} {value}" for name, value in values.items())

    def describe(self) -> str:
        """Return a line such as "extracting: 1,240 of 3,060 images, 35 s left"."""
        scale, unit = (1e6, "MB") if self._unit == "B" else (1, f"{self._unit}s")
        text = f"{self._done / scale:,.0f}"
        if self._total:
            text += f" of {self._total / scale:,.0f}"
        text = f"{self._description}: {text} {unit}{self._values}"
        now = time.monotonic()
        if self._first is None:
            return f"{text} after {describe_seconds(now - self._start)}"
        count, start = self._first
        if not self._total or self._done <= count:
            return text
        seconds = (now - start) / (self._done - count)
        left = describe_seconds(seconds * max(self._total - self._done, 0))
        return f"{text}, {left} left"


class _Watch:
    """Logs a line about the innermost running step after each `SILENCE`.

    A single thread runs while there are steps. It holds the lock while it writes, so
    that nothing is written about a step that has ended.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: list[Callable[[], str]] = []
        self._last = 0.0
        self._ended = threading.Event()

    def heard(self) -> None:
        """Note that a line is being written now."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def watching(self, describe: Callable[[], str]) -> Iterator[None]:
        """Watch a step.

        Args:
          describe: Returns the line, or "" to write none, as where a bar is visible.
        """
        if not _log.isEnabledFor(logging.INFO):
            yield
            return
        with self._lock:
            if not self._steps:
                # Work that ends within a second is not worth a line.
                self._last = max(self._last, time.monotonic() - 0.9 * SILENCE)
                self._ended = threading.Event()
                threading.Thread(
                    target=self._watch, args=(self._ended,), daemon=True
                ).start()
            self._steps.append(describe)
        try:
            yield
        finally:
            with self._lock:
                self._steps.remove(describe)
                if not self._steps:
                    self._ended.set()

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(max(0.0, self._last + SILENCE - time.monotonic())):
            with self._lock:
                if ended.is_set():
                    return
                if time.monotonic() < self._last + SILENCE:
                    continue
                self.heard()
                if line := self._steps[-1]():
                    _log.info("%s", line)


_WATCH = _Watch()
_BARS: list[Any] = []


def _shows_bars() -> bool:
    """Return whether this package writes log lines, and where bars can be drawn."""
    is_drawn = _in_notebook() or sys.stderr.isatty()
    return bool(_own_handlers()) and is_drawn and _log.isEnabledFor(logging.INFO)


def _own_handlers() -> list[Handler]:
    loggers = (logging.getLogger(), logging.getLogger(PACKAGE))
    handlers = [handler for logger in loggers for handler in logger.handlers]
    return [handler for handler in handlers if isinstance(handler, Handler)]


def _stream() -> Any:
    # Notebooks show standard error like an error.
    return sys.stdout if _in_notebook() else sys.stderr


def _in_notebook() -> bool:
    """Return whether this is the kernel of a notebook, as `tqdm.auto` decides it."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config
