"""Trains trials that share their steps, with evaluation and saving -> `TrialResult`."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import metrics as metrics_lib
from rankckpt_jax.data import targets
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.data.splits import Split
from rankckpt_jax.devices import compilation
from rankckpt_jax.finetune import loop, metrics, recipes, results, saves
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
    splits = {"train": train.fingerprint, "validation": validation.fingerprint}
    keys = [{**context.key, **splits, **recipe_key(trial)} for trial in trials]
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
        key = {"trials": [keys[i] for i in missing]}
        directory = context.directory / _STATE
        with contextlib.closing(saves.Saves(directory, key)) as saved:
            trained = _train(
                context,
                [trials[i] for i in missing],
                train,
                validation,
                saved,
                suffix=suffix,
                description=description,
            )
            for i, result in zip(missing, trained, strict=True):
                store.save_result(paths[i], keys[i], dataclasses.asdict(result))
                # It has all metrics that are defined for the splits; see `sweep.check`.
                loaded[i] = results.by_metric(result, context.metric) or result
            saved.discard()
    return [loaded[i] for i in range(len(trials))]


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
) -> list[TrialResult]:
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
        for log in logs:
            log.write()
        facts = {
            "histories": [dataclasses.asdict(log.history) for log in logs],
            **measure(),
        }
        saved.save(step, state, facts)

    last_step = recipe.num_steps
    save_steps = range(recipe.save_every, last_step, recipe.save_every)
    try:
        trained = loop.train_trials(
            context.backbone,
            state,
            train,
            trials,
            first_step=first_step,
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
    finally:
        for log in logs:
            log.close()
    measured = {name: seconds / count for name, seconds in measure().items()}
    return [
        _result(
            trial,
            logs[i].history,
            train.target,
            trained_on=train.name,
            validated_on=validation.name,
            values=tested[i],
            validated=validated[i],
            early_stop_step=early_stop_step,
            final_loss=float(trained.loss[i]),
            **measured,
        )
        for i, trial in enumerate(trials)
    ]


def _result(
    recipe: Recipe,
    history: metrics.History,
    target: str,
    validated: Mapping[str, float],
    **fields: Any,
) -> TrialResult:
    """Return a trial's result, without metrics and loss if the trial diverged."""
    diverged_at = history.diverged_at
    if diverged_at < 0 and not validated:
        # The loss was finite, but the last update gave weights with infinite outputs.
        diverged_at = recipe.num_steps
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
        images=(diverged_at if diverged_at >= 0 else recipe.num_steps)
        * recipe.batch_size,
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
