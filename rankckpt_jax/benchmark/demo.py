"""The miniature NeuCRaB behind configs/demo.py: stages of one pre-training run.

One network is trained from random initialization on a source task, and saved as a
TF-Slim checkpoint after given numbers of steps, like Group II of the benchmark.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rankckpt_jax import checkpoints as checkpoints_lib
from rankckpt_jax import finetune, models
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.sources import slim
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.data.tasks import Task
from rankckpt_jax.devices import processes, signals
from rankckpt_jax.finetune import saves
from rankckpt_jax.storage import files, store

_log = logging.getLogger(__name__)


def checkpoints(directory: epath.Path, stages: Iterable[int]) -> list[tuple[str, str]]:
    """Return (name, path) of the checkpoints that `pretrain` writes.

    Args:
      directory: The pool's directory.
      stages: Numbers of steps.
    """
    names = [f"step_{step}" for step in sorted(stages)]
    return [(name, str(directory / name / "model.ckpt")) for name in names]


def pretrain(
    directory: epath.Path,
    task: Task,
    *,
    architecture: str,
    image_size: int,
    stages: tuple[int, ...],
    recipe: finetune.Recipe,
    preprocess: str,
    cache: ImageCache,
) -> None:
    """Pre-train a network and save one checkpoint per stage, if they are not cached.

    An interrupted run resumes from the last stage that it saved.

    Args:
      directory: Receives `step_N/model.ckpt` for each N of `stages`.
      task: Source task; all of its training images are used.
      architecture: A name in `models.names()`.
      image_size: Side of the square images in pixels.
      stages: Numbers of steps in ascending order; 0 is the random initialization.
      recipe: Hyperparameters. `num_steps` is replaced by the last stage.
      preprocess: `config.preprocess`; see `preprocess.resolve`.
      cache: Cache of decoded images.
    """
    directory = epath.Path(directory)
    recipe = dataclasses.replace(recipe, num_steps=max(stages))
    preprocess = preprocess_lib.resolve(preprocess, slim.own_transform(architecture))
    key = {
        "architecture": architecture,
        "image_size": image_size,
        "stages": list(stages),
        "images": task.splits["train"].fingerprint,
        **preprocess_lib.key(preprocess),
        "training_version": finetune.TRAINING_VERSION,
        **dataclasses.asdict(recipe),
    }
    missing = [
        stage
        for stage in sorted(stages)
        if store.load_files(directory / f"step_{stage}", key) is None
    ]
    if not missing:
        # A run that was killed after the last stage leaves its state.
        saves.remove(directory / "state")
        _log.info("pre-training: loaded cached checkpoints")
        return
    backbone = from_scratch(architecture, image_size, recipe.seed)
    start = finetune.initial_state(backbone, task.num_classes)
    with contextlib.closing(saves.Saves(directory / "state", key)) as saved:
        state, first, _ = saved.restore(start)
        if first > missing[0]:
            saved.discard()
            state, first = start, 0

        def save(step: int, state: finetune.State) -> None:
            saved.save(step, state, {})

        for stage in missing:
            state, loss, diverged_at = finetune.train(
                backbone,
                state,
                task.splits["train"],
                recipe,
                preprocess=preprocess,
                cache=cache,
                first_step=first,
                last_step=stage,
                on_pause=save,
                should_stop=lambda step: signals.should_stop(),
                description=f"pre-training {architecture} to step {stage}",
            )
            if diverged_at >= 0:
                raise FloatingPointError(
                    f"Pre-training diverged at step {diverged_at}; try a lower "
                    "config.pretrain.learning_rate"
                )
            first = stage
            if processes.is_main_process():
                _save(architecture, state, directory / f"step_{stage}", key)
            save(stage, state)
            # The random initialization has no loss.
            text = f" (loss {loss:.3f})" if stage else ""
            _log.info("pre-training: saved step %d%s", stage, text)
        saved.discard()
    processes.barrier("the pool is complete")


def from_scratch(
    architecture: str, image_size: int, seed: int
) -> backbone_lib.Backbone:
    """Return a randomly initialized backbone.

    Args:
      architecture: A name in `models.names()`.
      image_size: Side of the square images in pixels; 0 for the architecture's default.
      seed: Seed of the initialization.
    """
    module = models.create(architecture)
    image_size = image_size or models.get(architecture).image_size
    image = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    variables: Any = jax.jit(module.init)(jax.random.key(seed), image)
    return backbone_lib.create(
        architecture,
        jax.tree.map(np.asarray, dict(variables)),
        image_size=image_size,
        name=f"{architecture}_from_scratch",
        fingerprint=files.digest("random", architecture, str(seed)),
        source="random initialization",
        own_transform=slim.own_transform(architecture),
    )


def _save(
    architecture: str,
    state: finetune.State,
    directory: epath.Path,
    key: Mapping[str, Any],
) -> None:
    """Store `directory/model.ckpt`, a TF-Slim checkpoint, and its manifest."""
    params = {**state.params["backbone"], "logits": state.params["head"]}
    variables = {"params": params, "batch_stats": state.batch_stats}
    # A killed TensorFlow leaves files with random names.
    partial = directory.parent / f".{directory.name}.partial"
    for stale in (partial, directory):
        if stale.exists():
            stale.rmtree()
    checkpoints_lib.save_slim(
        architecture, jax.tree.map(np.asarray, variables), partial / "model.ckpt"
    )
    partial.rename(directory)
    store.save_files(directory, key, {})
