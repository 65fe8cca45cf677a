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
    wanted = {
        "architecture": architecture,
        "image_size": image_size,
        "stages": list(stages),
        "images": task.splits["train"].fingerprint,
        "preprocess": preprocess,
        **dataclasses.asdict(recipe),
    }
    place = directory / "pool.json"
    found = store.load_result(place, wanted)
    if found is not None and _are_whole(directory, found.result.get("files")):
        # Still there where a run was killed just after the pool was complete.
        saves.remove(directory / "state")
        return False
    backbone = from_scratch(architecture, image_size, recipe.seed)
    start = finetune.initial_state(backbone, task.num_classes)
    with contextlib.closing(saves.Saves(directory / "state", wanted)) as kept:
        state, first, facts = kept.restore(start)
        saved = dict(facts.get("files", {}))
        if not _are_whole(directory, saved):
            kept.forget()
            state, first, saved = start, 0, {}

        def keep(step: int, state: finetune.State) -> None:
            kept.save(step, state, {"files": saved})

        for stage in sorted(stages):
            name = f"step_{stage}"
            if name in saved:
                continue
            description = f"pre-training {architecture} to step {stage}"
            state, loss, diverged_at = finetune.train(
                backbone,
                state,
                task.splits["train"],
                recipe,
                preprocess=preprocess,
                cache=cache,
                first_step=first,
                last_step=stage,
                on_pause=keep,
                should_stop=lambda step: signals.should_stop(),
                description=description,
            )
            if diverged_at >= 0:
                raise FloatingPointError(
                    f"Pre-training diverged at step {diverged_at}; a lower "
                    "config.pretrain.learning_rate may mend it"
                )
            first = stage
            saved[name] = {}
            if processes.is_main_process():
                saved[name] = _save(architecture, state, directory / name)
            keep(stage, state)
            kept.wait()
            # The random initialization has no loss.
            told = f", loss {loss:.3f}" if stage else ""
            _log.info("pre-trained to step %d%s", stage, told)
        store.save_result(place, wanted, {"files": saved})
        kept.discard()
    processes.barrier("a pool is made")
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
    architecture: str, state: finetune.State, place: epath.Path
) -> dict[str, str]:
    """Writes `place/model.ckpt`, all of it or nothing; returns its files' checksums."""
    params = {**state.params["backbone"], "logits": state.params["head"]}
    variables = {"params": params, "batch_stats": state.batch_stats}
    # TensorFlow leaves files of random names behind where it is killed.
    partial = place.parent / f".{place.name}.partial"
    for directory in (partial, place):
        if directory.exists():
            directory.rmtree()
    checkpoints.save_slim(
        architecture, jax.tree.map(np.asarray, variables), partial / "model.ckpt"
    )
    partial.rename(place)
    return files.digest_files(place)


def _are_whole(
    directory: epath.Path, saved: Mapping[str, Mapping[str, str]] | None
) -> bool:
    """Whether checkpoints are as they were written; the same on all processes.

    Args:
      directory: The pool's.
      saved: Checksums by checkpoint; None of a pool whose maker kept none.
    """
    whole = saved is not None
    if saved is not None and processes.is_main_process():
        whole = all(
            files.verify_checksums(directory / name, saved[name]) for name in saved
        )
    return processes.broadcast_from_main(whole)
