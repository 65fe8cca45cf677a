"""Rescaling of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def min_max(values: Sequence[float]) -> np.ndarray:
    """Rescale values linearly to [0, 1]; return zeros if all are equal."""
    array = np.asarray(values, np.float64)
    width = array.max() - array.min()
    return (array - array.min()) / width if width > 0 else np.zeros_like(array)
