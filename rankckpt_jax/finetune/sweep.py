"""Fine-tunes a checkpoint on a task: the trials of a sweep, and the best of them.

finetune/result.json          the result, once all trials are done
finetune/runs/TRIAL.json      the result of each trial, as soon as it is done
finetune/metrics/TRIAL...     see `metrics`
finetune/state/TRIAL/         the training state while a trial runs; see `saves`
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.description import Description
from rankckpt_jax.data import metrics as metrics_lib
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.data.splits import Split, Task
from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import early_choice, loop, metrics
from rankckpt_jax.finetune import results as results_lib
from rankckpt_jax.finetune import step as step_lib
from rankckpt_jax.finetune import trials as trials_lib
from rankckpt_jax.finetune import weights as weights_lib
from rankckpt_jax.finetune.prepare import (
    Prepared,
    fit_batch,
    metric_name,
    prepare,
    shared_key,
    to_sweep,
)
from rankckpt_jax.finetune.recipes import Recipe, Sweep
from rankckpt_jax.finetune.results import SweepResult, TrialResult
from rankckpt_jax.finetune.sweep_splits import Splits, choose_splits
from rankckpt_jax.storage import store

_log = logging.getLogger(__name__)

# Name of the file of a sweep's result, and of the result of the checkpoint that
# successive halving left.
_RESULT, _HALVING_RESULT = "result.json", "halving.json"

# End of the name of the trial on all images.
_FINAL = "_final"


def check(task: Task, sweep: Sweep) -> None:
    """Check that a sweep suits the task and the devices, before the work starts.

    Raises:
      InputError: There are no test images, no validation images can be held out, the
        devices cannot share a batch, or the metric is not defined for the images.
    """
    if "test" not in task.splits or not task.splits["test"].num_examples:
        raise InputError(
            "There are no test images to measure accuracy on",
            where="config.task",
            expected="a folder `test` with images, classes with several images each (a "
            "part is then held out), or config.task.test for TFDS",
            found=task.description,
            fix="add test images, or omit `finetune` from config.stages",
        )
    step_lib.check_batch(sweep.recipe.batch_size, sweep.recipe.accumulate)
    splits = choose_splits(task, sweep)
    recipe = fit_batch(sweep, splits.train).recipe
    step_lib.check_batch(recipe.batch_size, recipe.accumulate)
    metric = metrics_lib.resolve(sweep.metric, task.target)
    for split in (splits.validation, splits.test):
        labels = split.labels
        if labels is not None and not metrics_lib.is_defined(metric.name, labels):
            raise InputError(
                f"{metric.title} is not defined for the images of {split.name}",
                where="config.finetune.metric",
                expected="labels that vary",
                found=f"{len(labels)} images with the same label, or none",
                fix="add images, or choose another metric or config.finetune.select_by",
            )


def load(
    directory: epath.Path,
    checkpoint: Description,
    task: Task,
    sweep: Sweep | Recipe,
    *,
    preprocess: str,
) -> SweepResult | None:
    """Load the result of a sweep from the store; None if the sweep must run.

    Args:
      directory: The checkpoint's `finetune` directory.
      checkpoint: The description of the checkpoint.
      task: The images.
      sweep: The trials; or the recipe of a single one.
      preprocess: The preprocessing; see `preprocess.resize`.
    """
    directory = epath.Path(directory)
    sweep = to_sweep(sweep, task)
    # Complete trials serve where an early choice is asked for.
    for asked in dict.fromkeys((sweep, dataclasses.replace(sweep, choose_after=1.0))):
        path, key = _place(directory, checkpoint, task, asked, preprocess)
        stored = store.load_result(path, key)
        if stored is not None:
            result = results_lib.sweep_from_store(stored.result)
            _restore_metrics(directory, result, len(sweep.trials))
            return result
    return None


def save(
    directory: epath.Path,
    checkpoint: Description,
    task: Task,
    sweep: Sweep,
    result: SweepResult,
    *,
    preprocess: str,
) -> None:
    """Store a result that `load` returns; the other arguments are those of `load`."""
    sweep = to_sweep(sweep, task)
    path, key = _place(epath.Path(directory), checkpoint, task, sweep, preprocess)
    store.save_result(path, key, dataclasses.asdict(result))


def result_key(
    checkpoint: Description, task: Task, sweep: Sweep, *, preprocess: str
) -> dict[str, Any]:
    """Return the inputs that determine a sweep's result; see `load`."""
    sweep = to_sweep(sweep, task)
    return _place(epath.Path(), checkpoint, task, sweep, preprocess)[1]


def _place(
    directory: epath.Path,
    checkpoint: Description,
    task: Task,
    sweep: Sweep,
    preprocess: str,
) -> tuple[epath.Path, dict[str, Any]]:
    """Return the file of a sweep's result, and its key."""
    splits = choose_splits(task, sweep)
    sweep = fit_batch(sweep, splits.train)
    key = {
        **shared_key(checkpoint, splits.test, preprocess, sweep),
        **_sweep_key(sweep, splits, metric_name(task, sweep)),
    }
    return directory / (_HALVING_RESULT if sweep.budget else _RESULT), key


def compile_programs(
    backbone: backbone_lib.Backbone, task: Task, sweep: Sweep | Recipe
) -> None:
    """Compile the programs of a sweep's first trials, without running them.

    They reach `run` by the persistent compilation cache. A linear probe is left out,
    because its programs are small.

    Args:
      backbone: The checkpoint.
      task: The images.
      sweep: The trials; or the recipe of a single one.
    """
    sweep = to_sweep(sweep, task)
    splits = choose_splits(task, sweep)
    sweep = fit_batch(sweep, splits.train)
    if not sweep.recipe.frozen:
        trials = next(_groups(sweep))
        loop.compile_programs(backbone, trials, task.num_outputs, splits.validation)


def run(
    directory: epath.Path,
    backbone: backbone_lib.Backbone,
    task: Task,
    sweep: Sweep | Recipe,
    *,
    preprocess: str,
    cache: ImageCache,
    description: str = "fine-tuning",
    should_stop: Callable[[int], bool] = lambda step: False,
    keep_weights: bool = False,
) -> SweepResult:
    """Run a sweep and store its result.

    Stored trials are not repeated, even if the grid has changed since. A trial that was
    killed resumes from its last saved step.

    Args:
      directory: The checkpoint's `finetune` directory.
      backbone: The checkpoint.
      task: The images.
      sweep: The trials; or the recipe of a single one.
      preprocess: The preprocessing; see `preprocess.resize`.
      cache: Cache of decoded images.
      description: Label of the progress bar.
      should_stop: See `loop.train_trials`.
      keep_weights: Whether to store the weights of the chosen trial; see
        `load_weights`.

    Raises:
      InputError: The sweep does not suit the task or the devices; see `check`.
      Interrupted: `should_stop` returned True; the state is saved.
    """
    prepared = prepare(
        directory,
        backbone,
        task,
        sweep,
        preprocess=preprocess,
        cache=cache,
        description=description,
        should_stop=should_stop,
        keep_weights=keep_weights,
    )
    sweep, splits, context = prepared.sweep, prepared.splits, prepared.context
    directory, metric = context.directory, context.metric
    key = {**context.key, **_sweep_key(sweep, splits, metric)}
    if sweep.chooses_early:
        trials, chosen = early_choice.run_grid(context, sweep, splits, description)
    else:
        trials = list(_run_grid(context, sweep, splits, description))
        chosen = results_lib.choose(trials)
    if splits.final is not None and chosen.accuracy is not None:
        recipe, train, validation, suffix = _chosen(sweep, splits, chosen)
        [chosen] = trials_lib.load_or_train(
            context,
            [recipe],
            train,
            validation,
            suffix=suffix,
            description=f"{description}, on all images",
        )
        trials.append(chosen)
    # A run that was killed after its last trial leaves the state behind.
    trials_lib.remove_state(directory)
    recipe, _, _, suffix = _chosen(sweep, splits, chosen)
    kept = f"{trials_lib.trial_name(recipe)}{suffix}" if keep_weights else ""
    weights_lib.remove(directory, kept)
    result = results_lib.summarize(
        chosen,
        trials,
        recipe=sweep.name,
        seed=sweep.recipe.seed,
        selection="none" if len(sweep.trials) == 1 else sweep.select_by,
        metric=metric,
    )
    store.save_result(directory / _RESULT, key, dataclasses.asdict(result))
    _restore_metrics(directory, result, len(sweep.trials))
    return result


def load_weights(
    prepared: Prepared, result: SweepResult | TrialResult, description: str
) -> dict[str, Any]:
    """Return the weights of the trial that a sweep chose.

    If they were not stored, the trial is trained again. The result is the same on
    devices of the same kind and number.

    Args:
      prepared: The checkpoint, with `keep_weights`.
      result: The result of the sweep, with an accuracy.
      description: Label of the progress bar.

    Returns:
      `params` and `batch_stats` as in `step.State`.

    Raises:
      InputError: The trial diverged when it was trained again.
      Interrupted: See `run`.
    """
    recipe, train, validation, suffix = _chosen(prepared.sweep, prepared.splits, result)
    context = prepared.context
    place = trials_lib.weights_path(context, recipe, suffix)
    key = trials_lib.trial_key(context.key, recipe, train, validation)
    weights = weights_lib.load(place, key)
    if weights is None:
        _log.info(
            "%s: the weights of this result were not kept; training it again (%d "
            "steps, rate %g)",
            *(description, recipe.num_steps, recipe.learning_rate),
        )
        trials_lib.train_again(
            context,
            recipe,
            train,
            validation,
            suffix=suffix,
            description=description,
        )
        weights = weights_lib.load(place, key)
    if weights is None:
        raise InputError(
            "The chosen trial diverged when it was trained again",
            where=description,
            expected="the same number of devices as before",
            fix="remove the checkpoint's directory `finetune`, and run again",
        )
    return weights


def chosen_key(
    checkpoint: Description,
    task: Task,
    sweep: Sweep,
    result: SweepResult,
    *,
    preprocess: str,
) -> dict[str, Any]:
    """Return the inputs that determine the weights that a sweep chose.

    Args:
      checkpoint: The description of the checkpoint.
      task: The images.
      sweep: The trials.
      result: Their result.
      preprocess: The preprocessing; see `preprocess.resize`.
    """
    sweep = to_sweep(sweep, task)
    splits = choose_splits(task, sweep)
    sweep = fit_batch(sweep, splits.train)
    recipe, train, _, _ = _chosen(sweep, splits, result)
    return {
        **shared_key(checkpoint, splits.test, preprocess, sweep),
        **trials_lib.recipe_key(recipe),
        "train": train.fingerprint,
        "classes": list(task.class_names),
        # A trial that was trained again may differ by rounding.
        "metric": metric_name(task, sweep),
        "accuracy": result.accuracy,
    }


def chosen_split(prepared: Prepared, result: SweepResult) -> Split:
    """Return the images that the chosen trial was trained on."""
    return _chosen(prepared.sweep, prepared.splits, result)[1]


def _chosen(
    sweep: Sweep, splits: Splits, chosen: SweepResult | TrialResult
) -> tuple[Recipe, Split, Split, str]:
    """Return (recipe, training and validation images, end of the names of files).

    They are those of the trial on all images if the sweep has one.
    """
    recipe = dataclasses.replace(
        sweep.recipe, learning_rate=chosen.learning_rate, num_steps=chosen.num_steps
    )
    if splits.final is None or chosen.accuracy is None:
        return recipe, splits.train, splits.validation, ""
    return recipe, splits.final, splits.test, _FINAL


def _sweep_key(sweep: Sweep, splits: Splits, metric: str) -> dict[str, Any]:
    """Return the inputs that determine which trials there are, and the choice."""
    return {
        # Absent from results of older versions, which had no other metric.
        **({} if metric == "accuracy" else {"metric": metric}),
        **trials_lib.recipe_key(sweep.recipe),
        "name": sweep.name,
        "learning_rate": list(sweep.learning_rates),
        "num_steps": list(sweep.num_steps),
        "select_by": sweep.select_by,
        **({"choose_after": sweep.choose_after} if sweep.chooses_early else {}),
        "train": splits.train.fingerprint,
        "validation": splits.validation.fingerprint,
        "final": None if splits.final is None else splits.final.fingerprint,
        **({"budget": sweep.budget} if sweep.budget else {}),
    }


def _run_grid(
    context: trials_lib.Context, sweep: Sweep, splits: Splits, description: str
) -> Iterator[TrialResult]:
    """Yield the results of the grid, `trials_at_once` trials at a time."""
    total, done = len(sweep.trials), 0
    for trials in _groups(sweep):
        rates = ", ".join(f"{trial.learning_rate:g}" for trial in trials)
        text = f"{description}, rate {rates}, {trials[0].num_steps} steps"
        if total > 1:
            text += f", trial {done + 1} of {total}"
        yield from trials_lib.load_or_train(
            context, trials, splits.train, splits.validation, description=text
        )
        done += len(trials)


def _groups(sweep: Sweep) -> Iterator[list[Recipe]]:
    """Yield the trials that are trained side by side."""
    if sweep.chooses_early:
        yield from ([trial] for trial in sweep.trials)
        return
    for _, same_steps in itertools.groupby(sweep.trials, lambda trial: trial.num_steps):
        group = list(same_steps)
        for start in range(0, len(group), sweep.trials_at_once):
            yield group[start : start + sweep.trials_at_once]


def _restore_metrics(directory: epath.Path, result: SweepResult, grid: int) -> None:
    """Write CSV files of metrics again that are missing or damaged."""
    for i, trial in enumerate(result.trials):
        name = trials_lib.trial_name(trial) + ("" if i < grid else _FINAL)
        path = trials_lib.metrics_path(directory, name)
        metrics.restore_csv(path, trial.metrics)
