"""Keeps compiled programs between runs, and measures the time spent on compiling.

    DIRECTORY/jaxlib-VERSION/PROGRAM-DIGEST-cache   one compiled program

JAX's persistent compilation cache stores the programs. It finds them by the program,
its shapes, the compiler's version and options, and the kind of devices.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib.metadata
import logging
import os
import pathlib
import re
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import filelock
import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

_log = logging.getLogger(__name__)

OFF = "off"
"""The value of `config.compilation_cache` that keeps no programs."""

DEFAULT = "~/.cache/rankckpt_jax/compiled"

LIMIT = 2_000_000_000
"""Largest size of a local directory in bytes. JAX deletes the least recently used
programs. Those of 12 networks and three measures take 3.4 MB on a CPU."""

_FUSION_MEMORY = "--xla_tpu_scoped_vmem_limit_kib"
_FUSION_KIB = 6144

_LOCK_SECONDS = 10
_MAX_DAYS = 90  # Programs of other versions are deleted if unused for longer.
_ENTRY, _LAST_USE = "-cache", "-atime"  # JAX's file names end so.
_WARNING = "Error (reading|writing) persistent compilation cache entry for '(.*?)': "

# Events of JAX that make a program from a function. Tracing contains tracing.
_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def limit_tpu_fusions() -> None:
    """Limit the on-chip memory of a fused operation on a TPU to 6 MiB.

    Call it before JAX creates its devices. The compiler searches for the best tiling of
    each convolution within this memory. With 6 instead of 16 MiB, a training step of a
    ResNet-50 unit compiles for v5e in 4.9 instead of 13.0 CPU seconds, and takes 5 %
    more cycles by the compiler's estimate. A limit in LIBTPU_INIT_ARGS is kept.
    """
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    if _FUSION_MEMORY not in given:
        option = f"{_FUSION_MEMORY}={_FUSION_KIB}"
        os.environ["LIBTPU_INIT_ARGS"] = f"{given} {option}".strip()


@contextlib.contextmanager
def persistent_cache(directory: str = "") -> Iterator[None]:
    """Load compiled programs from a directory, and keep new ones there.

    These are settings of JAX for the whole process, which are restored at the end. A
    damaged program is deleted and compiled again. A directory that cannot be used is
    logged, and nothing is kept.

    Args:
      directory: A local directory, a bucket (gs://) or "off". By default the one that
        is set in JAX (`JAX_COMPILATION_CACHE_DIR`), with JAX's own settings, or else
        `DEFAULT`.
    """
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    current, is_enabled = (getattr(jax.config, name) for name in names)
    if not directory and (current is not None or not is_enabled):
        yield
        return
    place = None if directory == OFF else _open(directory or DEFAULT)
    settings = {
        "jax_compilation_cache_dir": None if place is None else os.fspath(place),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
        # JAX cannot lock a bucket, which a limit needs.
        "jax_compilation_cache_max_size": LIMIT if _is_local(directory) else -1,
    }
    with _jax_settings(settings), warnings.catch_warnings():
        # A filter that raises would end the run; the default shows a line only once.
        warnings.filterwarnings("always", message=_WARNING)
        if place is not None:
            warnings.showwarning = functools.partial(
                _on_warning, place, warnings.showwarning
            )
        yield


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Neither load nor keep programs, as those for absent devices cannot be loaded."""
    with _jax_settings({"jax_enable_compilation_cache": False}):
        yield


def seconds() -> float:
    """Return the time that this thread has spent on making programs.

    It includes tracing, compiling, and loading from the persistent cache. Subtract an
    earlier value from a later one. The first call starts the measurement.
    """
    _listen()
    return sum((end - start for start, end in _spans()), 0.0)


@contextlib.contextmanager
def _jax_settings(settings: dict[str, Any]) -> Iterator[None]:
    previous = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        # JAX reads its settings of the cache only once.
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in previous.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _is_local(directory: str) -> bool:
    return "://" not in directory


def _open(directory: str) -> epath.Path | None:
    """Make a directory for this version of the compiler; None if it cannot be used."""
    # A program of another version can crash, although its digest differs.
    name = f"jaxlib-{importlib.metadata.version('jaxlib')}"
    if not _is_local(directory):
        return epath.Path(directory) / name
    try:
        place = pathlib.Path(directory).expanduser() / name
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = place.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            # Programs are run, so this user would run what others wrote.
            raise PermissionError("other users can write to it")
        with filelock.FileLock(place / ".lockfile", timeout=_LOCK_SECONDS):
            _delete_incomplete(place)
        _delete_old_versions(place)
    # There is no home directory, or its file system has no locks.
    except (OSError, RuntimeError, NotImplementedError) as error:
        _log.warning(
            "Compilation cache: %s cannot be used (%s), so this run compiles all "
            "programs. Set config.compilation_cache to another directory, or to %r.",
            *(directory, error, OFF),
        )
        return None
    return epath.Path(place)


def _delete_incomplete(place: pathlib.Path) -> None:
    """Delete programs without a time of last use, which a killed process left.

    JAX would keep no further program beside them.
    """
    for entry in place.glob(f"*{_ENTRY}"):
        if not _last_use(entry).exists():
            entry.unlink()


def _delete_old_versions(place: pathlib.Path) -> None:
    """Delete the programs of other versions of the compiler that nothing uses."""
    limit = time.time() - _MAX_DAYS * 24 * 3600
    for lock in place.parent.glob("jaxlib-*/.lockfile"):
        folder = lock.parent
        if folder != place and all(p.stat().st_mtime < limit for p in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)


def _last_use(entry: Any) -> Any:
    return entry.with_name(entry.name.removesuffix(_ENTRY) + _LAST_USE)


def _on_warning(place: epath.Path, show: Any, message: Any, *args: Any) -> None:
    """Delete the program that a warning of JAX is about; show all other warnings."""
    text = str(message)
    match = re.match(_WARNING, text)
    if match is None:
        show(message, *args)
        return
    action, program = match.groups()
    reason = text[match.end() :]
    try:
        entries = list(place.glob(f"{glob.escape(program)}-*{_ENTRY}"))
        used = [entry for entry in entries if _last_use(entry).exists()]
        if action == "writing":
            damaged = [entry for entry in entries if entry not in used]
        elif used:
            # JAX does not name the file, but it has just noted the time of its use.
            damaged = [max(used, key=lambda entry: _last_use(entry).read_bytes()[::-1])]
        else:
            damaged = entries
        for entry in damaged:
            entry.unlink(missing_ok=True)
            _last_use(entry).unlink(missing_ok=True)
    # A warning must not end the run, and buckets have errors of their own.
    except Exception as error:
        reason = f"{reason}; {error}"
    if action == "reading":
        text = f"deleted a damaged program in {place}, which is compiled again"
    else:
        text = f"could not keep a program in {place}"
    _log_once(f"Compilation cache: {text} ({reason})")


@functools.lru_cache(maxsize=100)
def _log_once(text: str) -> None:
    _log.warning("%s", text)


_THREAD = threading.local()


def _spans() -> list[tuple[float, float]]:
    """Return the start and end of each event of this thread, without overlaps."""
    if not hasattr(_THREAD, "spans"):
        _THREAD.spans = []
    return _THREAD.spans


@functools.cache
def _listen() -> None:
    jax.monitoring.register_event_duration_secs_listener(_on_event)


def _on_event(event: str, duration_secs: float, **_: str | int) -> None:
    if event not in _EVENTS:
        return
    end = time.monotonic()
    start, spans = end - duration_secs, _spans()
    # Events within this one have ended before it.
    while spans and spans[-1][1] > start:
        start = min(start, spans.pop()[0])
    spans.append((start, end))
