"""Fine-tuning: the ground truth that a ranking is judged by.

SGD with momentum on all weights from the converted checkpoint, batch norm in training
mode with its moments taken over the whole global batch, and a new dense head that
starts at zero: the protocol of VTAB, which the paper's README names. The figure kept
is the test accuracy of the last step.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from rankckpt_jax import parallel, progress, store
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import pipeline
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.tasks import Split, Task
from rankckpt_jax.models import layers

_log = logging.getLogger(__name__)

# Steps between looks at the loss: rare enough that the host does not hold up the
# device, frequent enough that a run which diverged ends soon.
_STEPS_BETWEEN_LOOKS = 20


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a checkpoint is fine-tuned.

    Attributes:
      learning_rate: Step size before any decay.
      num_steps: Optimizer steps.
      batch_size: Global batch.
      momentum: Of SGD, without Nesterov's correction.
      decay_at: Shares of `num_steps` at which the rate falls.
      decay_factor: What it is multiplied by each time.
      warmup_steps: Steps over which the rate rises linearly from 0.
      batch_norm_decay: Of batch norm's moving averages; 0 for the architecture's own.
        TF-Slim's 0.9997 remembers 3000 steps: after a short run the averages that
        evaluation uses would still be those of the checkpoint.
      save_every: Steps between saves of the training state.
      seed: Decides the order of the images.
    """

    learning_rate: float = 0.01
    num_steps: int = 1000
    batch_size: int = 64
    momentum: float = 0.9
    decay_at: tuple[float, ...] = (0.3, 0.6, 0.9)
    decay_factor: float = 0.1
    warmup_steps: int = 0
    batch_norm_decay: float = 0.0
    save_every: int = 200
    seed: int = 0


def recipe(settings: Any, seed: int) -> Recipe:
    """Builds the recipe from a config's `finetune` section, whose fields it shares."""
    return Recipe(**settings.to_dict(), seed=seed)


class State(NamedTuple):
    """Everything that training changes.

    Attributes:
      params: The backbone's, and `head` {"kernel" [D, C], "bias" [C]}.
      batch_stats: The backbone's moving averages.
      momentum: As `params`: SGD's running sum of gradients.
    """

    params: Any
    batch_stats: Any
    momentum: Any


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What fine-tuning came to.

    Attributes:
      accuracy: Share of the test images classified correctly, in [0, 1]; NaN where
        the loss stopped being finite.
      diverged_at: The step at which it did; -1 where it did not.
      final_loss: Training loss of the last batches, in nats.
      seconds: What it took, with evaluation, over all runs that contributed.
    """

    accuracy: float
    diverged_at: int
    final_loss: float
    seconds: float


def get(
    directory: epath.Path,
    backbone: backbone_lib.Backbone,
    task: Task,
    recipe: Recipe,
    *,
    preprocess: str,
    cache: pipeline.ImageCache,
    description: str = "fine-tuning",
    compute: bool = True,
) -> tuple[Outcome | None, bool]:
    """Loads the outcome from the store, or fine-tunes and stores it.

    A run that was killed goes on from its last saved step.

    Args:
      directory: The checkpoint's `finetune` directory.
      backbone: Where to start from.
      task: Trained on its `train` images, judged on its `test` images.
      recipe: How.
      preprocess: See `preprocess.resize`.
      cache: Where decoded images are kept.
      description: What the progress bar says.
      compute: Whether to compute what the store does not have.

    Returns:
      (the outcome, whether there was anything to compute); (None, False) where there
      is none and it is not to be computed.
    """
    wanted = {
        "checkpoint": backbone.fingerprint,
        "architecture": backbone.architecture,
        "image_size": backbone.image_size,
        "input_range": list(backbone.input_range),
        "input_mean": list(backbone.input_mean),
        "train": task.splits["train"].fingerprint,
        "test": task.splits["test"].fingerprint,
        "preprocess": preprocess,
        "jpeg_decoder": preprocess_lib.JPEG_DECODER,
        # How often the state is saved does not change the outcome.
        **{k: v for k, v in dataclasses.asdict(recipe).items() if k != "save_every"},
    }
    place = epath.Path(directory)
    found = store.load_result(place / "result.json", wanted)
    if found is not None:
        return Outcome(**found.result), False
    if not compute:
        return None, False
    with _Saves(place / "state", wanted) as saves:
        outcome = finetune(
            backbone,
            task,
            recipe,
            preprocess=preprocess,
            cache=cache,
            saves=saves,
            description=description,
        )
        store.save_result(place / "result.json", wanted, dataclasses.asdict(outcome))
        saves.discard()
    return outcome, True


def finetune(
    backbone: backbone_lib.Backbone,
    task: Task,
    recipe: Recipe,
    *,
    preprocess: str,
    cache: pipeline.ImageCache,
    saves: _Saves | None = None,
    description: str = "fine-tuning",
) -> Outcome:
    """Fine-tunes and evaluates, whatever the store has.

    Args:
      backbone: Where to start from.
      task: Trained on its `train` images, judged on its `test` images.
      recipe: How.
      preprocess: See `preprocess.resize`.
      cache: Where decoded images are kept.
      saves: Where training state is kept on the way; not at all if None.
      description: What the progress bar says.
    """
    start = time.monotonic()
    state = initial_state(backbone, task.num_classes)
    first_step, spent = 0, 0.0
    if saves is not None:
        state, first_step, spent = saves.restore(state)

    def save(step: int, state: State) -> None:
        if saves is not None:
            saves.save(step, state, spent + time.monotonic() - start)

    state, losses, diverged_at = train(
        backbone,
        state,
        task.splits["train"],
        recipe,
        preprocess=preprocess,
        cache=cache,
        first_step=first_step,
        on_save=save,
        description=description,
    )
    accuracy = math.nan
    if diverged_at < 0:
        accuracy = evaluate(
            backbone,
            state,
            task.splits["test"],
            preprocess=preprocess,
            batch_size=recipe.batch_size,
            cache=cache,
        )
    seconds = spent + time.monotonic() - start
    return Outcome(accuracy, diverged_at, losses, seconds)


def initial_state(backbone: backbone_lib.Backbone, num_classes: int) -> State:
    """The checkpoint's weights, a head of zeros in place of its own, no momentum."""
    variables, _ = backbone_lib.split_head(backbone.variables)
    head = {
        "kernel": np.zeros((backbone.feature_dim, num_classes), np.float32),
        "bias": np.zeros(num_classes, np.float32),
    }
    params = {"backbone": variables["params"], "head": head}
    momentum = jax.tree.map(np.zeros_like, params)
    return parallel.replicate(State(params, variables["batch_stats"], momentum))


def train(
    backbone: backbone_lib.Backbone,
    state: State,
    split: Split,
    recipe: Recipe,
    *,
    preprocess: str,
    cache: pipeline.ImageCache,
    first_step: int = 0,
    last_step: int | None = None,
    on_save: Callable[[int, State], None] = lambda step, state: None,
    description: str = "training",
) -> tuple[State, float, int]:
    """Takes the recipe's steps from `first_step` on.

    Args:
      backbone: Its `apply`, image size and range; not its weights.
      state: Where to start from; its memory is reused.
      split: What to train on.
      recipe: How.
      preprocess: See `preprocess.resize`.
      cache: Where decoded images are kept.
      first_step: The step that `state` stands before.
      last_step: The step to stop before; `recipe.num_steps` if None.
      on_save: Called as `on_save(step, state)` every `recipe.save_every` steps.
      description: What the progress bar says.

    Returns:
      (state, the last loss in nats, the step at which the loss stopped being finite
      or -1). Training ends there.
    """
    per_process = recipe.batch_size // parallel.process_count()
    per_process = parallel.round_up_to_devices(per_process)
    decay = recipe.batch_norm_decay or None
    step_fn = _train_step(
        dataclasses.replace(backbone.apply, axis_name=parallel.AXIS, decay=decay)
    )
    scaling = parallel.replicate(
        preprocess_lib.scaling(backbone.input_range, backbone.input_mean)
    )
    last_step = recipe.num_steps if last_step is None else last_step
    last = math.nan
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
    rate = schedule(recipe)
    with progress.bar(description, last_step, "step") as shown:
        shown.update(first_step)
        for step, batch in enumerate(batches, start=first_step):
            hyper = np.asarray([rate(step), recipe.momentum], np.float32)
            data = parallel.shard((batch.images, batch.labels))
            state, loss = step_fn(state, scaling, hyper, data)
            shown.update(1)
            done = step + 1
            if done % _STEPS_BETWEEN_LOOKS == 0 or done == last_step:
                last = float(loss)
                if not math.isfinite(last):
                    _log.warning("%s: loss is %s at step %d", description, last, done)
                    return state, last, done
                shown.set_postfix(loss=f"{last:.3f}", refresh=False)
            if done % recipe.save_every == 0 and done < last_step:
                on_save(done, state)
    return state, last, -1


def schedule(recipe: Recipe) -> Callable[[int], float]:
    """Learning rate of a step: linear warm-up, then falls at shares of the steps."""
    falls = {
        round(share * recipe.num_steps): recipe.decay_factor
        for share in recipe.decay_at
    }
    decay = optax.piecewise_constant_schedule(recipe.learning_rate, falls)

    def rate(step: int) -> float:
        warm = (
            min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
        )
        return float(decay(step)) * warm

    return rate


def evaluate(
    backbone: backbone_lib.Backbone,
    state: State,
    split: Split,
    *,
    preprocess: str,
    batch_size: int,
    cache: pipeline.ImageCache,
) -> float:
    """Share of the split's images that `state` classifies correctly, in [0, 1].

    Each image counts once: padding is masked, and all processes' counts are summed.
    """
    per_process = parallel.round_up_to_devices(batch_size)
    count_correct = _count_correct(backbone.apply)
    scaling = parallel.replicate(
        preprocess_lib.scaling(backbone.input_range, backbone.input_mean)
    )
    correct = 0
    for batch in pipeline.batches(
        split,
        size=backbone.image_size,
        preprocess=preprocess,
        batch_size=per_process,
        cache=cache,
    ):
        data = parallel.shard((batch.images, batch.labels, batch.mask))
        correct = correct + count_correct(state, scaling, data)
    return float(correct) / split.num_examples


@functools.cache
def _train_step(apply: backbone_lib.Apply) -> Callable[..., Any]:
    """Compiles one step; shared by all checkpoints of an architecture."""

    def step(
        state: State, scaling: Any, hyper: jax.Array, data: Any
    ) -> tuple[State, jax.Array]:
        raw, labels = data
        images = preprocess_lib.to_input_range(raw, *scaling)
        rate, momentum = hyper

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params["backbone"], "batch_stats": state.batch_stats}
            output, batch_stats = apply(variables, images, train=True)
            logits = layers.classify(params["head"], output.features)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), batch_stats

        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, batch_stats), gradients = gradient_fn(state.params)
        loss, gradients = jax.lax.pmean((loss, gradients), parallel.AXIS)
        optimizer = optax.trace(decay=momentum)
        updates, trace = optimizer.update(gradients, optax.TraceState(state.momentum))
        updates = jax.tree.map(lambda update: -rate * update, updates)
        params = optax.apply_updates(state.params, updates)
        return State(params, batch_stats, trace.trace), loss

    return parallel.map_devices(
        step, in_axes=(None, None, None, 0), out_axes=None, donate_argnums=(0,)
    )


@functools.cache
def _count_correct(apply: backbone_lib.Apply) -> Callable[..., Any]:
    def count(state: State, scaling: Any, data: Any) -> jax.Array:
        raw, labels, mask = data
        images = preprocess_lib.to_input_range(raw, *scaling)
        variables = {
            "params": state.params["backbone"],
            "batch_stats": state.batch_stats,
        }
        features = apply(variables, images).features
        logits = layers.classify(state.params["head"], features)
        correct = (jnp.argmax(logits, axis=-1) == labels) & mask
        return jax.lax.psum(jnp.sum(correct), parallel.AXIS)

    return parallel.map_devices(count, in_axes=(None, None, 0), out_axes=None)


class _Saves:
    """The training state on disk while a checkpoint is being fine-tuned, by Orbax."""

    def __init__(self, directory: epath.Path, wanted: dict[str, Any]):
        """Opens `directory`, throwing away what was saved for another request."""
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._directory = epath.Path(directory)
        request = self._directory.parent / "state.json"
        if store.load_result(request, wanted) is None:
            self.discard()
            store.save_result(request, wanted, {})
        self._manager = ocp.CheckpointManager(
            # Orbax asks for an absolute path.
            self._directory.resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=2),
        )

    def __enter__(self) -> _Saves:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def restore(self, state: State) -> tuple[State, int, float]:
        """Returns (state, its step, seconds spent so far): the latest, or `state`."""
        step = self._manager.latest_step()
        if step is None:
            return state, 0, 0.0
        args = self._ocp.args
        saved = self._manager.restore(
            step,
            args=args.Composite(
                state=args.StandardRestore(state), facts=args.JsonRestore()
            ),
        )
        _log.info("fine-tuning goes on from step %d", step)
        # Onto the devices in the form that the compiled step expects, whatever the
        # number of devices was when it was saved.
        restored = State(*jax.tree.map(np.asarray, tuple(saved.state)))
        return parallel.replicate(restored), step, float(saved.facts["seconds"])

    def save(self, step: int, state: State, seconds: float) -> None:
        """Saves in the background; the state's memory may be reused at once."""
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(state),
                facts=args.JsonSave({"seconds": seconds}),
            ),
        )

    def discard(self) -> None:
        """Removes what was saved: the outcome is known."""
        if hasattr(self, "_manager"):
            self._manager.wait_until_finished()
        if self._directory.exists():
            self._directory.rmtree()
        (self._directory.parent / "state.json").unlink(missing_ok=True)
