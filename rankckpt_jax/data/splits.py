"""What a `Task` is made of: classes, and `Split`s of labeled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError, some
from rankckpt_jax.storage import files

MAX_UNREADABLE = 0.1
"""Largest share of a split's images that may be left out, where nothing else is said.

A few broken files are common in collections from the web and change little; where a
tenth is broken, the copy or the format is, and what is left may be another task.
"""

Examples = Callable[[int | None, int, int, int], Any]
"""(shuffle_seed, process_index, process_count, skip) -> tf.data.Dataset."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Some of a task's images, in a fixed order.

    Attributes:
      name: "train", "val" or "test".
      num_examples: How many images.
      fingerprint: Digest of which images and labels these are.
      examples: `examples(shuffle_seed, process_index, process_count, skip)` is a
        `tf.data.Dataset` of {"image": uint8 [h, w, 3], "label": int32, "index":
        int64}, one pass over every `process_count`-th example from `process_index`
        on, in order or, with a seed, shuffled before the division, after skipping
        `skip` of this process's examples. `index` is the position in the split.
      subset: `subset(name, rows)` is the split of the examples at these positions; None
        where examples cannot be picked out, as in a stream.
      without: `without(reasons)` is the split less the examples at these positions,
        which are then `unreadable`; None where every image is known to be whole.
      unreadable: Images that belong to the split and are not among its examples, by
        name; why each cannot be read.
    """

    name: str
    num_examples: int
    fingerprint: str
    examples: Examples
    subset: Callable[[str, np.ndarray], Split] | None = None
    without: Callable[[Mapping[int, str]], Split] | None = None
    unreadable: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def left_out(self) -> str:
        """How many images are unreadable, and which; empty where none is."""
        if not self.unreadable:
            return ""
        named = [f"{file!r} ({why})" for file, why in self.unreadable.items()]
        whole = len(named) + self.num_examples
        return f"{len(named)} of {whole} images of {self.name} cannot be read and " + (
            f"are left out for all checkpoints: {some(named, most=5)}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """An image classification task.

    Attributes:
      name: Used as the directory's name in the store.
      class_names: Class of each label; labels are positions in it.
      splits: By name: "train" and "test"; where there is one, "val", and "trainval",
        the images of both "train" and "val".
      origin: Where the images and the splits come from, in a phrase.
      notes: By topic, one sentence that a reader of results should know.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    origin: str
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)

    @property
    def description(self) -> str:
        """One line that says where the images come from, and how many there are."""
        counted = [s for name, s in self.splits.items() if name != "trainval"]
        if not counted:
            return self.origin
        counts = ", ".join(f"{s.num_examples} {s.name}" for s in counted)
        return f"{self.origin}: {len(self.class_names)} classes, {counts} images"

    @property
    def warnings(self) -> dict[str, str]:
        """The notes, and which images are left out."""
        said = [
            split.left_out for name, split in self.splits.items() if name != "trainval"
        ]
        notes = dict(self.notes)
        if said := [*filter(None, said)]:
            notes["images"] = "; ".join([*said, *filter(None, [notes.get("images")])])
        return notes


def array_split(name: str, images: np.ndarray, labels: np.ndarray) -> Split:
    """Makes a split of images in memory.

    Args:
      name: "train", "val" or "test".
      images: uint8 [N, H, W, 3].
      labels: int [N].
    """
    labels = np.asarray(labels, np.int32)

    def examples(seed: int | None, index: int, count: int, skip: int) -> Any:
        tf = tensorflow()
        rows = order(len(labels), seed)[index::count][skip:]
        return tf.data.Dataset.from_tensor_slices(rows).map(
            lambda i: {"image": tf.gather(images, i), "label": labels_of(i), "index": i}
        )

    def labels_of(i: Any) -> Any:
        return tensorflow().gather(labels, i)

    def subset(name: str, rows: np.ndarray) -> Split:
        return array_split(name, images[rows], labels[rows])

    fingerprint = files.digest(images.tobytes(), labels.tobytes())
    return Split(name, len(labels), fingerprint, examples, subset)


def order(num_examples: int, seed: int | None) -> np.ndarray:
    """Positions of all examples: in order, or shuffled by a seed."""
    if seed is None:
        return np.arange(num_examples)
    return np.random.default_rng(seed).permutation(num_examples)


def check_unreadable(split: Split, most: float, where: str) -> None:
    """Refuses a split of which too many images cannot be read.

    Args:
      split: With those left out.
      most: Largest share of its images, in [0, 1].
      where: Its source, for the message.

    Raises:
      InputError: There are more; or nothing is left.
    """
    bad, whole = len(split.unreadable), len(split.unreadable) + split.num_examples
    if bad > most * whole or (bad and not split.num_examples):
        raise InputError(
            f"Too many images of {split.name} cannot be read",
            where=where,
            expected=f"at most {most:.0%} of them (config.task.max_unreadable)",
            found=split.left_out,
            fix="copy them again or convert them to JPEG or PNG; or accept more: "
            "--config.task.max_unreadable=SHARE",
        )
