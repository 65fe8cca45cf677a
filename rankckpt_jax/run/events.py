"""What was computed and what was cached for one checkpoint, for the log."""

from __future__ import annotations

import logging
from collections.abc import Callable

OnComputed = Callable[[str, float], None]
"""Called with the name and the seconds of a computed result."""

_log = logging.getLogger(__name__)


def ignore(work: str, seconds: float) -> None:
    """Ignore a computed result."""


class Events:
    """What was computed and what was cached for one checkpoint, for the log."""

    def __init__(self, title: str, on_computed: OnComputed = ignore):
        """Collect no events yet.

        Args:
          title: Prefix of log lines.
          on_computed: Called with the name and the seconds of each computed result.
        """
        self.title = title
        self.on_computed = on_computed
        self._computed: dict[str, float] = {}
        self._cached: list[str] = []

    def add(self, work: str, seconds: float | None) -> None:
        """Add a result that took so many seconds, or None if it was cached."""
        if seconds is None:
            self._cached.append(work)
        else:
            self._computed[work] = seconds
            self.on_computed(work, seconds)

    def log(self) -> None:
        """Log all results in at most two lines."""
        if self._cached:
            _log.info("%s: loaded cached %s", self.title, ", ".join(self._cached))
        if self._computed:
            parts = [f"{work} ({s:.1f} s)" for work, s in self._computed.items()]
            _log.info("%s: computed %s", self.title, ", ".join(parts))
