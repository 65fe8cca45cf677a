"""The types `Task` and `Split`: classes and labeled images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rankckpt_jax.data import targets
from rankckpt_jax.errors import InputError, some
from rankckpt_jax.storage import files

MAX_UNREADABLE = 0.1
"""Default of the largest share of a split's images that may be corrupt.

A few corrupt files are common in collections from the web and change little. If a tenth
of the files is corrupt, the copy or the format is wrong, and the remaining images may
be a different task.
"""


@dataclasses.dataclass(frozen=True)
class Example:
    """A labeled image that is decoded when it is needed.

    Attributes:
      index: Position in its split.
      label: Its row of `Split.labels`: an integer, booleans [L] or a float.
      read: Returns the pixels, uint8 [h, w, 3]. It raises `decode.UnusableImage` if
        they cannot be decoded. Threads may call it.
    """

    index: int
    label: Any
    read: Callable[[], np.ndarray]


Examples = Callable[[int | None, int, int, int], Iterator[Example]]
"""(shuffle_seed, process_index, process_count, skip) -> examples."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split of a task: labeled images in a fixed order.

    Attributes:
      name: "train", "val" or "test".
      num_examples: Number of images.
      identify: Returns `fingerprint`.
      examples: `examples(shuffle_seed, process_index, process_count, skip)` yields
        every `process_count`-th example from `process_index` on, after the first `skip`
        of these. With a seed the examples are shuffled before they are divided.
      subset: `subset(name, rows)` returns the split of the examples at these positions;
        None if examples cannot be selected, as in a stream.
      without: `without(reasons)` returns the split without the examples at these
        positions, which become `unreadable`; None if no image can be corrupt.
      unreadable: The reason by the name of each image that was dropped from the split.
      orientation: "EXIF" if images are turned by it, or "as stored". Part of the key of
        every stored result.
      target: Kind of the labels, one of `targets.TARGETS`.
      labels: The labels in the split's order: positions in `Task.class_names`, int32
        [N], for classes; which of these names an image has, bool [N, L], for
        multi_label; numbers, float64 [N], for regression. None for classes of a stream.
    """

    name: str
    num_examples: int
    identify: Callable[[], str]
    examples: Examples
    subset: Callable[[str, np.ndarray], Split] | None = None
    without: Callable[[Mapping[int, str]], Split] | None = None
    unreadable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    orientation: str = "as stored"
    target: str = "classes"
    labels: np.ndarray | None = None

    def label_array(self, labels: Sequence[Any]) -> np.ndarray:
        """Return the labels of n >= 0 examples as one array with n rows."""
        array = targets.to_array(labels, self.target)
        width = () if self.labels is None else self.labels.shape[1:]
        return array.reshape(-1, *width)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the images' contents and labels, in every key of a stored result.

        It is computed on first use, because all images are read for it.
        """
        return self.identify()

    @property
    def left_out(self) -> str:
        """Describe the dropped images; empty if there are none."""
        if not self.unreadable:
            return ""
        named = [f"{file!r} ({why})" for file, why in self.unreadable.items()]
        total = len(named) + self.num_examples
        return (
            f"{len(named)} of {total} images of {self.name} cannot be read and are "
            f"left out for all checkpoints: {some(named, most=5)}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Labeled images with fixed splits.

    Attributes:
      name: Decides the directory's name in the store.
      class_names: Name of each class, or of each label for multi_label; empty for
        regression.
      splits: "train" and "test", and optionally "val" and "trainval" (the images of
        both "train" and "val").
      origin: A phrase that names the source of the images and splits.
      notes: One sentence per topic that qualifies the results.
      target: Kind of the labels, one of `targets.TARGETS`.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    origin: str
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    target: str = "classes"

    @property
    def num_classes(self) -> int:
        """Number of classes, C, or of labels, L; 0 for regression."""
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """Width of a new head: C classes, L labels, or 1 for a number."""
        return 1 if self.target == "regression" else len(self.class_names)

    @property
    def description(self) -> str:
        """Describe the origin and the number of images in one line."""
        counted = [s for name, s in self.splits.items() if name != "trainval"]
        if not counted:
            return self.origin
        counts = ", ".join(f"{s.num_examples} {s.name}" for s in counted)
        kind = {
            "classes": f"{len(self.class_names)} classes",
            "multi_label": f"{len(self.class_names)} labels, several per image",
            "regression": "a number per image",
        }[self.target]
        return f"{self.origin}: {kind}, {counts} images"

    @property
    def warnings(self) -> dict[str, str]:
        """Return the notes and the descriptions of dropped images, by topic."""
        sentences = [
            s.left_out for name, s in self.splits.items() if name != "trainval"
        ]
        notes = dict(self.notes)
        if any(sentences):
            sentences.append(notes.get("images", ""))
            notes["images"] = "; ".join(filter(None, sentences))
        return notes


def array_split(
    name: str, images: np.ndarray, labels: np.ndarray, target: str = "classes"
) -> Split:
    """Return a split of images in memory.

    Args:
      name: "train", "val" or "test".
      images: uint8 [N, H, W, 3].
      labels: [N] or [N, L]; see `Split.labels`.
      target: One of `targets.TARGETS`.
    """
    labels = targets.to_array(labels, target)

    def examples(
        seed: int | None, index: int, count: int, skip: int
    ) -> Iterator[Example]:
        for row in order(len(labels), seed)[index::count][skip:]:
            read = functools.partial(images.__getitem__, row)
            yield Example(int(row), labels[row], read)

    def subset(name: str, rows: np.ndarray) -> Split:
        return array_split(name, images[rows], labels[rows], target)

    def identify() -> str:
        return files.digest(str(images.shape), images.tobytes(), labels.tobytes())

    return Split(
        name, len(labels), identify, examples, subset, target=target, labels=labels
    )


def order(num_examples: int, seed: int | None) -> np.ndarray:
    """Return the positions of all examples, in order or shuffled by a seed."""
    if seed is None:
        return np.arange(num_examples)
    return np.random.default_rng(seed).permutation(num_examples)


def check_unreadable(split: Split, most: float, where: str) -> None:
    """Raise an error if too many images of a split were dropped.

    Args:
      split: The split without its corrupt images.
      most: Largest share that may be corrupt, in [0, 1].
      where: The source of the images, for the message.

    Raises:
      InputError: More than that is corrupt, or no image is left.
    """
    corrupt = len(split.unreadable)
    total = corrupt + split.num_examples
    if corrupt > most * total or (corrupt and not split.num_examples):
        raise InputError(
            f"Too many images of {split.name} cannot be read",
            where=where,
            expected=f"at most {most:.0%} of them (config.task.max_unreadable)",
            found=split.left_out,
            fix="copy them again, convert them to JPEG or PNG, or allow more with "
            "--config.task.max_unreadable=SHARE",
        )
