"""Fine-tunes a checkpoint on a task: the trials of a sweep, and the best of them.

finetune/result.json          the result, once all trials are done
finetune/runs/TRIAL.json      the result of each trial, as soon as it is done
finetune/metrics/TRIAL...     see `metrics`
finetune/state/               the training state while a trial runs; see `saves`
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.description import Description, describe
from rankckpt_jax.data import metrics as metrics_lib
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data import tasks
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.data.splits import Split, Task
from rankckpt_jax.devices import progress
from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import loop, metrics, probe, restore_batch_norm
from rankckpt_jax.finetune import results as results_lib
from rankckpt_jax.finetune import step as step_lib
from rankckpt_jax.finetune import trials as trials_lib
from rankckpt_jax.finetune.recipes import Recipe, Sweep
from rankckpt_jax.finetune.results import SweepResult, TrialResult
from rankckpt_jax.storage import store

_log = logging.getLogger(__name__)

# Name of the file of a sweep's result.
_RESULT = "result.json"

# Largest norm of the gradient of regression, if a recipe has none. With it, a probe of
# a real MobileNet reached R2 0.80 and 0.77 by two learning rates; without it, 0.72 and
# divergence.
_CLIP_NORM = 1.0

# End of the name of the trial on all images.
_FINAL = "_final"


@dataclasses.dataclass(frozen=True)
class Splits:
    """The images that a sweep uses.

    Attributes:
      train: All trials of the grid are trained on it.
      validation: Settings are compared on it.
      test: The reported accuracy is measured on it.
      final: The chosen setting is trained on it again; None to skip this.
    """

    train: Split
    validation: Split
    test: Split
    final: Split | None


def choose_splits(task: Task, sweep: Sweep) -> Splits:
    """Return the images that a sweep uses; see `Sweep.select_by`.

    If a validation split is needed and the task has none, a part of `train` is used,
    which depends on the recipe's seed.

    Raises:
      InputError: A validation split is needed, and `train` is a stream.
    """
    train, test = task.splits["train"], task.splits["test"]
    trainval = task.splits.get("trainval", train)
    if sweep.select_by == "test" or len(sweep.trials) == 1:
        everything = trainval if sweep.train_on == "trainval" else train
        return Splits(everything, test, test, None)
    final = trainval if sweep.train_on == "trainval" else None
    if "val" in task.splits:
        return Splits(train, task.splits["val"], test, final)
    kept, held_out = tasks.hold_out(train, sweep.recipe.seed)
    return Splits(kept, held_out, test, final)


def splits_used(task: Task, sweep: Sweep) -> tuple[str, ...]:
    """Return the names of the task's splits whose images a sweep reads.

    Raises:
      InputError: See `choose_splits`.
    """
    splits = choose_splits(task, sweep)
    used = [splits.train, splits.validation, splits.test, splits.final]
    # A part of a split is named SPLIT_kept or SPLIT_held.
    names = {split.name.partition("_")[0] for split in used if split is not None}
    return tuple(name for name in task.splits if name in names)


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
    sweep = _to_sweep(sweep, task)
    splits = choose_splits(task, sweep)
    sweep = fit_batch(sweep, splits.train)
    key = {
        **_shared_key(checkpoint, splits.test, preprocess, sweep),
        **_sweep_key(sweep, splits, _metric(task, sweep)),
    }
    stored = store.load_result(directory / _RESULT, key)
    if stored is None:
        return None
    result = results_lib.sweep_from_store(stored.result)
    _restore_metrics(directory, result, len(sweep.trials))
    return result


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
    sweep = _to_sweep(sweep, task)
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

    Raises:
      InputError: The sweep does not suit the task or the devices; see `check`.
      Interrupted: `should_stop` returned True; the state is saved.
    """
    directory = epath.Path(directory)
    sweep = _to_sweep(sweep, task)
    splits = choose_splits(task, sweep)
    asked = sweep.recipe.batch_size
    sweep = fit_batch(sweep, splits.train)
    frozen = sweep.recipe.frozen
    checkpoint = describe(backbone)
    shared_key = _shared_key(checkpoint, splits.test, preprocess, sweep)
    metric = _metric(task, sweep)
    key = {**shared_key, **_sweep_key(sweep, splits, metric)}
    if sweep.recipe.batch_size != asked:
        _log.info(
            "%s: batches of %d images, not %d, because %s has %d",
            *(description, sweep.recipe.batch_size, asked),
            *(splits.train.name, splits.train.num_examples),
        )
    if _restores_batch_norm(checkpoint, sweep):
        with progress.step(description, "restoring the moments of folded batch norm"):
            backbone = restore_batch_norm.restore(
                backbone, splits.train, preprocess=preprocess, cache=cache
            )
    if frozen:
        cache = probe.FeatureCache(
            backbone,
            cache,
            dtype=sweep.recipe.dtype,
            batch_size=sweep.recipe.batch_size,
            description=description,
        )
        backbone = probe.without_head(backbone)
    context = trials_lib.Context(
        directory,
        backbone,
        task.num_outputs,
        metric,
        splits.test,
        shared_key,
        preprocess,
        cache,
        should_stop,
    )
    trials = list(_run_grid(context, sweep, splits, description))
    chosen = results_lib.choose(trials)
    if splits.final is not None and chosen.accuracy is not None:
        recipe = dataclasses.replace(
            sweep.recipe, learning_rate=chosen.learning_rate, num_steps=chosen.num_steps
        )
        [chosen] = trials_lib.load_or_train(
            context,
            [recipe],
            splits.final,
            splits.test,
            suffix=_FINAL,
            description=f"{description}, on all images",
        )
        trials.append(chosen)
    # A run that was killed after its last trial leaves the state behind.
    trials_lib.remove_state(directory)
    result = SweepResult(
        recipe=sweep.name,
        seed=sweep.recipe.seed,
        selection="none" if len(sweep.trials) == 1 else sweep.select_by,
        accuracy=chosen.accuracy,
        best_accuracy=chosen.best_accuracy,
        early_stop_accuracy=chosen.early_stop_accuracy,
        learning_rate=chosen.learning_rate,
        num_steps=chosen.num_steps,
        diverged_at=chosen.diverged_at,
        seconds=sum(trial.seconds for trial in trials),
        compile_seconds=sum(trial.compile_seconds for trial in trials),
        images=sum(trial.images for trial in trials),
        trials=tuple(trials),
        metric=metric,
        values=chosen.values,
    )
    store.save_result(directory / _RESULT, key, dataclasses.asdict(result))
    _restore_metrics(directory, result, len(sweep.trials))
    return result


def _to_sweep(sweep: Sweep | Recipe, task: Task) -> Sweep:
    """Return a sweep for a task; that of a single trial for a recipe."""
    if isinstance(sweep, Recipe):
        rates, steps = (sweep.learning_rate,), (sweep.num_steps,)
        sweep = Sweep("custom", sweep, rates, steps)
    if task.target == "regression" and not sweep.recipe.clip_norm:
        # The gradient of a squared error grows with the error. Rates that suit
        # cross-entropy then diverge.
        recipe = dataclasses.replace(sweep.recipe, clip_norm=_CLIP_NORM)
        sweep = dataclasses.replace(sweep, recipe=recipe)
    return sweep


def _restores_batch_norm(checkpoint: Description, sweep: Sweep) -> bool:
    return checkpoint.has_folded_batch_norm and not sweep.recipe.frozen


def fit_batch(sweep: Sweep, train: Split) -> Sweep:
    """Return the sweep with batches that are no larger than the training split.

    A larger batch would hold images several times. It becomes the largest power of two
    that is not above the number of images, whatever the number of devices, unless there
    are more devices than that.
    """
    recipe = sweep.recipe
    if recipe.batch_size <= train.num_examples:
        return sweep
    largest = 1 << (max(train.num_examples, 1).bit_length() - 1)
    fitting = max(largest, step_lib.num_parts(recipe.accumulate))
    batch_size = min(recipe.batch_size, fitting)
    return dataclasses.replace(
        sweep, recipe=dataclasses.replace(recipe, batch_size=batch_size)
    )


def _shared_key(
    checkpoint: Description, test: Split, preprocess: str, sweep: Sweep
) -> dict[str, Any]:
    """Return the inputs that determine the results of all trials."""
    key = {
        "checkpoint": checkpoint.fingerprint,
        "architecture": checkpoint.architecture,
        "image_size": checkpoint.image_size,
        "input_range": list(checkpoint.input_range),
        "input_mean": list(checkpoint.input_mean),
        "test": test.fingerprint,
        "orientation": test.orientation,
        **preprocess_lib.key(preprocess),
        "forward_version": backbone_lib.FORWARD_VERSION,
        "training_version": step_lib.TRAINING_VERSION,
    }
    if _restores_batch_norm(checkpoint, sweep):
        key["batch_norm"] = "unfolded"
    if (precision := step_lib.product_precision()) != "highest":
        key["precision"] = precision
    return key


def _metric(task: Task, sweep: Sweep) -> str:
    return metrics_lib.resolve(sweep.metric, task.target).name


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
        "train": splits.train.fingerprint,
        "validation": splits.validation.fingerprint,
        "final": None if splits.final is None else splits.final.fingerprint,
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
