"""Fine-tunes the most promising checkpoints within a budget of time.

`prediction.planning` decides what comes next. The budget is that of all fine-tunings of
the task that are stored in the work directory, so that a run which is started again
with the same budget does not fine-tune more, and one with a larger budget goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import statistics
from collections.abc import Mapping, Sequence

from rankckpt_jax.devices import processes, signals
from rankckpt_jax.errors import InputError, Interrupted
from rankckpt_jax.finetune import Sweep
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
    stored = [name for name in names if by_name[name].finetune_seconds is not None]
    _log.info(
        "%s: fine-tuning up to %d checkpoints within %s%s",
        *(task, len(names), format_seconds(budget)),
        f", of which {format_seconds(_used(by_name))} are used by {len(stored)} stored "
        "results"
        if stored
        else "",
    )
    number = 0
    while True:
        if signals.should_stop():
            raise Interrupted(f"{task}: stopped before the next fine-tuning")

        decide = functools.partial(_decide, context, by_name, names)
        step = processes.sync_errors(decide)
        # Processes may differ by rounding and time, and all must train the same.
        name, reason = processes.broadcast_from_main([step.checkpoint, step.reason])
        if not name:
            _log.info("%s: no more fine-tuning, because %s", task, reason)
            return list(by_name.values())
        number += 1
        _log.info("%s: fine-tuning %s next, because %s", task, name, reason)
        row = checkpoint.finetune_later(
            context, members[name], by_name[name], f"[{number}] {name}"
        )
        by_name[name] = row
        recorder.add(row)
        if (accuracy := row.finite_accuracy()) is not None:
            _log.info(
                "%s: %s reaches %s; %s of %s used",
                *(task, name, format_metric(accuracy, context.metric)),
                *(format_seconds(_used(by_name)), format_seconds(budget)),
            )


def _used(rows: Mapping[str, Row]) -> float:
    """Return the seconds of all fine-tunings."""
    return sum(finite(row.finetune_seconds) or 0.0 for row in rows.values())


def _decide(
    context: RunContext, rows: Mapping[str, Row], names: Sequence[str]
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
    expected = expected_seconds(list(rows.values()), context.sweep)
    # One that failed or diverged is not tried again.
    seconds = {
        name: expected[name] for name in usable if rows[name].finetune_seconds is None
    }
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


def expected_seconds(rows: Sequence[Row], sweep: Sweep) -> dict[str, float]:
    """Return the time that fine-tuning each checkpoint is expected to take.

    It follows from the time of its features, and from the fine-tunings that are
    finished: the median of their times per forward pass, and of their compile times.

    Args:
      rows: All rows.
      sweep: The trials of each checkpoint.
    """
    images = len(sweep.learning_rates) * sum(sweep.num_steps) * sweep.recipe.batch_size
    forward = {row.checkpoint: _seconds_per_image(row) for row in rows}
    known = [seconds for seconds in forward.values() if seconds is not None]
    usual = statistics.median(known) if known else 0.0
    passes = {
        name: images * (usual if seconds is None else seconds)
        for name, seconds in forward.items()
    }
    factors, compilations = [], []
    for row in rows:
        total = finite(row.finetune_seconds)
        if total is not None and passes[row.checkpoint] > 0:
            compiling = row.compile_seconds.get("fine-tuning", 0.0)
            compilations.append(compiling)
            factors.append((total - compiling) / passes[row.checkpoint])
    factor = statistics.median(factors) if factors else _PASSES
    if not compilations:
        compilations = [
            _COMPILATIONS * row.compile_seconds.get("features", 0.0) for row in rows
        ]
    compiling = statistics.median(compilations)
    return {name: factor * seconds + compiling for name, seconds in passes.items()}


def _seconds_per_image(row: Row) -> float | None:
    """Return the time of a forward pass of one image; None if it is not known."""
    total = finite(row.extract_seconds)
    if total is None or not row.extract_images:
        return None
    return (
        max(total - row.compile_seconds.get("features", 0.0), 0.0) / row.extract_images
    )
