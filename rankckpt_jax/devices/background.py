"""Compiles programs of later stages in a thread, while the devices do other work."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import jax

from rankckpt_jax.devices import processes, target

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_THREAD = "compile ahead"


def prepare(
    title: str, load: Callable[[], _T], make_programs: Callable[[_T], None]
) -> Callable[[], _T]:
    """Load a value and compile programs in a thread, for later calls in this process.

    The programs reach these calls by the persistent cache, so nothing is done without
    one. On a CPU nothing is done, because compiling would take the cores that other
    work needs. Nothing is done for several processes, because only the first one keeps
    programs.

    Args:
      title: Prefix of log lines.
      load: Returns the value.
      make_programs: Lowers and compiles the programs of the value. An error is only
        logged, because the later calls compile what is missing.

    Returns:
      A function that waits for the thread and returns the value, or raises what `load`
      raised. If nothing is done ahead, it is `load`.
    """
    if not _is_useful():
        return load
    future: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def run() -> None:
        try:
            value = load()
        except BaseException as error:
            future.set_exception(error)
            return
        start = time.monotonic()
        try:
            make_programs(value)
        except Exception:
            _log.debug("%s: compiling ahead failed", title, exc_info=True)
        else:
            elapsed = time.monotonic() - start
            _log.info("%s: compiled ahead (%.1f s)", title, elapsed)
        future.set_result(value)

    # A daemon does not delay the end of an interrupted run.
    threading.Thread(target=run, name=_THREAD, daemon=True).start()
    return future.result


def _is_useful() -> bool:
    setting = "jax_compilation_cache_dir"
    has_cache = getattr(jax.config, setting) is not None
    is_single = processes.process_count() == 1
    return has_cache and is_single and target.platform() != "cpu"
