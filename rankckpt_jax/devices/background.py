"""Compiles programs of later stages in a thread, while the devices do other work."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import jax

from rankckpt_jax.devices import processes, target

_log = logging.getLogger(__name__)


def compile_ahead(title: str, make: Callable[[], None]) -> Callable[[], None]:
    """Compile programs in a thread, for calls that come later in this process.

    The programs reach these calls by the persistent cache, so nothing is done without
    one. On a CPU nothing is done, because compiling would take the cores that other
    work needs. Nothing is done for several processes, because only the first one keeps
    programs.

    Args:
      title: Prefix of log lines.
      make: Lowers and compiles the programs. An error is only logged, because the later
        calls compile what is missing.

    Returns:
      A function that waits until the thread has ended.
    """
    if not _is_useful():
        return lambda: None

    def run() -> None:
        start = time.monotonic()
        try:
            make()
        except Exception:
            _log.debug("%s: compiling ahead failed", title, exc_info=True)
        else:
            elapsed = time.monotonic() - start
            _log.info("%s: compiled ahead (%.1f s)", title, elapsed)

    # A daemon does not delay the end of an interrupted run.
    thread = threading.Thread(target=run, name="compile ahead", daemon=True)
    thread.start()
    return thread.join


def _is_useful() -> bool:
    setting = "jax_compilation_cache_dir"
    has_cache = getattr(jax.config, setting) is not None
    is_single = processes.process_count() == 1
    return has_cache and is_single and target.platform() != "cpu"
