"""Adds fine-tunings to a history.

In a local directory, each protocol has one file, which is changed under a lock and
replaced as a whole. What a person has changed in it stays: names, families, columns,
and lines that cannot be read. A bucket has no locks, so each run writes files of its
own there.
"""

from __future__ import annotations

import csv
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import filelock
from etils import epath

from rankckpt_jax.errors import InputError
from rankckpt_jax.prediction import history, history_lines
from rankckpt_jax.prediction.history_lines import Entry, FileLine, HistoryFile
from rankckpt_jax.storage import files

_LOCK = ".lock"
_LOCK_SECONDS = 60

# Columns that a person may have changed, whose values stay.
_PERSONAL = ("task", "checkpoint", "family")


def append(directory: epath.Path, entries: Sequence[Entry]) -> int:
    """Add fine-tunings to the history in a directory or bucket.

    A fine-tuning that is there already, with the same results, changes nothing. If its
    accuracy or scores differ, or it has more scores, its line is replaced.

    Args:
      directory: Created if it does not exist.
      entries: The fine-tunings, at most one for each task, checkpoint, seed and
        protocol.

    Returns:
      The number of fine-tunings that were added or changed.

    Raises:
      OSError, StorageError: The directory cannot be written, or another process has
        held its lock for a minute.
      InputError: A file there is no history.
    """
    by_protocol: dict[str, list[Entry]] = {}
    for entry in entries:
        by_protocol.setdefault(entry.get("protocol"), []).append(entry)
    if files.is_on_bucket(directory):
        known = history.read(directory).entries
        run = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
        return sum(
            _write_new(directory / f"{_stem(protocol)}-{run}.csv", given, known)
            for protocol, given in by_protocol.items()
        )
    # Names of tasks are nobody else's business, unless a team makes the directory.
    os.makedirs(directory, mode=0o700, exist_ok=True)
    # Users who share the directory share its lock.
    with filelock.FileLock(directory / _LOCK, timeout=_LOCK_SECONDS, mode=0o666):
        return sum(
            _update(directory / f"{_stem(protocol)}.csv", given)
            for protocol, given in by_protocol.items()
        )


def _stem(protocol: str) -> str:
    return files.directory_name(protocol, "unknown_protocol")


def _write_new(
    path: epath.Path, entries: Sequence[Entry], known: Sequence[Entry]
) -> int:
    """Write the fine-tunings that no other file has, if there are any."""
    key_of = _by_key([*known, *entries])
    last = {key_of(entry): entry for entry in known}
    new = [e for e in entries if not _adds_nothing(last.get(key_of(e)), e)]
    if new:
        files.write_text_atomically(path, history_lines.to_csv(new))
    return len(new)


def _update(path: epath.Path, entries: Sequence[Entry]) -> int:
    """Add fine-tunings to a file."""
    file = HistoryFile((), "", ())
    if path.exists():
        text = path.read_bytes().decode("utf-8-sig")
        file = history_lines.parse(text.rstrip("\r\n"), str(path))
    if file.is_percent:
        raise InputError(
            "Fine-tunings are recorded as fractions, and this file has percentages",
            where=str(path),
            fix="divide its accuracies by 100",
        )
    changed = add_lines(file, entries)
    if changed is None:
        return 0
    text, count = changed
    files.write_text_atomically(path, text)
    return count


def add_lines(file: HistoryFile, entries: Sequence[Entry]) -> tuple[str, int] | None:
    """Return the content of a file with more fine-tunings, and how many changed.

    Args:
      file: The file, without a header if it is new.
      entries: The fine-tunings.

    Returns:
      (content, number of lines that were added or replaced); None if there is none.
    """
    everything = [*file.entries, *entries]
    key_of = _by_key(everything)
    numbers = {
        key_of(line.entry): number
        for number, line in enumerate(file.lines)
        if line.entry is not None
    }
    names = {}
    for column in ("task", "checkpoint"):
        identities = history.Identities(column, everything)
        # New lines have the names that a person may have given.
        given = {identities.of(entry): entry.get(column) for entry in file.entries}
        names[column] = (identities, identities.names(given))
    header = list(file.header)
    header += [c for c in history_lines.columns_of(entries) if c not in header]
    more = header[len(file.header) :]
    lines: dict[int, str] = {}
    for entry in entries:
        number = numbers.get(key_of(entry), len(file.lines) + len(lines))
        old = file.lines[number] if number < len(file.lines) else None
        if _adds_nothing(old.entry if old else None, entry):
            continue
        cells = dict(entry.cells)
        for column, (identities, unique) in names.items():
            cells[column] = unique[identities.of(entry)]
        lines[number] = _merge_line(old, cells, file.header, header)
    if not lines:
        return None
    padding = "," * len(more)
    kept = [
        # A damaged line stays as it is.
        line.text if line.entry is None or not more else line.text + padding
        for line in file.lines
    ]
    for number, text in lines.items():
        if number < len(kept):
            kept[number] = text
        else:
            kept.append(text)
    first = file.header_text + ("," if file.header and more else "")
    first += history_lines.write_line(more) if more else ""
    return "\n".join([first, *kept, ""]), len(lines)


def _merge_line(
    old: FileLine | None,
    cells: Mapping[str, str],
    old_header: Sequence[str],
    header: Sequence[str],
) -> str:
    """Return a line with new cells, and with the others of the line it replaces."""
    before: dict[str, str] = {}
    if old is not None:
        [split] = csv.reader([old.text], skipinitialspace=True)
        before = dict(zip(old_header, split, strict=True))
    personal = {c: before[c] for c in _PERSONAL if before.get(c)}
    merged = {**before, **cells, **personal}
    return history_lines.write_line(merged.get(column, "") for column in header)


def _by_key(entries: Sequence[Entry]) -> Callable[[Entry], tuple[str, ...]]:
    """Return a function from an entry to the identity of its fine-tuning."""
    tasks = history.Identities("task", entries)
    checkpoints = history.Identities("checkpoint", entries)
    return lambda entry: (
        entry.get("protocol"),
        tasks.of(entry),
        checkpoints.of(entry),
        entry.get("seed"),
    )


def _adds_nothing(old: Entry | None, new: Entry) -> bool:
    """Return whether a recorded fine-tuning has all results of a new one."""
    return old is not None and new.results.items() <= old.results.items()
