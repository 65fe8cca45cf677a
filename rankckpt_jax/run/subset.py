"""Stratified subsets of the training images, the same for every checkpoint."""

from __future__ import annotations

import dataclasses

import numpy as np

from rankckpt_jax.data import targets
from rankckpt_jax.data.splits import Split
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.statistics import sampling

LEAST = 5
"""Images that a subset keeps of every class, or all of a smaller class. NLEEP fits five
mixture components per class, and other measures need at least two images."""

HALVES = 8
"""Random halves of a subset that are scored for its interval if `config.num_bootstrap`
is 0. They cost one to eight times as much as the score. Their standard deviation is
known to 27 %, which the quantile of Student's t distribution takes into account."""

_BINS = 10
"""Strata of a number per image: its tenths by rank."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some images of a split.

    Attributes:
      split: The images, in the order of the split that they were drawn from.
      rows: Their positions in that split, int [n], ascending.
    """

    split: Split
    rows: np.ndarray


def take(split: Split, rows: np.ndarray, name: str) -> Subset:
    """Return the images of a split at the positions `rows`, in any order.

    Args:
      split: A split with `subset`.
      rows: int [n].
      name: Name of the new split, and of its directory in the store.
    """
    assert split.subset is not None  # Checked by `find_order`.
    rows = np.sort(rows)
    return Subset(split.subset(name, rows), rows)


def draw(split: Split, count: int, seed: int) -> Subset:
    """Draw a stratified subset for `config.score_on`.

    Args:
      split: The training images.
      count: Number of images, smaller than that of the split.
      seed: Seed of the draw.

    Raises:
      InputError: The images cannot be selected, or `count` is too small.
    """
    field = "config.score_on"
    order = find_order(split, seed, field)
    least = smallest(split)
    if count < least:
        raise InputError(
            "Too few images to score on",
            where=field,
            expected=f"at least {least:,} of {split.num_examples:,} training images "
            f"({LEAST} of each class, or all of a smaller class)",
            found=f"{count:,}",
            fix=f"--config.score_on={least} or more, or 0 for all",
        )
    name = f"{split.name}-{count}-of-{split.num_examples}"
    return take(split, order[:count], name)


def find_order(split: Split, seed: int, field: str) -> np.ndarray:
    """Return an order of the images of which every beginning is stratified.

    Args:
      split: The images.
      seed: Seed of the order.
      field: The field of the config that needs it, for errors.

    Raises:
      InputError: The images are a stream, from which none can be selected.
    """
    if split.subset is None:
        raise InputError(
            "Images of a TFDS data set cannot be selected one by one",
            where=field,
            expected="a folder of images",
            found="config.task.tfds",
            fix=f"leave {field} out; --config.task.train='train[:10%]' uses a part of "
            "the images",
        )
    return sampling.stratified_order(_strata(split), seed, LEAST)


def smallest(split: Split) -> int:
    """Return the number of images of the smallest subset."""
    _, sizes = np.unique(_strata(split), return_counts=True)
    return int(np.minimum(sizes, LEAST).sum())


def _strata(split: Split) -> np.ndarray:
    """Return the stratum of each image, int [N].

    It is the class; of several labels the rarest; of a number its tenth by rank.
    """
    labels = split.labels
    if labels is None:
        # The examples of a folder have their labels without being decoded.
        labels = split.label_array([e.label for e in split.examples(None, 0, 1, 0)])
    if split.target == "multi_label":
        return targets.rarest_label(labels)
    if split.target == "regression":
        ranks = np.argsort(np.argsort(labels, kind="stable"), kind="stable")
        return ranks * min(_BINS, len(labels)) // len(labels)
    return labels
