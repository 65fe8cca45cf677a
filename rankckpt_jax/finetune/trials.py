"""Trains trials that share their steps, with evaluation and saving -> `TrialResult`."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import metrics as metrics_lib
from rankckpt_jax.data import targets
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.data.splits import Split
from rankckpt_jax.devices import compilation
from rankckpt_jax.finetune import loop, metrics, recipes, results, saves, weights
from rankckpt_jax.finetune import step as step_lib
from rankckpt_jax.finetune.recipes import Recipe
from rankckpt_jax.finetune.results import TrialResult
from rankckpt_jax.storage import store

# Directory names below `finetune`.
_RESULTS, _METRICS, _STATE = "runs", "metrics", "state"


@dataclasses.dataclass(frozen=True)
class Context:
    """Values that all trials of a sweep share; see `sweep.run`.

    Attributes:
      num_outputs: Width of the new head.
      metric: Name of the metric that accuracies are values of.
      test: The split that final accuracy is measured on.
      key: Inputs that determine the results of all trials.
      cache: Cache of decoded images, or of features for a linear probe.
      keep_weights: Whether to store the weights of each trial that is trained.
    """

    directory: epath.Path
    backbone: backbone_lib.Backbone
    num_outputs: int
    metric: str
    test: Split
    key: dict[str, Any]
    preprocess: str
    cache: ImageCache
    should_stop: Callable[[int], bool]
    keep_weights: bool = False


def load_or_train(
    context: Context,
    trials: Sequence[Recipe],
    train: Split,
    validation: Split,
    *,
    suffix: str = "",
    description: str,
) -> list[TrialResult]:
    """Load the stored results of trials, and train the others side by side.

    Args:
      context: Values that all trials share.
      trials: Recipes that differ only in their learning rate.
      train: The training images.
      validation: The split that accuracy is measured on during training.
      suffix: End of the names of the trials' files.
      description: Label of the progress bar.
    """
    keys = [trial_key(context.key, trial, train, validation) for trial in trials]
    paths = [
        context.directory / _RESULTS / f"{trial_name(trial)}{suffix}.json"
        for trial in trials
    ]
    stored = [store.load_result(*pair) for pair in zip(paths, keys, strict=True)]
    loaded: dict[int, TrialResult] = {}
    for i, entry in enumerate(stored):
        known = None if entry is None else results.trial_from_store(entry.result)
        known = None if known is None else results.by_metric(known, context.metric)
        if known is not None:
            loaded[i] = known
    missing = [i for i in range(len(trials)) if i not in loaded]
    if missing:
        group = [trials[i] for i in missing]
        with _saves(context, group, [keys[i] for i in missing], suffix) as saved:
            trained, state = _train(
                context,
                group,
                train,
                validation,
                saved,
                suffix=suffix,
                description=description,
            )
            for row, (i, result) in enumerate(zip(missing, trained, strict=True)):
                if context.keep_weights and result.diverged_at < 0:
                    place = weights_path(context, trials[i], suffix)
                    row_of = row if len(missing) > 1 else None
                    weights.save(place, keys[i], state, row_of)
                store.save_result(paths[i], keys[i], dataclasses.asdict(result))
                # It has all metrics that are defined for the splits; see `sweep.check`.
                loaded[i] = results.by_metric(result, context.metric) or result
            saved.discard()
    return [loaded[i] for i in range(len(trials))]


@contextlib.contextmanager
def _saves(
    context: Context,
    trials: Sequence[Recipe],
    keys: Sequence[Mapping[str, Any]],
    suffix: str,
) -> Iterator[saves.Saves]:
    """Open the saved state of trials that are trained side by side."""
    directory = context.directory / _STATE / f"{trial_name(trials[0])}{suffix}"
    with contextlib.closing(saves.Saves(directory, {"trials": list(keys)})) as saved:
        yield saved


def trial_key(
    shared: Mapping[str, Any], trial: Recipe, train: Split, validation: Split
) -> dict[str, Any]:
    """Return the inputs that determine the result of a trial.

    Args:
      shared: Those that all trials share, `Context.key`.
      trial: The recipe of the trial.
      train: The training images.
      validation: The split that accuracy is measured on during training.
    """
    splits = {"train": train.fingerprint, "validation": validation.fingerprint}
    return {**shared, **splits, **recipe_key(trial)}


def train_until(
    context: Context,
    trial: Recipe,
    train: Split,
    validation: Split,
    step: int,
    *,
    description: str,
) -> TrialResult:
    """Train a trial up to a step of its schedule, and keep its state to go on.

    The steps are those of the complete trial: the schedule is not shortened. A later
    call with a later step, or `load_or_train`, resumes from here.

    Args:
      context: Values that all trials share.
      trial: The recipe of the complete trial.
      train: The training images.
      validation: The split that accuracy is measured on.
      step: The number of steps, less than `trial.num_steps`.
      description: Label of the progress bar.

    Returns:
      The result after `step` steps, whose `accuracy` is on `validation` too.
    """
    key = trial_key(context.key, trial, train, validation)
    known = load_until(context.directory, key, trial, step, context.metric)
    if known is not None:
        return known
    with _saves(context, [trial], [key], "") as saved:
        [result], _ = _train(
            dataclasses.replace(context, test=validation),
            [trial],
            train,
            validation,
            saved,
            suffix="",
            description=description,
            last_step=step,
        )
    path = _until_path(context.directory, trial, step)
    store.save_result(path, {**key, "until": step}, dataclasses.asdict(result))
    return results.by_metric(result, context.metric) or result


def load_until(
    directory: epath.Path,
    key: Mapping[str, Any],
    trial: Recipe,
    step: int,
    metric: str,
) -> TrialResult | None:
    """Load the result of `train_until`; None if there is none.

    Args:
      directory: The checkpoint's `finetune` directory.
      key: The trial's `trial_key`.
      trial: The recipe of the complete trial.
      step: The number of steps.
      metric: Name of the metric that the accuracies shall be values of.
    """
    path = _until_path(directory, trial, step)
    stored = store.load_result(path, {**key, "until": step})
    if stored is None:
        return None
    return results.by_metric(results.trial_from_store(stored.result), metric)


def _until_path(directory: epath.Path, trial: Recipe, step: int) -> epath.Path:
    return directory / _RESULTS / f"{trial_name(trial)}_until{step}.json"


def train_again(
    context: Context,
    trial: Recipe,
    train: Split,
    validation: Split,
    *,
    suffix: str = "",
    description: str,
) -> None:
    """Train a trial whose result is stored, for its weights.

    Weights of a trial that diverges are not stored.
    """
    key = trial_key(context.key, trial, train, validation)
    with _saves(context, [trial], [key], suffix) as saved:
        [result], state = _train(
            context,
            [trial],
            train,
            validation,
            saved,
            suffix=suffix,
            description=description,
        )
        if result.diverged_at < 0:
            weights.save(weights_path(context, trial, suffix), key, state)
        saved.discard()


def remove_trial_state(directory: epath.Path, trial: Recipe) -> None:
    """Remove the saved training state of one trial."""
    saves.remove(directory / _STATE / trial_name(trial))


def weights_path(context: Context, trial: Recipe, suffix: str = "") -> epath.Path:
    """Return the directory of a trial's kept weights."""
    return weights.directory(context.directory) / f"{trial_name(trial)}{suffix}"


def recipe_key(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe that determine a trial's result."""
    fields = dataclasses.asdict(recipe)
    del fields["save_every"]
    return fields


def trial_name(trial: Recipe | TrialResult) -> str:
    """Return the name of a trial's files."""
    return f"lr{trial.learning_rate:g}_steps{trial.num_steps}"


def metrics_path(directory: epath.Path, name: str) -> epath.Path:
    """Return the path of a trial's metrics, without an extension."""
    return directory / _METRICS / name


def remove_state(directory: epath.Path) -> None:
    """Remove the saved training state of trials that are done."""
    saves.remove(directory / _STATE)


def _train(
    context: Context,
    trials: Sequence[Recipe],
    train: Split,
    validation: Split,
    saved: saves.Saves,
    *,
    suffix: str,
    description: str,
    last_step: int | None = None,
) -> tuple[list[TrialResult], step_lib.State]:
    """Train trials side by side; return their results and the last state.

    Before the last step of the recipe, the state is saved at `last_step`.
    """
    start, compiled = time.monotonic(), compilation.seconds()
    recipe, count = trials[0], len(trials)
    state = step_lib.initial_state(
        context.backbone, context.num_outputs, count, recipe.optimizer
    )
    state, first_step, facts = saved.restore(state)
    before = {
        name: float(facts.get(name, 0.0)) for name in ("seconds", "compile_seconds")
    }
    histories = facts.get("histories", [{} for _ in trials])
    logs = [
        metrics.TrialLog(
            metrics_path(context.directory, trial_name(trial) + suffix),
            metrics.History(**history),
            first_step,
            recipes.schedule(trial),
        )
        for trial, history in zip(trials, histories, strict=True)
    ]
    evaluation_steps, early_stop_step = _evaluation_steps(recipe)
    settings: dict[str, Any] = {
        "preprocess": context.preprocess,
        "cache": context.cache,
    }

    def measure() -> dict[str, float]:
        return {
            "seconds": before["seconds"] + time.monotonic() - start,
            "compile_seconds": before["compile_seconds"]
            + compilation.seconds()
            - compiled,
        }

    scale = targets.scale(train.labels, train.target)

    def evaluate(state: step_lib.State, split: Split) -> list[dict[str, float]]:
        options = {"trials": count, "scale": scale, **settings}
        return loop.evaluate(context.backbone, state, split, recipe, **options)

    def validate(step: int, state: step_lib.State) -> list[dict[str, float]]:
        values = evaluate(state, validation)
        for log, own in zip(logs, values, strict=True):
            log.add_metrics(step, own)
        return values

    def on_losses(step: int, losses: np.ndarray, images_per_second: float) -> None:
        for log, trial_losses in zip(logs, losses, strict=True):
            log.add_losses(step, trial_losses, images_per_second)

    def on_pause(step: int, state: step_lib.State) -> None:
        if step in evaluation_steps:
            validate(step, state)
        save(step, state)

    def save(step: int, state: step_lib.State) -> None:
        for log in logs:
            log.write()
        facts = {
            "histories": [dataclasses.asdict(log.history) for log in logs],
            **measure(),
        }
        saved.save(step, state, facts)

    is_partial = last_step is not None
    last_step = recipe.num_steps if last_step is None else last_step
    save_steps = range(recipe.save_every, last_step, recipe.save_every)
    try:
        trained = loop.train_trials(
            context.backbone,
            state,
            train,
            trials,
            first_step=first_step,
            last_step=last_step,
            pauses={*save_steps, *evaluation_steps} - {last_step},
            on_pause=on_pause,
            on_losses=on_losses,
            should_stop=context.should_stop,
            description=description,
            **settings,
        )
        validated: list[dict[str, float]] = [{} for _ in trials]
        tested = validated
        if not all(log.diverged for log in logs):
            validated = tested = validate(last_step, trained.state)
            if context.test.fingerprint != validation.fingerprint:
                tested = evaluate(trained.state, context.test)
            if is_partial:
                save(last_step, trained.state)
    finally:
        for log in logs:
            log.close()
    measured = {name: seconds / count for name, seconds in measure().items()}
    return [
        _result(
            trial,
            logs[i].history,
            train.target,
            last_step=last_step,
            trained_on=train.name,
            validated_on=validation.name,
            values=tested[i],
            validated=validated[i],
            early_stop_step=early_stop_step,
            final_loss=float(trained.loss[i]),
            **measured,
        )
        for i, trial in enumerate(trials)
    ], trained.state


def _result(
    recipe: Recipe,
    history: metrics.History,
    target: str,
    last_step: int,
    validated: Mapping[str, float],
    **fields: Any,
) -> TrialResult:
    """Return a trial's result, without metrics and loss if the trial diverged."""
    diverged_at = history.diverged_at
    if diverged_at < 0 and not validated:
        # The loss was finite, but the last update gave weights with infinite outputs.
        diverged_at = last_step
    if diverged_at >= 0:
        fields |= {"values": {}, "final_loss": None}
    default, curves = metrics_lib.names(target)[0], history.curves
    result = TrialResult(
        learning_rate=recipe.learning_rate,
        num_steps=recipe.num_steps,
        accuracy=None,
        validation_accuracy=None,
        best_accuracy=None,
        early_stop_accuracy=None,
        curve=curves.get(default, ()),
        curves=curves,
        diverged_at=diverged_at,
        images=(diverged_at if diverged_at >= 0 else last_step) * recipe.batch_size,
        metrics=history.csv(),
        **fields,
    )
    return results.by_metric(result, default) or result


def _evaluation_steps(recipe: Recipe) -> tuple[set[int], int]:
    """Return (steps after which accuracy is measured, the early-stopping step)."""
    steps, count = recipe.num_steps, recipe.evaluations
    early_stop = max(1, round(recipe.early_stop * steps))
    evenly = {round(steps * k / count) for k in range(1, count + 1)}
    return (evenly | {early_stop, steps}) - {0}, early_stop
