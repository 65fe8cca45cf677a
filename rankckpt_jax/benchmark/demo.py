"""Makes a pool of checkpoints where there is none: stages of one pre-training run.

Group II of the benchmark in miniature: one network, trained from its random
initialization on a source task, saved as a TF-Slim checkpoint after given numbers of
steps. The demo ranks such a pool.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rankckpt_jax import checkpoints, finetune, models
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import pipeline
from rankckpt_jax.data.tasks import Task
from rankckpt_jax.devices import processes, signals
from rankckpt_jax.finetune import saves
from rankckpt_jax.storage import files, store

_log = logging.getLogger(__name__)


def pool(
    directory: epath.Path,
    task: Task,
    *,
    architecture: str,
    image_size: int,
    stages: tuple[int, ...],
    recipe: finetune.Recipe,
    preprocess: str,
    cache: pipeline.ImageCache,
) -> bool:
    """Pre-trains and saves one checkpoint per stage, unless they are there already.

    A run that was killed goes on from the last stage that it saved.

    Args:
      directory: Receives `step_N/model.ckpt` for each N of `stages`.
      task: The source task; all of its training images are used.
      architecture: A name that `models.create` knows.
      image_size: Side of the square images, in pixels.
      stages: Numbers of steps, ascending; 0 is the random initialization.
      recipe: How to train; its `num_steps` is overruled by the last stage.
      preprocess: See `preprocess.resize`.
      cache: Where decoded images are kept.

    Returns:
      Whether anything had to be computed.
    """
    directory = epath.Path(directory)
    recipe = dataclasses.replace(recipe, num_steps=max(stages))
    key = {
        "architecture": architecture,
        "image_size": image_size,
        "stages": list(stages),
        "images": task.splits["train"].fingerprint,
        "preprocess": preprocess,
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
        return False
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
            loss_text = f", loss {loss:.3f}" if stage else ""
            _log.info("pre-trained to step %d%s", stage, loss_text)
        saved.discard()
    processes.barrier("pool complete")
    return True


def from_scratch(
    architecture: str, image_size: int, seed: int
) -> backbone_lib.Backbone:
    """A backbone at its random initialization.

    Args:
      architecture: A name that `models.create` knows.
      image_size: Side of the square images, in pixels; 0 for the architecture's own.
      seed: Decides the weights.
    """
    module = models.create(architecture)
    image_size = image_size or models.default_image_size(architecture)
    image = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    variables: Any = jax.jit(module.init)(jax.random.key(seed), image)
    return backbone_lib.create(
        architecture,
        jax.tree.map(np.asarray, dict(variables)),
        image_size=image_size,
        name=f"{architecture}_from_scratch",
        fingerprint=files.digest("random", architecture, str(seed)),
        source="random initialization",
    )


def _save(
    architecture: str, state: finetune.State, place: epath.Path, key: Mapping[str, Any]
) -> None:
    """Store `place/model.ckpt`, a TF-Slim checkpoint, and its manifest."""
    params = {**state.params["backbone"], "logits": state.params["head"]}
    variables = {"params": params, "batch_stats": state.batch_stats}
    # A killed TensorFlow leaves files with random names.
    partial = place.parent / f".{place.name}.partial"
    for directory in (partial, place):
        if directory.exists():
            directory.rmtree()
    checkpoints.save_slim(
        architecture, jax.tree.map(np.asarray, variables), partial / "model.ckpt"
    )
    partial.rename(place)
    store.save_files(place, key, {})
