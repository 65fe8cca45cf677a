"""One lock per task directory, so that two runs never write the same results.

    workdir/TASK/.lock/HOLDER.json   host, process and start time of a run
    workdir/TASK/.lock/HOLDER.lock   locked by the operating system while that run lives

A run writes its own record and then reads the others, so of two runs that start at the
same time at least one sees the other. The operating system releases the lock of a
process that ends, however it ends; the next run removes such a record.

Buckets and some network file systems have no locks. There a record of this host counts
while its process runs, which the process's number and start time identify. So a killed
container can be restarted at once. A record of another host counts until its run or the
user removes it. Dates are for the message only, because clocks differ.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import pathlib
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import filelock
from etils import epath

from rankckpt_jax.devices import processes
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files

# Errors of file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive(directory: epath.Path, shard: str = "") -> Iterator[None]:
    """Hold the lock of a task directory.

    All processes of a run call this together; process 0 takes the lock.

    Args:
      directory: The directory of the task, local or in a bucket.
      shard: Name of this run's shard, such as "2-of-4". Runs on different shards may
        hold the lock at the same time. Empty for a run on the whole pool.

    Raises:
      InputError: Another run holds the lock; the message names its host, process and
        start time.
      StorageError: The directory cannot be written.
    """
    directory = epath.Path(directory)

    def acquire() -> contextlib.ExitStack:
        if not processes.is_main_process():
            return contextlib.ExitStack()
        with files.writing(directory):
            return _acquire(directory, shard)

    with processes.sync_errors(acquire), files.writer(shard and f".{shard}"):
        yield


def _acquire(directory: epath.Path, shard: str) -> contextlib.ExitStack:
    """Return a context that releases the lock when it ends."""
    place = directory / ".lock"
    place.mkdir(parents=True, exist_ok=True)
    has_locks = _has_locks(place)
    record = place / f"{shard or 'run'}-{uuid.uuid4().hex}.json"
    with contextlib.ExitStack() as held:
        if has_locks:
            # Without it two runs that start together would refuse each other.
            guard = held.enter_context(contextlib.ExitStack())
            guard.enter_context(filelock.FileLock(place / "guard.lock", timeout=60))
            held.callback(_lock_file(record).unlink, missing_ok=True)
            held.enter_context(filelock.FileLock(_lock_file(record)))
        held.callback(record.unlink, missing_ok=True)
        files.write_text_atomically(record, json.dumps(_holder(shard)))
        for other in files.matching(place, "*.json"):
            if other != record and not _remove_if_stale(other, has_locks):
                _check_compatible(directory, shard, other, has_locks)
        if has_locks:
            guard.close()
        return held.pop_all()


def _has_locks(place: epath.Path) -> bool:
    """Return whether the operating system can lock files in a directory."""
    if files.is_on_bucket(place):
        return False
    probe = place / f"probe-{uuid.uuid4().hex}.lock"
    try:
        with filelock.FileLock(probe):
            return True
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        return False
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _lock_file(record: epath.Path) -> epath.Path:
    return record.with_suffix(".lock")


def _holder(shard: str) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "shard": shard,
    }


def _process_start(process: int) -> str:
    """Return when a process of this host was started; empty if it does not run.

    Numbers of processes are used again, above all in containers.
    """
    if not pathlib.Path("/proc/self/stat").exists():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:  # Of another user.
            pass
        return "running"
    try:
        status = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    # In ticks since the host was booted; the fields before it end with the name.
    return status.rpartition(")")[2].split()[19]


def _has_ended(holder: dict[str, Any]) -> bool:
    """Return whether a record is of a process of this host that no longer runs."""
    if holder.get("host") != socket.gethostname():
        return False
    return _process_start(holder.get("process", 0)) != holder.get("process_start")


def _remove_if_stale(record: epath.Path, has_locks: bool) -> bool:
    """Remove the record of a process that has ended; return whether it had."""
    if not has_locks:
        holder = _read(record)
        if not _has_ended(holder):
            return False
        record.unlink(missing_ok=True)
        _log.info("Lock: %s has ended; taking over", _describe(holder))
        return True
    try:
        with filelock.FileLock(_lock_file(record), timeout=0):
            described = _describe(_read(record))
            record.unlink(missing_ok=True)
    except filelock.Timeout:
        return False
    _lock_file(record).unlink(missing_ok=True)
    _log.info("Lock: %s has ended; taking over", described)
    return True


def _check_compatible(
    directory: epath.Path, shard: str, record: epath.Path, has_locks: bool
) -> None:
    """Raise InputError unless this run and the holder work on different shards."""
    holder = _read(record)
    if shard and holder.get("shard") not in ("", None, shard):
        return
    fix = (
        "wait until it ends"
        if has_locks
        else f"wait until it ends (if it has ended already, remove {record})"
    )
    raise InputError(
        "Another run is using this directory",
        where=str(directory),
        found=_describe(holder),
        fix=f"{fix}, choose another directory with --config.workdir, or give every run "
        "a shard of its own with --config.shard=i/n",
    )


def _read(record: epath.Path) -> dict[str, Any]:
    """Return who wrote a record; empty if it is damaged or was just removed."""
    try:
        holder = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _describe(holder: dict[str, Any]) -> str:
    shard = f" (shard {holder['shard']})" if holder.get("shard") else ""
    return (
        f"process {holder.get('process', '?')} on {holder.get('host', '?')}{shard}, "
        f"started {holder.get('started', '?')}"
    )
