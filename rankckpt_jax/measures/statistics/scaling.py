"""Rescaling of numbers and of feature matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def min_max(values: Sequence[float]) -> np.ndarray:
    """Rescale values linearly to [0, 1]; return zeros if all are equal."""
    array = np.asarray(values, np.float64)
    width = array.max() - array.min()
    return (array - array.min()) / width if width > 0 else np.zeros_like(array)


def power_of_two(size: float) -> float:
    """Return the power of two that is nearest to a positive size; 1 if it is 0.

    Dividing by it is exact, except for numbers that underflow.
    """
    return float(2.0 ** np.round(np.log2(size))) if size > 0 else 1.0


def to_unit(x: np.ndarray) -> np.ndarray:
    """Divide x [N, D] by a power of two, so that squares cannot overflow or vanish.

    For measures that do not depend on the scale of the features.
    """
    largest = float(np.max(np.abs(x), initial=0))
    return divide(x, power_of_two(largest))


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Divide each row of x [N, D] by its Euclidean length; rows of zeros stay zeros."""
    largest = np.max(np.abs(x), axis=1, keepdims=True)
    # First by the largest entry, so that squares cannot overflow or vanish.
    rows = x / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def divide(x: np.ndarray, scale: float) -> np.ndarray:
    """Divide x by a power of two that the dtype of x may not represent."""
    return np.ldexp(x, -int(np.log2(scale)))


def warn_if(dominates: bool, constant: str) -> str:
    """Return a warning that a constant of a measure dominates small features."""
    if not dominates:
        return ""
    return (
        f"The features are so small that {constant} dominates the score. Scale the "
        "features of all checkpoints alike, or use a measure that does not depend on "
        "the scale, such as logme."
    )
