"""Divides the checkpoints of a pool among jobs that share a work directory.

Each job takes whatever checkpoint nobody holds (`claims`), works on it and writes its
row to CHECKPOINT/row.json, which the others read in place of doing the same. A job
ends when all rows are there, so that each can write the whole report; one that died
leaves its checkpoint to the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from rankckpt_jax.devices import signals
from rankckpt_jax.errors import Interrupted
from rankckpt_jax.results.row import Row
from rankckpt_jax.storage import claims, files, store

_SECONDS_BETWEEN_LOOKS = 5.0

_log = logging.getLogger(__name__)


def rows(
    directory: epath.Path, makers: Mapping[str, Callable[[], Row]], version: str
) -> list[Row]:
    """The rows of all checkpoints, made here or by another job.

    Args:
      directory: The task's.
      makers: By checkpoint, what makes its row, computing what the store lacks.
      version: Identity of what is asked for; rows of another are not taken over.

    Returns:
      In the order of `makers`.

    Raises:
      Interrupted: This run has been told to end.
    """
    directory = epath.Path(directory)
    started = _now(directory)
    wanted = {"version": version}
    # Each from another place, so that jobs which start together rarely meet.
    left = list(makers)
    first = random.randrange(len(left)) if left else 0
    left = left[first:] + left[:first]
    known: dict[str, Row] = {}
    waited_for: set[str] = set()
    while left:
        for name in list(left):
            if signals.should_stop():
                raise Interrupted(f"stopped before {name}, as asked")
            place = directory / name / "row.json"
            row = _made_meanwhile(place, wanted, started)
            if row is None:
                with _claim(directory, name, waited_for) as mine:
                    if not mine:
                        continue
                    # Perhaps done between the two looks.
                    row = _made_meanwhile(place, wanted, started)
                    if row is None:
                        row = makers[name]()
                        store.save_result(place, wanted, dataclasses.asdict(row))
            known[name] = row
            left.remove(name)
        if left:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return [known[name] for name in makers]


@contextlib.contextmanager
def _claim(directory: epath.Path, name: str, waited_for: set[str]) -> Iterator[bool]:
    """Whether the checkpoint is this job's while the context lasts."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(claims.held(directory, name))
        except claims.Taken as taken:
            if name not in waited_for:
                _log.info("%s is being worked on by %s", name, taken)
            waited_for.add(name)
            yield False
            return
        yield True


def _now(directory: epath.Path) -> float:
    """The store's own time, in whole seconds."""
    probe = directory / f".clock-{claims.process_token()}"
    files.write_text_atomically(probe, "")
    now = probe.stat().mtime
    probe.unlink()
    return now


def _made_meanwhile(
    place: epath.Path, wanted: Mapping[str, Any], started: float
) -> Row | None:
    """A row written since the second this job began; older ones may be of other files.

    That one second is harmless: jobs that are started together belong together.
    """
    if not place.exists() or place.stat().mtime < started:
        return None
    found = store.load_result(place, wanted)
    if found is None:
        return None
    curve = tuple((int(step), float(value)) for step, value in found.result["curve"])
    fingerprint = tuple(found.result["fingerprint"])
    return Row(**{**found.result, "curve": curve, "fingerprint": fingerprint})
