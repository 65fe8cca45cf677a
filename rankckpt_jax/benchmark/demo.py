"""NeuCRaB in miniature, behind configs/demo.py: a pool that the demo pre-trains.

Small networks are trained from random initialization on scikit-learn's digits, and
saved as TF-Slim checkpoints. As in the benchmark, the pool has three groups:

- Group I differs in supervision: labels, the prediction of rotations (Gidaris et al.,
  ICLR 2018), random labels (Zhang et al., ICLR 2017), and random weights.
- Group II is one training run with labels, saved after several numbers of steps.
- Group III differs in architecture: each network at the same stages.

All training runs of an architecture share their compiled program, because their heads
have the same width.
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

from rankckpt_jax import checkpoints as checkpoints_lib
from rankckpt_jax import finetune, models
from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.sources import slim
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data import tasks
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.data.splits import Split, array_split
from rankckpt_jax.devices import processes, signals, target
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.finetune import saves
from rankckpt_jax.storage import files, store

_log = logging.getLogger(__name__)

LABELS, ROTATION, RANDOM_LABELS = "labels", "rotation", "random_labels"

_COMPILER_OPTIONS = {"cpu": {"xla_backend_optimization_level": 0}}
"""Of random initialization, by platform. It runs once, and without optimization it
compiles in a third of the time."""

_ROTATIONS = 4
"""Number of classes of `rotation`."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of the pool.

    Attributes:
      name: Name of its directory.
      groups: The groups of `neucrab.GROUPS` that it belongs to.
      architecture: A name in `models.names()`.
      supervision: LABELS, ROTATION or RANDOM_LABELS.
      steps: Number of training steps; 0 for random weights.
    """

    name: str
    groups: tuple[str, ...]
    architecture: str
    supervision: str
    steps: int


def checkpoints(settings: Any) -> tuple[Checkpoint, ...]:
    """Return the checkpoints that `pretrain` writes, run by run.

    Args:
      settings: `config.pretrain`; see configs/demo.py.

    Raises:
      InputError: A name is unknown, or there are no stages.
    """
    mixed, stages, networks = neucrab.GROUPS
    steps = sorted(set(settings.stages))
    if not steps or steps[0] < 0 or steps[-1] == 0:
        raise InputError(
            "The pool has no training stages",
            where="config.pretrain.stages",
            expected="numbers of steps, at least one of them above 0",
            found=str(settings.stages),
            fix="for example --config.pretrain.stages='(0, 100)'",
        )
    for name in settings.other_supervision:
        if name not in (others := (ROTATION, RANDOM_LABELS)):
            where = "config.pretrain.other_supervision"
            raise unknown_name("supervision", name, others, where)
    first, last = settings.architecture, steps[-1]
    made = []
    for step in steps:
        groups = [stages]
        if step in (0, last):
            groups.insert(0, mixed)
        if step:
            groups.append(networks)
        made.append(Checkpoint(_name(LABELS, step), tuple(groups), first, LABELS, step))
    for supervision in settings.other_supervision:
        name = _name(supervision, last)
        made.append(Checkpoint(name, (mixed,), first, supervision, last))
    for architecture in settings.other_architectures:
        models.get(architecture)
        for step in filter(None, steps):
            name = f"{architecture}_{_name(LABELS, step)}"
            made.append(Checkpoint(name, (networks,), architecture, LABELS, step))
    return tuple(made)


def _name(supervision: str, steps: int) -> str:
    return f"{supervision}_{steps}" if steps else "random_weights"


def path(directory: epath.Path, checkpoint: Checkpoint) -> str:
    """Return the path of a checkpoint of the pool, as `checkpoints.load` takes it."""
    return str(directory / checkpoint.name / "model.ckpt")


def pretrain(
    directory: epath.Path,
    settings: Any,
    *,
    image_size: int,
    seed: int,
    preprocess: str,
    cache: ImageCache,
) -> None:
    """Pre-train the pool, except for checkpoints that are cached.

    An interrupted run resumes from the last stage that it saved.

    Args:
      directory: Receives `NAME/model.ckpt` for each of `checkpoints(settings)`.
      settings: `config.pretrain`; see configs/demo.py.
      image_size: Side of the square images in pixels.
      seed: Seed of the weights, of the order of images and of random labels.
      preprocess: `config.preprocess`; see `preprocess.resolve`.
      cache: Cache of decoded images.

    Raises:
      InputError: See `checkpoints`.
    """
    directory = epath.Path(directory)
    task = tasks.from_digits(settings.digits, drawings=settings.drawings)
    runs: dict[tuple[str, str], list[Checkpoint]] = {}
    for made in checkpoints(settings):
        runs.setdefault((made.architecture, made.supervision), []).append(made)
    num_outputs = task.num_classes
    if ROTATION in settings.other_supervision:
        num_outputs = max(num_outputs, _ROTATIONS)
    for (_, supervision), stages in runs.items():
        _run(
            directory,
            stages,
            supervise(task.splits["train"], supervision, task.num_classes, seed),
            num_outputs=num_outputs,
            image_size=image_size,
            recipe=finetune.Recipe(
                learning_rate=settings.learning_rate,
                batch_size=settings.batch_size,
                batch_norm_decay=settings.batch_norm_decay,
                schedule="cosine",
                warmup=0.1,
                num_steps=stages[-1].steps,
                seed=seed,
            ),
            preprocess=preprocess,
            cache=cache,
        )
    processes.barrier("the pool is complete")


def supervise(split: Split, supervision: str, num_classes: int, seed: int) -> Split:
    """Return the images that a network is pre-trained on, with the labels it learns.

    Args:
      split: Images with labels 0 to `num_classes` - 1.
      supervision: LABELS keeps the split. RANDOM_LABELS replaces each label by a
        uniformly random one. ROTATION rotates each image by a random multiple of 90
        degrees, which becomes its label, 0 to 3.
      num_classes: Number of classes.
      seed: Seed of labels and rotations.
    """
    if supervision == LABELS:
        return split
    random = np.random.default_rng(seed)
    examples = split.examples(None, 0, 1, 0)
    images = [example.read() for example in examples]
    if supervision == RANDOM_LABELS:
        labels = random.integers(num_classes, size=len(images))
    else:
        labels = random.integers(_ROTATIONS, size=len(images))
        images = [np.rot90(*pair) for pair in zip(images, labels, strict=True)]
    return array_split(split.name, np.stack(images), labels.astype(np.int32))


def _run(
    directory: epath.Path,
    stages: list[Checkpoint],
    split: Split,
    *,
    num_outputs: int,
    image_size: int,
    recipe: finetune.Recipe,
    preprocess: str,
    cache: ImageCache,
) -> None:
    """Train a network, and save it at its stages, which are in ascending order."""
    architecture, last = stages[-1].architecture, stages[-1]
    preprocess = preprocess_lib.resolve(preprocess, slim.own_transform(architecture))
    key = {
        "architecture": architecture,
        "image_size": image_size,
        "stages": [stage.steps for stage in stages],
        "images": split.fingerprint,
        "outputs": num_outputs,
        **preprocess_lib.key(preprocess),
        "training_version": finetune.TRAINING_VERSION,
        **dataclasses.asdict(recipe),
    }
    missing = [
        stage
        for stage in stages
        if store.load_files(directory / stage.name, key) is None
    ]
    state_directory = directory / f"state_{last.name}"
    if not missing:
        # A run that was killed after the last stage leaves its state.
        saves.remove(state_directory)
        _log.info("pre-training %s: loaded cached checkpoints", last.name)
        return
    backbone = from_scratch(architecture, image_size, recipe.seed)
    start = finetune.initial_state(backbone, num_outputs)
    with contextlib.closing(saves.Saves(state_directory, key)) as saved:
        state, first, _ = saved.restore(start)
        if first > missing[0].steps:
            saved.discard()
            state, first = start, 0

        def save(step: int, state: finetune.State) -> None:
            saved.save(step, state, {})

        for stage in missing:
            state, loss, diverged_at = finetune.train(
                backbone,
                state,
                split,
                recipe,
                preprocess=preprocess,
                cache=cache,
                first_step=first,
                last_step=stage.steps,
                on_pause=save,
                should_stop=lambda step: signals.should_stop(),
                description=f"pre-training {stage.name}",
            )
            if diverged_at >= 0:
                raise FloatingPointError(
                    f"Pre-training {stage.name} diverged at step {diverged_at}; try a "
                    "lower config.pretrain.learning_rate"
                )
            first = stage.steps
            if processes.is_main_process():
                _save(stage, state, directory / stage.name, key)
            if stage != last:
                save(first, state)
            # The random initialization has no loss.
            text = f" (loss {loss:.3f})" if first else ""
            _log.info("pre-training: saved %s%s", stage.name, text)
        saved.discard()


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
    platform = target.platform()
    init = jax.jit(module.init, compiler_options=_COMPILER_OPTIONS.get(platform))
    variables: Any = init(jax.random.key(seed), image)
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
    stage: Checkpoint,
    state: finetune.State,
    directory: epath.Path,
    key: Mapping[str, Any],
) -> None:
    """Store `directory/model.ckpt`, a TF-Slim checkpoint, and its manifest."""
    params = dict(state.params["backbone"])
    if stage.steps:
        # Random weights have no source task, so they have no classifier either.
        params["logits"] = state.params["head"]
    variables = {"params": params, "batch_stats": state.batch_stats}
    # A killed TensorFlow leaves files with random names.
    partial = directory.parent / f".{directory.name}.partial"
    for stale in (partial, directory):
        if stale.exists():
            stale.rmtree()
    checkpoints_lib.save_slim(
        stage.architecture, jax.tree.map(np.asarray, variables), partial / "model.ckpt"
    )
    partial.rename(directory)
    store.save_files(directory, key, {})
