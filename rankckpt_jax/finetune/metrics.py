"""What a run tells on its way: a history, a CSV file of it, and TensorBoard's events.

    finetune/metrics/RUN.csv                  step, loss, learning rate, images/s, ...
    finetune/metrics/RUN/events.out.tfevents.*     tensorboard --logdir=WORKDIR

tensorboardX writes the events: it needs NumPy and protobuf alone and is kept up to
date, where `clu` has had no release since 2024.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.devices import processes
from rankckpt_jax.storage import files

_log = logging.getLogger(__name__)

COLUMNS = ("step", "loss", "learning_rate", "images_per_second", "accuracy")


@dataclasses.dataclass
class History:
    """What is known of a run so far, in the order of its steps.

    Attributes:
      rows: A mapping of some of `COLUMNS` for each moment at which there was news.
      diverged_at: Steps taken when the loss was first not finite; -1 while it is.
    """

    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    diverged_at: int = -1

    def watch(self, step: int, losses: np.ndarray) -> None:
        """Notes divergence: `losses` are those of the steps up to `step`."""
        if self.diverged_at < 0:
            self.diverged_at = first_not_finite(step, losses)

    def add(self, step: int, **values: float) -> None:
        """Notes values of a step, beside what is there of the same step already."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step})
        self.rows[-1].update(values)

    @property
    def accuracies(self) -> list[tuple[int, float]]:
        """(step, accuracy) of each evaluation on the way."""
        known = [row for row in self.rows if "accuracy" in row]
        return [(int(row["step"]), row["accuracy"]) for row in known]

    def csv(self) -> str:
        """The rows as CSV, what is unknown left empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def first_not_finite(step: int, losses: np.ndarray) -> int:
    """Steps taken when a loss was first not finite; -1 where all are.

    Args:
      step: Steps taken when the last of the losses was.
      losses: [n], of the n steps up to that.
    """
    broken = np.flatnonzero(~np.isfinite(losses))
    return int(step - len(losses) + 1 + broken[0]) if len(broken) else -1


def put_right(place: epath.Path, text: str) -> None:
    """Writes a run's CSV where the file is missing or is not `text`, and says so.

    Args:
      place: As for `Writer`.
      text: What `History.csv` returned.
    """
    path = place.parent / f"{place.name}.csv"
    if not processes.is_main_process():
        return
    if not path.exists() or path.read_bytes() != text.encode():
        _log.warning("%s is not what its run recorded: written again", path)
        files.write_text_atomically(path, text)


class Writer:
    """Writes a run's history as it grows; nothing in any process but the main one."""

    def __init__(self, place: epath.Path | None, first_step: int):
        """Opens the files.

        Args:
          place: `metrics/RUN`; None for no files.
          first_step: Events of this step and later, of a run that was killed, do not
            count.
        """
        self._place = None if place is None else epath.Path(place)
        self._events: Any = None
        if self._place is None or not processes.is_main_process():
            self._place = None
            return
        with self._events_are_extra():
            from tensorboardX import event_file_writer
            from tensorboardX.proto import event_pb2

            self._place.mkdir(parents=True, exist_ok=True)
            # Not `SummaryWriter`: where its thread meets a full disk, it ends, and
            # the run waits for it for ever.
            self._events = event_file_writer.EventsWriter(str(self._place / "events"))
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._event(step=first_step + 1, session_log=start)

    @contextlib.contextmanager
    def _events_are_extra(self) -> Iterator[None]:
        """Goes on without events where they cannot be written; the CSV says as much.

        A bucket needs a client library, for one.
        """
        try:
            yield
        except (ImportError, OSError) as error:
            self._events = None
            _log.warning("no TensorBoard events in %s: %s", self._place, error)

    def _event(self, **fields: Any) -> None:
        from tensorboardX.proto import event_pb2

        self._events.write_event(event_pb2.Event(wall_time=time.time(), **fields))

    def scalars(self, step: int, **values: float) -> None:
        """Adds the values of a step to the events."""
        if self._events is None:
            return
        from tensorboardX import summary

        with self._events_are_extra():
            for name, value in values.items():
                self._event(step=step, summary=summary.scalar(name, value))

    def write(self, history: History) -> None:
        """Writes the history as CSV, and what there is of events to disk."""
        if self._place is not None:
            path = self._place.parent / f"{self._place.name}.csv"
            files.write_text_atomically(path, history.csv())
        if self._events is not None:
            with self._events_are_extra():
                self._events.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._events is not None:
            with self._events_are_extra():
                self._events.close()
