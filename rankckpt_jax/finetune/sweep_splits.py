"""Which images of a task a sweep trains on, compares its trials on, and tests on."""

from __future__ import annotations

import dataclasses

from rankckpt_jax.data import tasks
from rankckpt_jax.data.splits import Split, Task
from rankckpt_jax.finetune.recipes import Sweep


@dataclasses.dataclass(frozen=True)
class Splits:
    """The images that a sweep uses.

    Attributes:
      train: All trials of the grid are trained on it.
      validation: Settings are compared on it.
      test: The reported accuracy is measured on it.
      final: The chosen setting is trained on it again; None to skip this.
    """

    train: Split
    validation: Split
    test: Split
    final: Split | None


def choose_splits(task: Task, sweep: Sweep) -> Splits:
    """Return the images that a sweep uses; see `Sweep.select_by`.

    If a validation split is needed and the task has none, a part of `train` is used,
    which depends on the recipe's seed.

    Raises:
      InputError: A validation split is needed, and `train` is a stream.
    """
    train, test = task.splits["train"], task.splits["test"]
    trainval = task.splits.get("trainval", train)
    is_compared = sweep.select_by == "val" and len(sweep.trials) > 1
    if not (sweep.budget or is_compared):
        everything = trainval if sweep.train_on == "trainval" else train
        return Splits(everything, test, test, None)
    # A budget leaves no steps to train on all images.
    is_final = sweep.train_on == "trainval" and not sweep.budget
    final = trainval if is_final else None
    if "val" in task.splits:
        return Splits(train, task.splits["val"], test, final)
    kept, held_out = tasks.hold_out(train, sweep.recipe.seed)
    return Splits(kept, held_out, test, final)


def splits_used(task: Task, sweep: Sweep) -> tuple[str, ...]:
    """Return the names of the task's splits whose images a sweep reads.

    Raises:
      InputError: See `choose_splits`.
    """
    splits = choose_splits(task, sweep)
    used = [splits.train, splits.validation, splits.test, splits.final]
    # A part of a split is named SPLIT_kept or SPLIT_held.
    names = {split.name.partition("_")[0] for split in used if split is not None}
    return tuple(name for name in task.splits if name in names)
