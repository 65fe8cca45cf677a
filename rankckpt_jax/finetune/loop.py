"""The training loop, and evaluation."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import metrics as metrics_lib
from rankckpt_jax.data import pipeline, targets
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.data.splits import Split
from rankckpt_jax.devices import mapping, processes, profiling, progress
from rankckpt_jax.errors import Interrupted
from rankckpt_jax.finetune import metrics, recipes
from rankckpt_jax.finetune import step as step_lib
from rankckpt_jax.finetune.recipes import Recipe
from rankckpt_jax.finetune.step import State

_log = logging.getLogger(__name__)

# Steps between reads of the losses: rare enough not to stall the device, frequent
# enough that a diverged trial ends soon.
_STEPS_BETWEEN_READS = 20

OnLosses = Callable[[int, np.ndarray, float], None]
"""Called as `on_losses(step, losses [trials, steps since the last call], images/s)`."""


class TrainingResult(NamedTuple):
    """Result of training.

    Attributes:
      state: State after the last step; useless if the trial diverged.
      loss: Loss of the last batch; see `step._loss`. [T] for T trials.
      diverged_at: First step with a loss that was not finite, or -1; [T] for T trials.
    """

    state: State
    loss: Any
    diverged_at: Any


def train(
    backbone: backbone_lib.Backbone,
    state: State,
    split: Split,
    recipe: Recipe,
    **options: Any,
) -> TrainingResult:
    """Train with one recipe; `options` as for `train_trials`."""
    result = train_trials(backbone, state, split, (recipe,), **options)
    loss, diverged_at = float(result.loss[0]), int(result.diverged_at[0])
    return TrainingResult(result.state, loss, diverged_at)


def train_trials(
    backbone: backbone_lib.Backbone,
    state: State,
    split: Split,
    trials: Sequence[Recipe],
    *,
    preprocess: str,
    cache: ImageCache,
    first_step: int = 0,
    last_step: int | None = None,
    pauses: Collection[int] = (),
    on_pause: Callable[[int, State], None] = lambda step, state: None,
    on_losses: OnLosses = lambda step, losses, images_per_second: None,
    should_stop: Callable[[int], bool] = lambda step: False,
    description: str = "training",
) -> TrainingResult:
    """Train trials that differ only in their learning rate, side by side.

    Args:
      backbone: Its `apply`, image size and input range; its weights are ignored.
      state: Initial state, with a leading axis if there are several trials. Its memory
        is reused.
      split: The training images.
      trials: The recipes.
      preprocess: The preprocessing; see `preprocess.resize`.
      cache: Cache of decoded images.
      first_step: Number of steps that `state` has already taken.
      last_step: Number of steps after which to stop; the recipes' `num_steps` if None.
      pauses: Numbers of steps after which `on_pause` is called.
      on_pause: Called as `on_pause(steps taken, state)`, to save or evaluate the state.
      on_losses: Called with the losses every few steps.
      should_stop: Called after each step with the number of steps taken. If it returns
        True, `on_pause` is called and `Interrupted` is raised.
      description: Label of the progress bar.

    Returns:
      The result. Training ends early if all trials have diverged.

    Raises:
      InputError: The devices cannot share the batch evenly.
      Interrupted: `should_stop` returned True.
    """
    recipe = trials[0]
    per_process = step_lib.check_batch(recipe.batch_size, recipe.accumulate)
    spec = step_lib.step_spec(backbone, recipe, len(trials), split.target)
    step_fn = step_lib.train_step(spec)
    scale = targets.scale(split.labels, split.target)
    scaling = _scaling(backbone)
    last_step = recipe.num_steps if last_step is None else last_step
    rates = np.stack([recipes.schedule(trial) for trial in trials])
    # Row r of process p has index r * process_count + p in the global batch.
    rows = np.arange(per_process, dtype=np.int32) * processes.process_count()
    rows = mapping.shard(rows + processes.process_index())
    batches = pipeline.training_batches(
        split,
        size=backbone.image_size,
        preprocess=preprocess,
        batch_size=per_process,
        seed=recipe.seed,
        first_step=first_step,
        last_step=last_step,
        cache=cache,
    )
    clock = _Clock(first_step, recipe.batch_size)
    unread: list[Any] = []
    loss = np.full(len(trials), math.nan)
    diverged_at = np.full(len(trials), -1)
    total, initial = (n * recipe.batch_size for n in (last_step, first_step))
    with progress.bar(description, total, "image", initial=initial) as bar:
        for step, batch in enumerate(pipeline.ahead(batches), start=first_step + 1):
            rate = rates[:, step - 1] if len(trials) > 1 else rates[0, step - 1]
            hyper = step_lib.hyperparameters(recipe, rate, step - 1)
            labels = targets.standardize(batch.labels, split.target, scale)
            data = (*mapping.shard((batch.images, labels)), rows)
            args = state, scaling, hyper, data
            # The first step compiles.
            if step == first_step + 2:
                state, losses = profiling.run("train", step_fn, *args)
            else:
                state, losses = step_fn(*args)
            unread.append(losses)
            bar.update(recipe.batch_size)
            stopping = should_stop(step) and step < last_step
            pausing = step in pauses or stopping
            if pausing or step % _STEPS_BETWEEN_READS == 0 or step == last_step:
                losses = np.stack([np.asarray(x).reshape(-1) for x in unread], axis=1)
                unread.clear()
                loss = losses[:, -1]
                on_losses(step, losses, clock.images_per_second(step))
                for i in map(int, np.flatnonzero(diverged_at < 0)):
                    diverged_at[i] = metrics.first_not_finite(step, losses[i])
                    if diverged_at[i] >= 0:
                        _log.warning(
                            "%s: loss not finite at step %d (learning rate %g)",
                            *(description, diverged_at[i], trials[i].learning_rate),
                        )
                if (diverged_at >= 0).all():
                    break
                bar.set_postfix(loss=f"{np.nanmin(loss):.3f}", refresh=False)
            if pausing:
                on_pause(step, state)
                clock.resume(step)
            if stopping:
                raise Interrupted(f"{description}: stopped on request at step {step}")
    return TrainingResult(state, loss, diverged_at)


def evaluate(
    backbone: backbone_lib.Backbone,
    state: State,
    split: Split,
    recipe: Recipe,
    *,
    preprocess: str,
    cache: ImageCache,
    trials: int = 1,
    scale: tuple[float, float] = (0.0, 1.0),
) -> list[dict[str, float]]:
    """Return the metrics of each trial on a split, by name.

    Each image counts once: padding is masked, and the outputs of all processes are
    gathered. There are no metrics if any output of the network is not finite.

    Args:
      backbone: As for `train_trials`, like the other arguments.
      state: The trained state.
      split: The images.
      recipe: A recipe of the trials.
      preprocess: The preprocessing.
      cache: Cache of decoded images.
      trials: Number of trials.
      scale: Mean and standard deviation of the numbers that were trained on; see
        `targets.scale`.
    """
    per_process = _evaluation_batch(recipe, split)
    apply = step_lib.step_spec(backbone, recipe, trials, split.target).apply
    predict = step_lib.predict(apply, trials)
    scaling = _scaling(backbone)

    def outputs() -> Iterator[Any]:
        batches = pipeline.batches(
            split,
            size=backbone.image_size,
            preprocess=preprocess,
            batch_size=per_process,
            cache=cache,
        )
        for batch in pipeline.ahead(batches):
            labels = targets.standardize(batch.labels, split.target, scale)
            data = mapping.shard((batch.images, labels, batch.mask))
            yield predict(state, scaling, data)

    predicted, true = [], []
    for output in mapping.delayed(outputs()):
        logits, labels, mask = map(np.asarray, output)
        of_trials = logits[None] if trials == 1 else np.moveaxis(logits, 1, 0)
        predicted.append(of_trials[:, mask])
        true.append(labels[mask])
    labels = np.concatenate(true)
    results = []
    for logits in np.concatenate(predicted, axis=1):
        values = logits[:, 0] if split.target == "regression" else logits
        is_finite = np.isfinite(values).all()
        results.append(
            metrics_lib.compute(values, labels, split.target) if is_finite else {}
        )
    return results


def compile_programs(
    backbone: backbone_lib.Backbone,
    trials: Sequence[Recipe],
    num_outputs: int,
    validation: Split,
) -> None:
    """Compile what `train_trials` and `evaluate` call, for the persistent cache.

    Args:
      backbone: As for `train_trials`, like `trials`.
      trials: The recipes.
      num_outputs: Width of the head.
      validation: The split that `evaluate` is called with.
    """
    recipe, count, target = trials[0], len(trials), validation.target
    step_fn, shapes = train_program(backbone, trials, num_outputs, target)
    mapping.lower(step_fn, *shapes).compile()
    state, scaling, *_ = shapes
    batch = _evaluation_batch(recipe, validation)
    images, labels, rows = _batch_shapes(backbone, batch, num_outputs, target)
    mask = jax.ShapeDtypeStruct(rows.shape, bool)
    apply = step_lib.step_spec(backbone, recipe, count, target).apply
    predict = step_lib.predict(apply, count)
    mapping.lower(predict, state, scaling, (images, labels, mask)).compile()


def train_program(
    backbone: Any,
    trials: Sequence[Recipe],
    num_outputs: int,
    target: str = "classes",
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the step that `train_trials` calls and the shapes of its arguments.

    Args:
      backbone: A `Backbone`. Only `apply`, `feature_dim`, `image_size` and the shapes
        of `variables` are read.
      trials: The recipes.
      num_outputs: Width of the head.
      target: Kind of the labels, one of `data.targets.TARGETS`.
    """
    recipe, count = trials[0], len(trials)
    state = step_lib.initial_shapes(backbone, num_outputs, count, recipe.optimizer)
    scaling = mapping.replicated_shapes(preprocess_lib.scaling_shapes())
    rate = np.zeros(count) if count > 1 else 0.0
    hyper = step_lib.hyperparameters(recipe, rate, 0)
    per_process = step_lib.check_batch(recipe.batch_size, recipe.accumulate)
    step_fn = step_lib.train_step(step_lib.step_spec(backbone, recipe, count, target))
    data = _batch_shapes(backbone, per_process, num_outputs, target)
    return step_fn, (state, scaling, hyper, data)


def _batch_shapes(
    backbone: Any, per_process: int, num_outputs: int, target: str
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Return the shapes of images, labels and rows on the devices."""
    devices, size = mapping.local_device_count(), backbone.image_size
    rows = jax.ShapeDtypeStruct((devices, per_process // devices), np.int32)
    images = jax.ShapeDtypeStruct((*rows.shape, size, size, 3), preprocess_lib.DTYPE)
    example = np.zeros((1, num_outputs) if target == "multi_label" else 1)
    example = targets.standardize(targets.to_array(example, target), target, (0, 1))
    labels = jax.ShapeDtypeStruct((*rows.shape, *example.shape[1:]), example.dtype)
    return images, labels, rows


def _evaluation_batch(recipe: Recipe, split: Split) -> int:
    return pipeline.fit_batch(
        math.ceil(recipe.batch_size / processes.process_count()), split.num_examples
    )


def _scaling(backbone: backbone_lib.Backbone) -> Any:
    return mapping.replicate(
        preprocess_lib.scaling(backbone.input_range, backbone.input_mean)
    )


class _Clock:
    """Measures images per second."""

    def __init__(self, first_step: int, batch_size: int):
        self._batch_size = batch_size
        self._step, self._time = first_step, time.monotonic()

    def images_per_second(self, step: int) -> float:
        """Return the rate since the last call."""
        now = time.monotonic()
        images = (step - self._step) * self._batch_size
        rate = images / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        return rate

    def resume(self, step: int) -> None:
        """Exclude the time of a pause from the rate."""
        self._step, self._time = step, time.monotonic()
