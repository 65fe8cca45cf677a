"""Drops learning rates early: only the best goes on after `Sweep.choose_after`.

finetune/runs/TRIAL_untilN.json   each trial up to the choice
finetune/state/TRIAL/             the training state of the best one, which goes on

A fine-tuning can be left after this first part, and go on later.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from etils import epath

from rankckpt_jax.checkpoints.description import Description
from rankckpt_jax.data.splits import Task
from rankckpt_jax.devices import processes
from rankckpt_jax.finetune import results as results_lib
from rankckpt_jax.finetune import trials as trials_lib
from rankckpt_jax.finetune.prepare import (
    Prepared,
    fit_batch,
    metric_name,
    shared_key,
    to_sweep,
)
from rankckpt_jax.finetune.recipes import Recipe, Sweep
from rankckpt_jax.finetune.results import Start, TrialResult
from rankckpt_jax.finetune.sweep_splits import Splits, choose_splits

_log = logging.getLogger(__name__)


def load_start(
    directory: epath.Path,
    checkpoint: Description,
    task: Task,
    sweep: Sweep | Recipe,
    *,
    preprocess: str,
) -> Start | None:
    """Load the result of `start` from the store; None if there is none.

    The arguments are those of `sweep.load`.
    """
    sweep = to_sweep(sweep, task)
    splits = choose_splits(task, sweep)
    sweep = fit_batch(sweep, splits.train)
    shared = shared_key(checkpoint, splits.test, preprocess, sweep)
    parts = []
    for trial in sweep.trials:
        key = trials_lib.trial_key(shared, trial, splits.train, splits.validation)
        step, metric = sweep.choice_step(trial.num_steps), metric_name(task, sweep)
        part = trials_lib.load_until(epath.Path(directory), key, trial, step, metric)
        if part is None:
            return None
        parts.append(part)
    return _summarize(sweep, splits, parts)


def start(prepared: Prepared, description: str) -> Start:
    """Train the trials of a sweep up to the choice of the learning rate.

    `sweep.run` of the same checkpoint and sweep goes on from there.

    Args:
      prepared: The checkpoint and its trials, with `has_two_parts`.
      description: Label of the progress bar.

    Raises:
      InputError, Interrupted: See `sweep.run`.
    """
    sweep, splits = prepared.sweep, prepared.splits
    parts = _train_parts(prepared.context, sweep, splits, description)
    _choose(prepared.context, sweep, parts, description)
    return _summarize(sweep, splits, parts)


def run_grid(
    context: trials_lib.Context, sweep: Sweep, splits: Splits, description: str
) -> tuple[list[TrialResult], TrialResult]:
    """Train all trials up to the choice of the rate, and the chosen ones to their end.

    Args:
      context: Values that all trials share.
      sweep: The trials.
      splits: The images.
      description: Label of the progress bar.

    Returns:
      The results in the order of the grid, and the best of the complete ones.
    """
    parts = _train_parts(context, sweep, splits, description)
    chosen = _choose(context, sweep, parts, description)
    trials, complete = [], []
    for trial, result in zip(sweep.trials, parts, strict=True):
        if trial not in chosen:
            trials.append(dataclasses.replace(result, accuracy=None, values={}))
            continue
        if result.diverged_at < 0:
            [result] = trials_lib.load_or_train(
                context,
                [trial],
                splits.train,
                splits.validation,
                description=f"{description}, rate {trial.learning_rate:g}, "
                f"{trial.num_steps} steps",
            )
        trials.append(result)
        complete.append(result)
    return trials, results_lib.choose(complete)


def _train_parts(
    context: trials_lib.Context, sweep: Sweep, splits: Splits, description: str
) -> list[TrialResult]:
    """Train all trials up to the choice of the rate, one after the other."""
    parts = []
    for number, trial in enumerate(sweep.trials, start=1):
        step = sweep.choice_step(trial.num_steps)
        part = trials_lib.train_until(
            context,
            trial,
            splits.train,
            splits.validation,
            step,
            description=f"{description}, rate {trial.learning_rate:g}, {step} of "
            f"{trial.num_steps} steps, trial {number} of {len(sweep.trials)}",
        )
        parts.append(part)
    return parts


def _choose(
    context: trials_lib.Context,
    sweep: Sweep,
    parts: Sequence[TrialResult],
    description: str,
) -> list[Recipe]:
    """Return the best trial of each number of steps; the others cannot go on."""
    chosen = []
    for num_steps in sweep.num_steps:
        own = [part for part in parts if part.num_steps == num_steps]
        # Processes may differ by rounding, and all must train the same.
        rate = processes.broadcast_from_main(results_lib.choose(own).learning_rate)
        for trial in sweep.trials:
            if trial.num_steps == num_steps and trial.learning_rate == rate:
                chosen.append(trial)
            elif trial.num_steps == num_steps:
                trials_lib.remove_trial_state(context.directory, trial)
        if len(own) > 1:
            _log.info(
                "%s: rate %g is the best after %d of %d steps",
                *(description, rate, sweep.choice_step(num_steps), num_steps),
            )
    return chosen


def _summarize(sweep: Sweep, splits: Splits, parts: Sequence[TrialResult]) -> Start:
    best = results_lib.choose(parts)
    return Start(
        learning_rate=best.learning_rate,
        steps=sweep.choice_step(best.num_steps),
        num_steps=best.num_steps,
        accuracy=best.validation_accuracy,
        num_images=splits.validation.num_examples,
        seconds=sum(part.seconds for part in parts),
        compile_seconds=sum(part.compile_seconds for part in parts),
    )
