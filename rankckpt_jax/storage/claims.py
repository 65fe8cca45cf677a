"""Who works on what in a store that several runs share.

A run that works on a directory keeps a small file beside it, named after itself:

    workdir/TASK/.claims/NAME/HOLDER.json

To take a claim, a run writes its file and then lists the others. Whoever lists later
sees the one that listed earlier, so two never both find nobody; where both see each
other, both step back and try again after a random while. This needs no lock and no
atomic creation, which buckets and network file systems do not all have.

A file is renewed every few seconds. One that has not been for long is of a job that
died, and counts no more; its age is told by the store's own clock, that of a file just
written. A process of this machine that is gone is noticed at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files

RENEWED_EVERY = 10.0
"""Seconds between renewals of a claim."""

DEAD_AFTER = 120.0
"""Seconds without renewal after which a claim's holder counts as dead."""

_TRIES = 8
_OWN_NAME = re.compile(r"(?P<machine>[0-9a-f]{12})-(?P<pid>\d+)-[0-9a-f]{32}")


class Taken(Exception):
    """Somebody else holds the claim; the message names the holder."""


@contextlib.contextmanager
def held(directory: epath.Path, name: str, *, shared: bool = False) -> Iterator[None]:
    """Holds the claim on `name` while the context lasts.

    Args:
      directory: The task's, of which `name` is a part.
      name: A checkpoint's, or another of one path component.
      shared: Whether others who say so too may hold it at the same time.

    Raises:
      Taken: Another does.
    """
    place = epath.Path(directory) / ".claims" / name
    place.mkdir(parents=True, exist_ok=True)
    me = _myself(shared)
    mine = place / f"{me['id']}.json"
    done = threading.Event()

    def write() -> None:
        files.write_text_atomically(mine, json.dumps(me))

    def renew() -> None:
        while not done.wait(RENEWED_EVERY):
            # A store out of reach for a moment; the next renewal may reach it.
            with contextlib.suppress(OSError):
                write()

    for attempt in range(_TRIES):
        write()
        holder = _other(place, mine, shared)
        if holder is None:
            break
        mine.unlink(missing_ok=True)
        if attempt == _TRIES - 1 or not holder["new"]:
            raise Taken(describe(holder))
        time.sleep(random.uniform(0, 0.1 * (attempt + 1)))
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        # Now that it is settled, others need not step back and try again.
        me["new"] = False
        write()
        yield
    finally:
        done.set()
        thread.join()
        # One that died while this one worked is seen now or by whoever comes next.
        with contextlib.suppress(OSError):
            _living(place, mine)
        mine.unlink(missing_ok=True)


@contextlib.contextmanager
def sole(directory: epath.Path, *, shared: bool) -> Iterator[None]:
    """Holds the claim of a whole run on a task's directory.

    Args:
      directory: The task's.
      shared: Whether runs that divide the checkpoints among them work there.

    Raises:
      InputError: Another run works there.
    """
    try:
        with held(directory, "run", shared=shared):
            yield
    except Taken as taken:
        raise InputError(
            "Another run is at work in this directory",
            where=str(directory),
            found=str(taken),
            fix="wait for it, name another with --config.workdir, or have both divide "
            "the checkpoints with --config.shard_checkpoints",
        ) from taken


def describe(holder: dict[str, Any]) -> str:
    """Names the holder of a claim: host, process and since when."""
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"


def _myself(shared: bool) -> dict[str, Any]:
    return {
        "id": process_token(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "shared": shared,
        "new": True,
    }


def _other(place: epath.Path, mine: epath.Path, shared: bool) -> dict[str, Any] | None:
    """Another living holder who is in the way."""
    for path in _living(place, mine):
        try:
            holder = json.loads(path.read_text())
            if shared and holder["shared"]:
                continue
        except (OSError, ValueError, KeyError, TypeError):
            # Given up just now, or damaged; the next renewal mends that.
            continue
        return holder
    return None


def _living(place: epath.Path, mine: epath.Path) -> list[epath.Path]:
    """Files of the others; those of dead ones are removed."""
    now = mine.stat().mtime
    _remove_stale(place)
    living = []
    for path in place.glob("*.json"):
        # Perhaps given up just now.
        with contextlib.suppress(OSError):
            if path.name == mine.name:
                continue
            if is_gone(path.name) or now - path.stat().mtime > DEAD_AFTER:
                path.unlink(missing_ok=True)
            else:
                living.append(path)
    return living


def process_token() -> str:
    """A name for a file of this process, by which others tell whether it still runs."""
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex}"


def is_gone(name: str) -> bool:
    """Whether the process whose `own_name` is in `name` ran here and has ended."""
    found = _OWN_NAME.search(name)
    if found is None or found["machine"] != _machine():
        return False
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _remove_stale(directory: epath.Path) -> None:
    """Removes what killed processes left: hidden files that bear an `own_name`."""
    for path in directory.glob(".*"):
        if _OWN_NAME.search(path.name) is None:
            continue
        # Perhaps removed meanwhile by the one that made it.
        with contextlib.suppress(OSError):
            age = time.time() - path.stat().mtime
            if is_gone(path.name) or age > DEAD_AFTER:
                path.unlink(missing_ok=True)


def _machine() -> str:
    """Identity of what process numbers are unique in."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            parts = file.read().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        parts = str(uuid.getnode()), ""
    return files.digest(*parts)[:12]
