"""The history: fine-tunings of earlier runs, as experience for later ones.

    DIRECTORY/PROTOCOL.csv          all fine-tunings with one protocol
    gs://BUCKET/PROTOCOL-RUN.csv    in a bucket, those that one run added

A *protocol* is how a checkpoint was fine-tuned, in words; see `run.recording`. Results
of different protocols are never compared. The fingerprints of images and weights
identify tasks and checkpoints. A line without a fingerprint is identified by its name.

Histories that others share are read in the same way, and never written. If sources
state different accuracies for the same task, checkpoint, seed and protocol, the one
with the latest date counts, and a note names both.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from rankckpt_jax.checkpoints.fetch import uris
from rankckpt_jax.errors import InputError, redact, some
from rankckpt_jax.evaluation.table import STATICS, Table
from rankckpt_jax.evaluation.table_file import parse_table
from rankckpt_jax.prediction import history_lines
from rankckpt_jax.prediction.history_lines import Entry
from rankckpt_jax.storage import files

OFF = "off"
"""The value of `config.history` that records nothing."""

VARIABLE = "RANKCKPT_HISTORY"
"""The variable with the default of `config.history`."""

DEFAULT = "~/.cache/rankckpt_jax/history"

_TIMEOUTS = (20.0, 60.0)  # Seconds to connect, and between two chunks.
_LIMIT = 1 << 28  # Bytes of a file from a server; a line has less than 2,000.
_CHUNK = 1 << 16
# Accuracies are stored with six digits.
_TOLERANCE = 1e-6
# Columns with one value per task or per checkpoint.
_OF_TASK = ("test_images", "classes")
_OF_CHECKPOINT = ("family", "group", *STATICS)


@dataclasses.dataclass(frozen=True)
class History:
    """Fine-tunings of earlier runs; `merge` and `read` make it.

    Attributes:
      entries: One for each task, checkpoint, seed and protocol. Names of tasks and
        checkpoints are unique; one that stands for several is followed by "~" and the
        start of the fingerprint.
      notes: Sentences about lines that were skipped, and about contradictions.
    """

    entries: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols, in the order of their first entries."""
        return tuple(dict.fromkeys(entry.get("protocol") for entry in self.entries))

    def of_protocol(self, protocol: str) -> tuple[Entry, ...]:
        """Return the fine-tunings with a protocol."""
        return tuple(e for e in self.entries if e.get("protocol") == protocol)

    def table(self, protocol: str, without_task: str = "") -> Table | None:
        """Return the fine-tunings with a protocol as a table, for predictions.

        Args:
          protocol: One of `protocols`.
          without_task: Fingerprint of the images of the task that is predicted, whose
            own results would reveal the answer.

        Returns:
          The table; None if no task has two checkpoints, or no line has a score.
        """
        entries = [
            entry
            for entry in self.of_protocol(protocol)
            if not without_task or entry.get("task_fingerprint") != without_task
        ]
        by_task = collections.defaultdict(set)
        for entry in entries:
            by_task[entry.get("task")].add(entry.get("checkpoint"))
        has_scores = any(len(entry.results) > 1 for entry in entries)
        if not has_scores or max(map(len, by_task.values())) < 2:
            return None
        text = history_lines.to_csv(entries)
        return parse_table(text, "the history", protocol or "unknown protocol")


def locate(setting: str) -> epath.Path | None:
    """Return the directory that `config.history` means; None to record nothing.

    Args:
      setting: A directory or bucket, or `OFF`. By default that of `VARIABLE`, or else
        `DEFAULT`.

    Raises:
      InputError: It is an address or a file.
    """
    given = setting or os.environ.get(VARIABLE, "")
    if given == OFF:
        return None
    if uris.is_remote(given) or given.endswith(".csv"):
        raise InputError(
            "A history is recorded in a directory or bucket",
            where="config.history",
            expected=f"a directory, gs://BUCKET/DIR, or {OFF!r}",
            found=given,
            fix="name a file or an address that others share in "
            "config.shared_histories, which are only read",
        )
    try:
        return files.to_path(given or DEFAULT)
    except InputError:
        if given:
            raise
        # There is no home directory.
        return None


def read(own: epath.Path | None = None, shared: Sequence[str] = ()) -> History:
    """Read the user's own history, and those that others share.

    Args:
      own: A directory, which need not exist. What cannot be read is noted.
      shared: CSV files, directories of these, or http(s) addresses of files.

    Raises:
      InputError: A shared history cannot be read.
    """
    entries: list[Entry] = []
    notes: list[str] = []
    try:
        paths = [] if own is None else _files(own)
    # Buckets raise errors of their own.
    except Exception as error:
        paths = []
        notes.append(f"{own}: cannot be read ({files.reason(error)})")
    for path in paths:
        try:
            parsed = history_lines.parse(_read_text(path), files.display(path))
        except InputError as error:
            notes.append(" ".join(str(error).split()))
            continue
        entries += parsed.entries
        notes += parsed.problems
    for place in shared:
        for where, text in _read_shared(place):
            parsed = history_lines.parse(text, where)
            entries += parsed.entries
            notes += parsed.problems
    return merge(entries, notes)


def merge(
    entries: Iterable[Entry],
    notes: Iterable[str] = (),
    checkpoints: Mapping[str, str] | None = None,
) -> History:
    """Return the history of entries that may repeat or contradict each other.

    Args:
      entries: Fine-tunings from any sources.
      notes: Notes that the history has too.
      checkpoints: Names by fingerprint that the checkpoints of a pool have there. The
        history gives them the same names, and gives none of these names to others.
    """
    entries = list(entries)
    ordered = _by_date(entries)
    tasks, networks = Identities("task", ordered), Identities("checkpoint", ordered)
    groups: dict[tuple[str, ...], list[Entry]] = collections.defaultdict(list)
    for entry in entries:
        ids = tasks.of(entry), networks.of(entry)
        groups[entry.get("protocol"), *ids, entry.get("seed")].append(entry)
    latest: dict[tuple[str, ...], Entry] = {}
    contradictions = []
    for key, group in groups.items():
        older, *newer = _by_date(group)
        for entry in newer:
            if abs(older.accuracy - entry.accuracy) > _TOLERANCE:
                contradictions.append(
                    f"{entry.get('task')} / {entry.get('checkpoint')}: "
                    f"{older.accuracy:g} ({older.where}) and {entry.accuracy:g} "
                    f"({entry.where})"
                )
            # Scores of measures that only the older one has are kept.
            older = Entry({**older.cells, **entry.cells}, entry.where)
        latest[key] = older
    if contradictions:
        notes = [
            *notes,
            "Accuracies of the same fine-tuning differ, and the one with the latest "
            f"date counts: {some(contradictions)}",
        ]
    of_task = _last_values(ordered, tasks, _OF_TASK)
    of_checkpoint = _last_values(ordered, networks, _OF_CHECKPOINT)
    task_names, names = tasks.names(), networks.names(checkpoints or {})
    merged = [
        Entry(
            {
                **entry.cells,
                **of_task[key[1]],
                **of_checkpoint[key[2]],
                "task": task_names[key[1]],
                "checkpoint": names[key[2]],
            },
            entry.where,
        )
        for key, entry in latest.items()
    ]
    return History(tuple(merged), tuple(notes))


def describe(entries: Sequence[Entry]) -> str:
    """Return how many fine-tunings there are, and on how many tasks."""
    tasks = count(len({entry.get("task") for entry in entries}), "task")
    return f"{count(len(entries), 'fine-tuning')} on {tasks}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
      >>> count(1, "task"), count(1200, "task")
      ('1 task', '1,200 tasks')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


class Identities:
    """The identities of the tasks, or of the checkpoints, of several entries.

    A fingerprint is an identity. An entry without a fingerprint belongs to the
    only one that has its name, and otherwise to the others without one.
    """

    def __init__(self, column: str, entries: Iterable[Entry]):
        """Read the names and fingerprints; `column` is "task" or "checkpoint"."""
        self._column = column
        self._known: dict[str, set[str]] = collections.defaultdict(set)
        entries = list(entries)
        for entry in entries:
            if fingerprint := entry.get(f"{column}_fingerprint"):
                self._known[_normalize(entry.get(column))].add(fingerprint)
        self._names = {self.of(entry): entry.get(column) for entry in entries}

    def of(self, entry: Entry) -> str:
        """Return the identity of the task or checkpoint of an entry."""
        if fingerprint := entry.get(f"{self._column}_fingerprint"):
            return fingerprint
        name = _normalize(entry.get(self._column))
        known = self._known.get(name, set())
        return next(iter(known)) if len(known) == 1 else f"~{name}"

    def names(self, preferred: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return a unique name by identity: the last one that an entry has.

        Args:
          preferred: Names by fingerprint that come first, and that no other fingerprint
            gets.
        """
        preferred = preferred or {}
        result = {i: name for i, name in preferred.items() if i in self._names}
        taken = {_normalize(name) for name in preferred.values()}
        for identity, name in self._names.items():
            if identity in result:
                continue
            # Without a fingerprint, only the name identifies it.
            by_name = identity.startswith("~") and name in preferred.values()
            if _normalize(name) in taken and not by_name:
                name = f"{name}~{files.digest(identity)[:6]}"
            taken.add(_normalize(name))
            result[identity] = name
        return result


def _normalize(name: str) -> str:
    """Return a name without blanks and in lower case."""
    return "".join(name.casefold().split())


def _by_date(entries: Iterable[Entry]) -> list[Entry]:
    """Return entries with the latest last."""
    return sorted(entries, key=lambda entry: entry.get("date"))


def _last_values(
    entries: Iterable[Entry], identities: Identities, columns: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Return the last known cells of some columns by identity."""
    values: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for entry in entries:
        cells = {column: entry.get(column) for column in columns}
        known = {column: cell for column, cell in cells.items() if cell}
        values[identities.of(entry)].update(known)
    return values


def _files(directory: epath.Path) -> list[epath.Path]:
    found = files.matching(directory, "*.csv")
    # The command line of `evaluation` writes these beside a file that it judges.
    return [path for path in found if not path.name.endswith("_judgment.csv")]


def _read_text(path: epath.Path) -> str:
    """Return the content of a file in UTF-8, with or without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise _unreadable(str(path), files.reason(error)) from error


def _read_shared(place: str) -> list[tuple[str, str]]:
    """Return (name, content) of each file of a shared history."""
    if uris.is_remote(place):
        return [(redact(place), _download(place))]
    path = files.to_path(place)
    if not path.is_dir():
        return [(str(path), _read_text(path))]
    found = _files(path)
    if not found:
        raise _unreadable(place, "a directory without CSV files")
    return [(str(file), _read_text(file)) for file in found]


def _download(url: str) -> str:
    """Return the content of an address, which is read again by each run.

    `checkpoints.fetch.download` keeps files, and refuses those that have changed.
    """
    import requests  # Here for start-up time.

    data = b""
    try:
        with requests.get(url, stream=True, timeout=_TIMEOUTS) as response:
            response.raise_for_status()
            for chunk in response.iter_content(_CHUNK):
                data += chunk
                if len(data) > _LIMIT:
                    raise _unreadable(url, f"more than {_LIMIT >> 20} MB")
        return data.decode("utf-8-sig")
    except (requests.RequestException, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _unreadable(url, files.reason(error)) from error


def _unreadable(where: str, found: str) -> InputError:
    return InputError(
        "A history cannot be read",
        where=where,
        expected="a CSV file in UTF-8, a directory or bucket with such files, or the "
        "http(s) address of a file",
        found=found,
        fix="check the path or address, or leave it out of config.shared_histories",
    )
