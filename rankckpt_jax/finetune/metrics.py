"""What a run tells on its way: a history, a CSV file of it, and TensorBoard's events.

    finetune/metrics/RUN.csv                  step, loss, learning rate, images/s, ...
    finetune/metrics/RUN/events.out.tfevents.*     tensorboard --logdir=WORKDIR

tensorboardX writes the events: it needs NumPy and protobuf alone and is kept up to
date, where `clu` has had no release since 2024.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax import parallel, store

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
        if self._place is None or not parallel.is_main_process():
            self._place = None
            return
        try:
            import tensorboardX

            self._place.mkdir(parents=True, exist_ok=True)
            self._events = tensorboardX.SummaryWriter(
                str(self._place), purge_step=first_step + 1, flush_secs=30
            )
        except (ImportError, OSError) as error:
            # A bucket without its client library, for one; the CSV says as much.
            _log.warning("no TensorBoard events in %s: %s", self._place, error)

    def scalars(self, step: int, **values: float) -> None:
        """Adds the values of a step to the events."""
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def write(self, history: History) -> None:
        """Writes the history as CSV."""
        if self._place is not None:
            path = self._place.parent / f"{self._place.name}.csv"
            store.write_text_atomically(path, history.csv())

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._events is not None:
            self._events.close()
