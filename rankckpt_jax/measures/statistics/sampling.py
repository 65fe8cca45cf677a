"""Seeded draws of images, class by class, whatever the classes are called.

Every image draws a number; classes come in the order of their first image, and images
of a class in the order of their numbers.
"""

from __future__ import annotations

import numpy as np


def shuffled_classes(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """Rows of each class, in random order: C arrays that together hold 0 ... N-1."""
    draws = np.random.default_rng(seed).random(len(labels))
    _, first = np.unique(labels, return_index=True)
    classes = []
    for label in labels[np.sort(first)]:
        members = np.flatnonzero(labels == label)
        classes.append(members[np.argsort(draws[members], kind="stable")])
    return classes


def subset(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """All rows, or where there are more than `most` some that stand for all, rising.

    The rule: the same share of every class, drawn without replacement with the seed,
    and at least two images of it where it has them, so that there may be a few more
    than `most`.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    share = most / len(labels)
    classes = shuffled_classes(labels, seed)
    kept = [rows[: max(2, round(share * len(rows)))] for rows in classes]
    return np.sort(np.concatenate(kept))
