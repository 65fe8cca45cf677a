"""Records the fine-tunings of a run in the history, for predictions of later runs.

Only results are recorded, with the names and fingerprints of the task and the
checkpoint. A history that cannot be written is a warning, and never fails a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterable, Iterator

from etils import epath

from rankckpt_jax.data import targets
from rankckpt_jax.devices import processes
from rankckpt_jax.evaluation import table_lines
from rankckpt_jax.evaluation.table import Table
from rankckpt_jax.finetune import SWEEPS, Sweep
from rankckpt_jax.prediction import families, history, history_file
from rankckpt_jax.prediction.history import History
from rankckpt_jax.prediction.history_lines import (
    ENDS,
    Entry,
    number_cell,
    plain_name,
)
from rankckpt_jax.results.row import Row, Tried
from rankckpt_jax.run.context import RunContext
from rankckpt_jax.storage import files

# Settings that a protocol states anyway, or that do not change an accuracy.
_STATED = ("learning_rate", "num_steps", "batch_size", "frozen")
_NEUTRAL = ("seed", "evaluations", "early_stop", "save_every")

_FINGERPRINT_DIGITS = 16

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def recording(context: RunContext) -> Iterator[Recorder]:
    """Record the rows that a with-block adds when it ends, whatever ends it."""
    recorder = Recorder(context.history)
    try:
        yield recorder
    finally:
        recorder.write()


class Recorder:
    """Collects the fine-tuned checkpoints of a run, and records them at its end.

    `recording` makes it. A run that is stopped records those that it has finished.
    """

    def __init__(self, place: epath.Path | None):
        """Initialize without rows; `place` is a history, or None to record nothing."""
        self._place = place
        self._context: RunContext | None = None
        self._rows: dict[str, Row] = {}

    def start(self, context: RunContext) -> None:
        """Forget all rows, because they were of other images."""
        self._context, self._rows = context, {}

    def add(self, *rows: Row) -> None:
        """Add rows, or replace them by more complete ones.

        They are not compared with the pool yet, because a score that is relative to it
        means nothing beside those of other runs.
        """
        self._rows |= {row.checkpoint: row for row in rows}

    def write(self) -> None:
        """Record the fine-tunings of this run; an error is logged."""
        if self._place is None or self._context is None:
            return
        if not processes.is_main_process():
            return
        try:
            entries = make_entries(self._context, self._rows.values())
            count = history_file.append(self._place, entries) if entries else 0
        # Buckets raise errors of their own, and no such error is worth a run.
        except Exception as error:
            # The fix of a StorageError is about the work directory.
            cause = error.__cause__ or error
            reason = getattr(cause, "strerror", None) or files.reason(error)
            _log.warning(
                "History: not recorded in %s (%s). Set config.history to a directory "
                "that can be written, or to %s.",
                *(files.display(self._place), reason, history.OFF),
            )
            return
        if count:
            what, place = (
                history.count(count, "fine-tuning"),
                files.display(self._place),
            )
            _log.info("History: %s -> %s", what, place)


def make_entries(context: RunContext, rows: Iterable[Row]) -> list[Entry]:
    """Return the fine-tunings of a run as entries of a history.

    Accuracies from elsewhere, trainings that diverged and results of regression are
    left out: R2 and Spearman's correlation can be negative, and a table holds shares.

    Args:
      context: Everything that the stages need.
      rows: Rows of the run.
    """
    if "finetune" not in context.stages or context.task.target == targets.REGRESSION:
        return []
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return [
        Entry({**_describe(context, row), "date": date})
        for row in rows
        if row.finite_accuracy() is not None
        and row.finetune_seconds is not None
        and not (row.failure or row.accuracy_source)
    ]


def _describe(context: RunContext, row: Row) -> dict[str, str]:
    """Return the cells of an entry that are not empty, without the date."""
    task = context.task
    family = families.family(row.architecture)
    cells = {
        "task": plain_name(task.name),
        "checkpoint": plain_name(row.checkpoint),
        "accuracy": number_cell(row.accuracy),
        "seed": str(context.sweep.recipe.seed),
        "family": plain_name(family) if family else "",
        "protocol": describe_protocol(context, row.tried),
        "test_images": number_cell(task.splits["test"].num_examples),
        "train_images": number_cell(task.splits["train"].num_examples),
        "scored_images": number_cell(row.extract_images),
        "classes": number_cell(task.num_classes),
        "parameters": number_cell(row.num_parameters),
        "feature_dim": number_cell(row.feature_dim),
        "source_accuracy": number_cell(row.source_accuracy),
        "image_size": number_cell(row.image_size),
        "seconds": number_cell(row.extract_seconds),
        "finetune_seconds": number_cell(row.finetune_seconds),
        "task_fingerprint": _task_fingerprint(context),
        "checkpoint_fingerprint": row.weights[:_FINGERPRINT_DIGITS],
    }
    for name in row.scores:
        # Static properties have columns of their own.
        if table_lines.rename(name) not in table_lines.COLUMNS:
            values = (row.score(name), row.spread(name), row.score_seconds.get(name))
            columns = (name, *(name + end for end in ENDS))
            cells |= dict(zip(columns, map(number_cell, values), strict=True))
    return {column: cell for column, cell in cells.items() if cell}


def earlier_results(context: RunContext, rows: Iterable[Row]) -> Table | None:
    """Return the results on earlier tasks, for `prediction.fit`.

    Checkpoints that are in the pool have the names of their rows. Results of this task
    and of other protocols are left out.

    Args:
      context: Everything that the stages need; process 0 knows the history.
      rows: The pool.

    Returns:
      The table; None if there are none.
    """
    names = {
        row.weights[:_FINGERPRINT_DIGITS]: row.checkpoint for row in rows if row.weights
    }
    known = history.merge(context.known.entries, checkpoints=names)
    return known.table(describe_protocol(context), _task_fingerprint(context))


def _task_fingerprint(context: RunContext) -> str:
    images = json.dumps(context.images, sort_keys=True)
    return files.digest(images)[:_FINGERPRINT_DIGITS]


def describe_protocol(context: RunContext, tried: Tried | None = None) -> str:
    """Return how checkpoints are fine-tuned; only equal protocols are compared.

    Example: "accuracy; vtab_1k; all weights; 96 px; vtab; 1000 steps of 64; rate 0.01".

    Args:
      context: Everything that the stages need.
      tried: How far successive halving trained the checkpoint, if it did.
    """
    sweep = context.sweep
    recipe = sweep.recipe
    rates = "/".join(f"{rate:g}" for rate in sweep.learning_rates)
    steps = "/".join(map(str, sweep.num_steps))
    if tried is not None:
        # One checkpoint of each task was left, which is a choice of its own.
        steps = f"successive halving up to {tried.total_steps}"
    size = context.config["image_size"]
    parts = [
        context.metric,
        " ".join([sweep.name, *_changes(sweep)]),
        "head only" if recipe.frozen else "all weights",
        f"{size} px" if size else "own size",
        context.preprocess,
        f"{steps} steps of {recipe.batch_size}",
        f"rate {rates}",
    ]
    if context.config["use_moving_averages"]:
        parts.append("moving averages")
    return "; ".join(parts)


def _changes(sweep: Sweep) -> list[str]:
    """Return the settings in which a sweep differs from the recipe of its name."""

    def settings(sweep: Sweep) -> dict[str, object]:
        of_recipe = dataclasses.asdict(sweep.recipe)
        kept = {n: v for n, v in of_recipe.items() if n not in (*_STATED, *_NEUTRAL)}
        return {**kept, "select_by": sweep.select_by, "train_on": sweep.train_on}

    named = settings(SWEEPS[sweep.name])
    return [
        f"{name}={'/'.join(map(str, v)) if isinstance(v, tuple) else v}"
        for name, v in settings(sweep).items()
        if v != named[name]
    ]


def describe_known(known: History) -> str:
    """Return how many fine-tunings a history has; empty if it has none."""
    if not known.entries:
        return ""
    protocols = history.count(len(known.protocols), "protocol")
    return f"{history.describe(known.entries)}, by {protocols}"
