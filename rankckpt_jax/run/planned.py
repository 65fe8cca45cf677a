"""Fine-tunes the most promising checkpoints within a budget of time.

`prediction.planning` decides what comes next. A fine-tuning has two parts: all learning
rates up to `Sweep.choose_after`, and the best one to the end. After the first part the
checkpoint competes again with the others, and may be left at that.

The budget is that of all fine-tunings of the task that are stored in the work
directory, so that a run which is started again with the same budget does not fine-tune
more, and one with a larger budget goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import statistics
from collections.abc import Mapping, Sequence

from rankckpt_jax import finetune
from rankckpt_jax.devices import processes, signals
from rankckpt_jax.errors import InputError, Interrupted
from rankckpt_jax.prediction import Prediction, planning
from rankckpt_jax.results import comparison, predicted
from rankckpt_jax.results.formatting import format_metric, format_seconds, one_line
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row, finite
from rankckpt_jax.run import checkpoint, recording
from rankckpt_jax.run.context import RunContext

_PASSES = 4.0
"""Time of a training image in that of a forward pass, before one is measured: gradients
take two more, and evaluations and waiting for images about one."""

_COMPILATIONS = 4.0
"""The same for compiling."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Images:
    """How many images the fine-tuning of a checkpoint trains on.

    Attributes:
      first: In its first part.
      last: From there to the end.
    """

    first: int
    last: int


def run(
    context: RunContext,
    rows: Sequence[Row],
    names: Sequence[str],
    recorder: recording.Recorder,
) -> list[Row]:
    """Fine-tune checkpoints within `context.finetune_budget`.

    Args:
      context: Everything that the stages need.
      rows: All rows.
      names: The checkpoints that may be fine-tuned, best-ranked first.
      recorder: Receives each row as soon as it is complete.

    Returns:
      The rows, some of them with an accuracy.

    Raises:
      StorageError, UnreadableImage, Interrupted: See `checkpoint.evaluate`.
    """
    by_name = {row.checkpoint: row for row in rows}
    members = {member.name: member for member in context.members}
    task, budget = context.task.name, context.finetune_budget
    stored = [name for name in names if _seconds(by_name[name]) is not None]
    _log.info(
        "%s: fine-tuning up to %d checkpoints within %s%s",
        *(task, len(names), format_seconds(budget)),
        f", of which {format_seconds(_used(by_name))} are used by {len(stored)} stored "
        "results"
        if stored
        else "",
    )
    images = _images(context)
    number = 0
    while True:
        if signals.should_stop():
            raise Interrupted(f"{task}: stopped before the next fine-tuning")

        decide = functools.partial(_decide, context, by_name, names, images)
        step = processes.sync_errors(decide)
        # Processes may differ by rounding and time, and all must train the same.
        name, reason = processes.broadcast_from_main([step.checkpoint, step.reason])
        if not name:
            _log.info("%s: no more fine-tuning, because %s", task, reason)
            return list(by_name.values())
        number += 1
        before = by_name[name]
        only_start = context.starts_first and before.started is None
        what = "fine-tuning"
        if context.starts_first:
            what = "starting to fine-tune" if only_start else "going on with"
        _log.info("%s: %s %s next, because %s", task, what, name, reason)
        row = checkpoint.finetune_later(
            context,
            members[name],
            before,
            f"[{number}] {name}",
            only_start=only_start,
        )
        by_name[name] = row
        recorder.add(row)
        if outcome := _describe(row, context.metric):
            _log.info(
                "%s: %s %s; %s of %s used",
                *(task, name, outcome),
                *(format_seconds(_used(by_name)), format_seconds(budget)),
            )


def _describe(row: Row, metric: str) -> str:
    """Return how far the fine-tuning of a checkpoint came, in a phrase."""
    if (accuracy := row.finite_accuracy()) is not None:
        return f"reaches {format_metric(accuracy, metric)}"
    start = row.started
    if start is None or start.accuracy is None:
        return ""
    return (
        f"is at {format_metric(start.accuracy, metric)} on held-out images after "
        f"{start.steps} of {start.num_steps} steps"
    )


def _used(rows: Mapping[str, Row]) -> float:
    """Return the seconds of all fine-tunings."""
    return sum(_seconds(row) or 0.0 for row in rows.values())


def _seconds(row: Row) -> float | None:
    """Return the seconds of a fine-tuning so far; None if it has not begun."""
    if row.finetune_seconds is None and row.started is not None:
        return row.started.seconds
    return finite(row.finetune_seconds)


def _images(context: RunContext) -> Images:
    """Return how many images fine-tuning trains on, of every checkpoint."""
    sweep = context.sweep
    last = sweep.steps_after_choice
    if finetune.choose_splits(context.task, sweep).final is not None:
        last += max(sweep.num_steps)
    batch_size = sweep.recipe.batch_size
    return Images(sweep.steps_before_choice * batch_size, last * batch_size)


def _decide(
    context: RunContext, rows: Mapping[str, Row], names: Sequence[str], images: Images
) -> planning.Step:
    """Return the next step; only process 0 knows the history."""
    if not processes.is_main_process():
        return planning.Step("", "")
    usable = [name for name in names if not rows[name].failure]
    if len(usable) < 2:
        # There is nothing to predict.
        untried = [n for n in usable if rows[n].finetune_seconds is None]
        return planning.Step("".join(untried), "no other checkpoint can be fine-tuned")
    left = context.finetune_budget - _used(rows)
    seconds = expected_seconds([rows[name] for name in usable], images)
    affordable = {name: time for name, time in seconds.items() if time <= left}
    if seconds and not affordable:
        least, rest = map(format_seconds, (min(seconds.values()), max(left, 0.0)))
        return planning.Step("", f"{rest} are left, and the shortest takes {least}")
    predicted_pool = _predict(context, list(rows.values()))
    return planning.next_step(predicted_pool, affordable, context.finetune_confidence)


def _predict(context: RunContext, rows: Sequence[Row]) -> Prediction:
    """Predict the pool from its rows and earlier tasks."""
    measures = context.settings.measures
    ranking = rank(context.task.name, measures, comparison.compare_rows(rows, measures))
    ranking = dataclasses.replace(ranking, metric=context.metric)
    num_test = context.task.splits["test"].num_examples
    table = recording.earlier_results(context, rows)
    try:
        return predicted.predict(ranking, [] if table is None else [table], num_test)
    except InputError as error:
        # A history must not keep a scored pool from being fine-tuned.
        _log.warning("Planning without the history: %s", one_line(str(error)))
        return predicted.predict(ranking, [], num_test)


def expected_seconds(rows: Sequence[Row], images: Images) -> dict[str, float]:
    """Return the time that fine-tuning each checkpoint is expected to take from now on.

    It follows from the time of its features, and from the fine-tunings so far: the
    median of their times per forward pass, and of their compile times.

    Args:
      rows: Rows without a failure.
      images: The images that fine-tuning trains on.

    Returns:
      The seconds of those that are not finished; without those that diverged.
    """
    forward = {row.checkpoint: _seconds_per_image(row) for row in rows}
    known = [seconds for seconds in forward.values() if seconds is not None]
    usual = statistics.median(known) if known else 0.0
    per_image = {name: usual if x is None else x for name, x in forward.items()}
    factors, compilations = [], []
    for row in rows:
        total, name = _seconds(row), row.checkpoint
        if total is not None and per_image[name] > 0:
            is_begun = row.finetune_seconds is None
            passed = images.first + (0 if is_begun else images.last)
            compiling = _compile_seconds(row)
            compilations.append(compiling)
            factors.append((total - compiling) / (passed * per_image[name]))
    factor = statistics.median(factors) if factors else _PASSES
    if not compilations:
        compilations = [
            _COMPILATIONS * row.compile_seconds.get("features", 0.0) for row in rows
        ]
    compiling = statistics.median(compilations)
    result = {}
    for row in rows:
        name = row.checkpoint
        if row.finetune_seconds is not None:
            continue
        if row.started is None:
            passes = images.first + images.last
            result[name] = factor * passes * per_image[name] + compiling
        elif row.started.accuracy is not None:
            # Its programs are compiled.
            result[name] = factor * images.last * per_image[name]
    return result


def _compile_seconds(row: Row) -> float:
    if row.finetune_seconds is None and row.started is not None:
        return row.started.compile_seconds
    return row.compile_seconds.get("fine-tuning", 0.0)


def _seconds_per_image(row: Row) -> float | None:
    """Return the time of a forward pass of one image; None if it is not known."""
    total = finite(row.extract_seconds)
    if total is None or not row.extract_images:
        return None
    return (
        max(total - row.compile_seconds.get("features", 0.0), 0.0) / row.extract_images
    )
