"""Traces of single steps with `jax.profiler`, for TensorBoard or XProf.

    DIRECTORY/STEP/plugins/profile/TIME/HOST.xplane.pb

A step is traced once per run, and only after the same program has run, so that a trace
shows work and not compiling.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Profile:
    directory: pathlib.Path
    traced: list[str] = dataclasses.field(default_factory=list)


_ACTIVE: contextvars.ContextVar[_Profile | None] = contextvars.ContextVar(
    "active profile", default=None
)


@contextlib.contextmanager
def profile(directory: str = "") -> Iterator[None]:
    """Trace one step of each kind while the block runs.

    Args:
      directory: A local directory; nothing is traced if it is empty.
    """
    if not directory:
        yield
        return
    active = _Profile(pathlib.Path(directory).expanduser())
    token = _ACTIVE.set(active)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
    steps = ", ".join(active.traced) or "no step, because all results were cached"
    _log.info("Profile: %s (%s)", active.directory, steps)


def run(step: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function, and trace the call if a profile is active that lacks this step.

    Args:
      step: Name of the step, which is also the directory of its trace.
      function: The function, which has been called before.
      *args: Its arguments.
    """
    active = _ACTIVE.get()
    if active is None or step in active.traced:
        return function(*args)
    active.traced.append(step)
    with jax.profiler.trace(str(active.directory / step)):
        return jax.block_until_ready(function(*args))


def run_again(step: str, function: Callable[..., Any], *args: Any) -> None:
    """Call a function again for its trace, if a profile is active that lacks this step.

    Args:
      step: As for `run`.
      function: A function without side effects. Its result is dropped.
      *args: Its arguments.
    """
    active = _ACTIVE.get()
    if active is not None and step not in active.traced:
        run(step, function, *args)
