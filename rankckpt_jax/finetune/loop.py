"""The loop over steps, and evaluation."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import pipeline
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.tasks import Split
from rankckpt_jax.devices import mapping, processes, progress
from rankckpt_jax.errors import Interrupted
from rankckpt_jax.finetune import metrics, recipes
from rankckpt_jax.finetune import step as step_lib
from rankckpt_jax.finetune.recipes import Recipe
from rankckpt_jax.finetune.step import State

_log = logging.getLogger(__name__)

# Steps between looks at the losses: rare enough that the host does not hold up the
# device, frequent enough that a run which diverged ends soon.
STEPS_BETWEEN_LOOKS = 20

# Seconds between lines of progress in a log, where nobody watches a bar.
_SECONDS_BETWEEN_LINES = 60.0

Watch = Callable[[int, np.ndarray, float], None]
"""Called as `watch(step, losses [cells, steps since the last call], images/s)`."""


class Trained(NamedTuple):
    """What training came to.

    Attributes:
      state: After the last step; of a run that diverged, not to be used.
      loss: Of the last batch, in nats; [cells] where several runs were trained.
      diverged_at: Steps taken when the loss was first not finite; -1 where it always
        was; [cells] likewise.
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
) -> Trained:
    """Takes one recipe's steps; `options` as for `train_cells`."""
    done = train_cells(backbone, state, split, (recipe,), **options)
    return Trained(done.state, float(done.loss[0]), int(done.diverged_at[0]))


def train_cells(
    backbone: backbone_lib.Backbone,
    state: State,
    split: Split,
    cells: Sequence[Recipe],
    *,
    preprocess: str,
    cache: pipeline.ImageCache,
    first_step: int = 0,
    last_step: int | None = None,
    pauses: Collection[int] = (),
    on_pause: Callable[[int, State], None] = lambda step, state: None,
    watch: Watch = lambda step, losses, rate: None,
    should_stop: Callable[[int], bool] = lambda step: False,
    description: str = "training",
) -> Trained:
    """Takes the steps of runs that differ in their learning rate alone, side by side.

    Args:
      backbone: Its `apply`, image size and range; not its weights.
      state: Where to start from, with a leading axis of cells where there are several;
        its memory is reused.
      split: What to train on.
      cells: The runs.
      preprocess: See `preprocess.resize`.
      cache: Where decoded images are kept.
      first_step: The step that `state` stands before.
      last_step: The step to stop before; the recipes' `num_steps` if None.
      pauses: Numbers of steps after which `on_pause` is called.
      on_pause: Called as `on_pause(steps taken, state)`, to save or evaluate it.
      watch: Called with the losses, every few steps.
      should_stop: Asked after each step, with the number of steps taken. Where it says
        so, `on_pause` is called as if this were a pause, and `Interrupted` raised.
      description: What the progress bar says.

    Returns:
      What training came to. It ends early where all cells have diverged.

    Raises:
      InputError: The devices cannot share the batch.
      Interrupted: `should_stop` said so.
    """
    recipe = cells[0]
    per_process = step_lib.check_batch(recipe.batch_size, recipe.accumulate)
    step_fn = step_lib.train_step(step_lib.program(backbone, recipe, len(cells)))
    scaling = _scaling(backbone)
    last_step = recipe.num_steps if last_step is None else last_step
    rates = np.stack([recipes.schedule(cell) for cell in cells])
    # Row r of process p is row r * processes + p of the global batch.
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
    clock = _Clock(description, first_step, last_step, recipe.batch_size)
    waiting: list[Any] = []
    loss = np.full(len(cells), math.nan)
    diverged_at = np.full(len(cells), -1)
    with progress.bar(description, last_step * recipe.batch_size, "image") as shown:
        shown.update(first_step * recipe.batch_size)
        for step, batch in enumerate(pipeline.ahead(batches), start=first_step):
            rate = rates[:, step] if len(cells) > 1 else rates[0, step]
            data = (*mapping.shard((batch.images, batch.labels)), rows)
            hyper = step_lib.hyper(recipe, rate, step)
            state, now = step_fn(state, scaling, hyper, data)
            waiting.append(now)
            shown.update(recipe.batch_size)
            done = step + 1
            stopping = should_stop(done)
            pausing = done in pauses or (stopping and done < last_step)
            if pausing or done % STEPS_BETWEEN_LOOKS == 0 or done == last_step:
                losses = np.stack([np.asarray(x).reshape(-1) for x in waiting], axis=1)
                waiting.clear()
                loss = losses[:, -1]
                watch(done, losses, clock.images_per_second(done))
                for i, cell in enumerate(cells):
                    if diverged_at[i] >= 0:
                        continue
                    diverged_at[i] = metrics.first_not_finite(done, losses[i])
                    if diverged_at[i] >= 0:
                        text = "%s: the loss is not finite at step %d, learning rate %g"
                        values = description, diverged_at[i], cell.learning_rate
                        _log.warning(text, *values)
                if (diverged_at >= 0).all():
                    break
                shown.set_postfix(loss=f"{np.nanmin(loss):.3f}", refresh=False)
                clock.tell(done, float(np.nanmin(loss)))
            if pausing:
                on_pause(done, state)
                clock.resume(done)
            if stopping and done < last_step:
                raise Interrupted(f"{description}: stopped at step {done}, as asked")
    return Trained(state, loss, diverged_at)


def evaluate(
    backbone: backbone_lib.Backbone,
    state: State,
    split: Split,
    recipe: Recipe,
    *,
    preprocess: str,
    cache: pipeline.ImageCache,
    cells: int = 1,
) -> np.ndarray:
    """Share of the split's images that each cell classifies correctly, in [0, 1].

    Each image counts once: padding is masked, and all processes' counts are summed. A
    network whose outputs are not all finite has NaN for an accuracy.

    Returns:
      float [cells].
    """
    per_process = mapping.round_up_to_devices(
        math.ceil(recipe.batch_size / processes.process_count())
    )
    program = step_lib.program(backbone, recipe, cells)
    count = step_lib.count_correct(program.apply, cells)
    scaling = _scaling(backbone)
    correct: Any = 0
    broken: Any = 0
    for batch in pipeline.ahead(
        pipeline.batches(
            split,
            size=backbone.image_size,
            preprocess=preprocess,
            batch_size=per_process,
            cache=cache,
        )
    ):
        data = mapping.shard((batch.images, batch.labels, batch.mask))
        more, bad = count(state, scaling, data)
        correct, broken = correct + more, broken + bad
    share = np.asarray(correct, np.int64).reshape(-1) / split.num_examples
    return np.where(np.asarray(broken).reshape(-1) > 0, math.nan, share)


def _scaling(backbone: backbone_lib.Backbone) -> Any:
    return mapping.replicate(
        preprocess_lib.scaling(backbone.input_range, backbone.input_mean)
    )


class _Clock:
    """Images per second since the last look, and a line in the log now and then."""

    def __init__(self, description: str, first: int, last: int, batch_size: int):
        self._description = description
        self._last, self._batch = last, batch_size
        self._step, self._time = first, time.monotonic()
        self._told, self._rate = self._time, math.nan

    def images_per_second(self, step: int) -> float:
        now = time.monotonic()
        self._rate = (step - self._step) * self._batch / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        return self._rate

    def tell(self, step: int, loss: float) -> None:
        if self._time - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = self._time
        left = (self._last - step) * self._batch / self._rate
        text = "%s: step %d of %d, loss %.3f, %.1f images/s, %.0f s left"
        values = self._description, step, self._last, loss, self._rate, left
        _log.info(text, *values)

    def resume(self, step: int) -> None:
        """Leaves out what a pause took."""
        self._step, self._time = step, time.monotonic()
