"""Prepares a checkpoint for training: what its trials share, and their keys."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.description import Description, describe
from rankckpt_jax.data import metrics as metrics_lib
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.data.splits import Split, Task
from rankckpt_jax.devices import progress
from rankckpt_jax.finetune import probe, restore_batch_norm
from rankckpt_jax.finetune import step as step_lib
from rankckpt_jax.finetune import trials as trials_lib
from rankckpt_jax.finetune.recipes import Recipe, Sweep
from rankckpt_jax.finetune.sweep_splits import Splits, choose_splits

_log = logging.getLogger(__name__)

# Largest norm of the gradient of regression, if a recipe has none. With it, a probe of
# a real MobileNet reached R2 0.80 and 0.77 by two learning rates; without it, 0.72 and
# divergence.
_CLIP_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A checkpoint that is ready to be trained.

    Attributes:
      sweep: The sweep, with a batch size that fits.
      splits: The images that it uses.
      context: Values that its trials share.
    """

    sweep: Sweep
    splits: Splits
    context: trials_lib.Context


def prepare(
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
) -> Prepared:
    """Prepare the training of a checkpoint; the arguments are those of `run`.

    The moments of folded batch norm are restored, and for a linear probe the network
    is replaced by its features.
    """
    sweep = to_sweep(sweep, task)
    splits = choose_splits(task, sweep)
    asked = sweep.recipe.batch_size
    sweep = fit_batch(sweep, splits.train)
    checkpoint = describe(backbone)
    key = shared_key(checkpoint, splits.test, preprocess, sweep)
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
    if sweep.recipe.frozen:
        cache = probe.FeatureCache(
            backbone,
            cache,
            dtype=sweep.recipe.dtype,
            batch_size=sweep.recipe.batch_size,
            description=description,
        )
        backbone = probe.without_head(backbone)
    context = trials_lib.Context(
        epath.Path(directory),
        backbone,
        task.num_outputs,
        metric_name(task, sweep),
        splits.test,
        key,
        preprocess,
        cache,
        should_stop,
        keep_weights,
    )
    return Prepared(sweep, splits, context)


def to_sweep(sweep: Sweep | Recipe, task: Task) -> Sweep:
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


def shared_key(
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


def metric_name(task: Task, sweep: Sweep) -> str:
    """Return the name of the metric that a sweep's accuracies are values of."""
    return metrics_lib.resolve(sweep.metric, task.target).name
