"""Makes a pool of checkpoints where there is none: stages of one pre-training run.

Group II of the benchmark in miniature: one network, trained from its random
initialisation on a source task, saved as a TF-Slim checkpoint after given numbers of
steps. The demo ranks such a pool.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rankckpt_jax import checkpoints, finetune, models, parallel, store
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import pipeline
from rankckpt_jax.data.tasks import Task

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

    Args:
      directory: Receives `step_N/model.ckpt` for each N of `stages`.
      task: The source task; all of its training images are used.
      architecture: A name that `models.create` knows.
      image_size: Side of the square images, in pixels.
      stages: Numbers of steps, ascending; 0 is the random initialisation.
      recipe: How to train; its `num_steps` is overruled by the last stage.
      preprocess: See `preprocess.resize`.
      cache: Where decoded images are kept.

    Returns:
      Whether anything had to be computed.
    """
    directory = epath.Path(directory)
    recipe = dataclasses.replace(recipe, num_steps=max(stages))
    wanted = {
        "architecture": architecture,
        "image_size": image_size,
        "stages": list(stages),
        "images": task.splits["train"].fingerprint,
        "preprocess": preprocess,
        **dataclasses.asdict(recipe),
    }
    place = directory / "pool.json"
    if store.load_result(place, wanted) is not None:
        return False
    backbone = from_scratch(architecture, image_size, recipe.seed)
    state = finetune.initial_state(backbone, task.num_classes)
    first = 0
    for stage in sorted(stages):
        state, loss, diverged_at = finetune.train(
            backbone,
            state,
            task.splits["train"],
            recipe,
            preprocess=preprocess,
            cache=cache,
            first_step=first,
            last_step=stage,
            should_stop=lambda step: parallel.should_stop(),
            description=f"pre-training {architecture} to step {stage}",
        )
        if diverged_at >= 0:
            raise FloatingPointError(
                f"Pre-training diverged at step {diverged_at}; a lower "
                "config.pretrain.learning_rate may mend it"
            )
        first = stage
        if parallel.is_main_process():
            _save(architecture, state, directory / f"step_{stage}" / "model.ckpt")
        _log.info("pre-trained to step %d, loss %.3f", stage, loss)
    store.save_result(place, wanted, {})
    parallel.barrier("a pool is made")
    return True


def from_scratch(
    architecture: str, image_size: int, seed: int
) -> backbone_lib.Backbone:
    """A backbone at its random initialisation.

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
        fingerprint=store.digest("random", architecture, str(seed)),
        source="random initialisation",
    )


def _save(architecture: str, state: finetune.State, path: epath.Path) -> None:
    params = {**state.params["backbone"], "logits": state.params["head"]}
    variables = {"params": params, "batch_stats": state.batch_stats}
    checkpoints.save_slim(architecture, jax.tree.map(np.asarray, variables), path)
