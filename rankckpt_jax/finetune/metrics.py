"""Metrics of a trial: its history, a CSV file, and TensorBoard events.

    finetune/metrics/TRIAL.csv                  step, loss, learning rate, ...
    finetune/metrics/TRIAL/events.out.tfevents.*     tensorboard --logdir=WORKDIR

tensorboardX writes the events. It needs only NumPy and protobuf, and is maintained
(the last release of `clu` is from 2024).
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.data.metrics import METRICS
from rankckpt_jax.devices import processes
from rankckpt_jax.storage import files

_log = logging.getLogger(__name__)

_COLUMNS = ("step", "loss", "learning_rate", "images_per_second")


@dataclasses.dataclass
class History:
    """Metrics of a trial so far, in the order of its steps.

    Attributes:
      rows: Loss, learning rate, images per second, and metrics of `data.metrics`, for
        each step at which one of them was recorded.
      diverged_at: First step with a loss that was not finite; -1 if there is none.
    """

    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    diverged_at: int = -1

    def add(self, step: int, **values: float) -> None:
        """Record values of a step, beside those recorded for it before."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step})
        self.rows[-1].update(values)

    @property
    def curves(self) -> dict[str, tuple[tuple[int, float], ...]]:
        """By metric, (step, value) of each evaluation."""
        curves: dict[str, tuple[tuple[int, float], ...]] = {}
        for row in self.rows:
            for name in METRICS.keys() & row.keys():
                point = (int(row["step"]), row[name])
                curves[name] = (*curves.get(name, ()), point)
        return curves

    def csv(self) -> str:
        """Return the rows as CSV. Metrics that were not recorded are empty."""
        text = io.StringIO()
        columns = (*_COLUMNS, *(name for name in METRICS if name in self.curves))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def first_not_finite(step: int, losses: np.ndarray) -> int:
    """Return the first step whose loss is not finite; -1 if all are finite.

    Args:
      step: Step of the last loss.
      losses: Losses of the n steps up to `step`, [n].
    """
    indices = np.flatnonzero(~np.isfinite(losses))
    return int(step - len(losses) + 1 + indices[0]) if len(indices) else -1


def restore_csv(place: epath.Path, text: str) -> None:
    """Write a trial's CSV file again if it is missing or differs from `text`.

    Args:
      place: As for `TrialLog`.
      text: The result of `History.csv`.
    """
    path = _csv_path(place)
    if not processes.is_main_process():
        return
    if not path.exists() or path.read_bytes() != text.encode():
        _log.warning("%s is missing or damaged; writing it again", path)
        files.write_text_atomically(path, text)


def _csv_path(place: epath.Path) -> epath.Path:
    return place.parent / f"{place.name}.csv"


class TrialLog:
    """Records a trial's metrics, and writes them to disk from the main process."""

    def __init__(
        self,
        place: epath.Path,
        history: History,
        first_step: int,
        learning_rates: np.ndarray,
    ):
        """Open the files.

        Args:
          place: The path `metrics/TRIAL`.
          history: Metrics up to `first_step`.
          first_step: Number of steps already taken. TensorBoard ignores events after
            it, which a killed run left behind.
          learning_rates: Learning rate of each step.
        """
        self.history = history
        self._place = epath.Path(place)
        self._rates = learning_rates
        self._events: Any = None
        if not processes.is_main_process():
            return
        with self._events_are_optional():
            # Imported here for start-up time.
            from tensorboardX import event_file_writer
            from tensorboardX.proto import event_pb2

            self._place.mkdir(parents=True, exist_ok=True)
            # Not `SummaryWriter`: its thread ends when the disk is full, and the run
            # would wait for it forever.
            self._events = event_file_writer.EventsWriter(str(self._place / "events"))
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write_event(step=first_step + 1, session_log=start)

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite."""
        return self.history.diverged_at >= 0

    def add_losses(
        self, step: int, losses: np.ndarray, images_per_second: float
    ) -> None:
        """Record the losses of the steps up to `step`, [n], as their mean."""
        if not self.diverged:
            self.history.diverged_at = first_not_finite(step, losses)
        self._add(
            step,
            loss=float(losses.mean()),
            learning_rate=float(self._rates[step - 1]),
            images_per_second=images_per_second,
        )

    def add_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of an evaluation, by name."""
        if values:
            self._add(step, **values)

    def write(self) -> None:
        """Write the CSV file, and flush the events."""
        if processes.is_main_process():
            files.write_text_atomically(_csv_path(self._place), self.history.csv())
        if self._events is not None:
            with self._events_are_optional():
                self._events.flush()

    def close(self) -> None:
        """Write and close the files, also if the disk is full."""
        try:
            self.write()
        finally:
            if self._events is not None:
                with self._events_are_optional():
                    self._events.close()

    def _add(self, step: int, **values: float) -> None:
        if self.diverged:
            return
        self.history.add(step, **values)
        if self._events is None:
            return
        # Imported here for start-up time.
        from tensorboardX import summary

        with self._events_are_optional():
            for name, value in values.items():
                self._write_event(step=step, summary=summary.scalar(name, value))

    def _write_event(self, **fields: Any) -> None:
        # Imported here for start-up time.
        from tensorboardX.proto import event_pb2

        self._events.write_event(event_pb2.Event(wall_time=time.time(), **fields))

    @contextlib.contextmanager
    def _events_are_optional(self) -> Iterator[None]:
        """Continue without events if they cannot be written, for example to a bucket.

        The CSV file holds the same values.
        """
        try:
            yield
        except (ImportError, OSError) as error:
            self._events = None
            _log.warning("no TensorBoard events in %s: %s", self._place, error)
