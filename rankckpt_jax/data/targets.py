"""Kinds of targets: what the label of an image is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rankckpt_jax.errors import unknown_name

CLASSES, MULTI_LABEL, REGRESSION = "classes", "multi_label", "regression"

TARGETS: Mapping[str, str] = {
    CLASSES: "one class",
    MULTI_LABEL: "several labels",
    REGRESSION: "one number",
}
"""What an image has in each kind of target."""

AUTO = "auto"
"""The value of `config.task.target` that finds the kind from the files."""

_DTYPES: Mapping[str, Any] = {
    "classes": np.int32,
    "multi_label": np.bool_,
    "regression": np.float64,
}


def to_array(labels: Sequence[Any] | np.ndarray, target: str) -> np.ndarray:
    """Return the labels of N images as one array.

    Args:
      labels: N labels of the kind `target`.
      target: One of TARGETS.

    Returns:
      int32 [N] for classes, bool [N, L] for multi_label and L labels, float64 [N] for
      regression.
    """
    return np.asarray(labels, _DTYPES[target])


def scale(labels: np.ndarray | None, target: str) -> tuple[float, float]:
    """Return the mean and the standard deviation of numbers; (0, 1) for other labels.

    Args:
      labels: The training labels; see `Split.labels`.
      target: One of TARGETS.
    """
    if target != "regression":
        return 0.0, 1.0
    assert labels is not None
    # A part of the images may have equal numbers.
    return float(labels.mean()), float(labels.std()) or 1.0


def standardize(
    labels: np.ndarray, target: str, scale: tuple[float, float]
) -> np.ndarray:
    """Return labels as fine-tuning takes them: numbers as float32 of the given scale.

    Args:
      labels: See `Split.labels`.
      target: One of TARGETS.
      scale: Mean and standard deviation of the training labels; see `scale`.
    """
    if target != "regression":
        return labels
    return ((labels - scale[0]) / scale[1]).astype(np.float32)


def check(target: str, field: str = "config.task.target") -> None:
    """Raise an `InputError` if `target` is neither AUTO nor one of TARGETS."""
    if target not in (AUTO, *TARGETS):
        raise unknown_name("target", target, (AUTO, *TARGETS), field)


def rarest_label(labels: np.ndarray) -> np.ndarray:
    """Return the label of each image that the fewest images have: int [N].

    Draws within these groups keep the share of every rare label. For one label per
    image, the groups are the classes.

    Example:
      >>> rarest_label(np.array([[1, 0], [1, 1], [0, 1], [1, 0], [0, 0]], bool))
      array([0, 1, 1, 0, 2])

    Args:
      labels: bool [N, L].

    Returns:
      The column, or L for an image without a label. The first of several equally rare
      labels is returned.
    """
    size = labels.shape[1]
    order = np.argsort(labels.sum(axis=0), kind="stable")
    ordered = labels[:, order]
    return np.where(ordered.any(axis=1), order[ordered.argmax(axis=1)], size)
