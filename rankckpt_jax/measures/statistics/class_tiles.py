"""Tiles of rows of one class, to visit all pairs of images within classes.

The rows of each class are padded to a multiple of the tile size, so that a tile holds
rows of one class, all tiles have one shape, and no N x N array exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_SIZES = (16, 32, 64, 128, 256)
"""Rows of a tile. Larger ones leave too few tiles of common class sizes."""

_STEP = 2048
"""Cost of visiting a pair of tiles, in pairs of rows."""


class ClassTiles(NamedTuple):
    """T tiles of B rows each.

    Attributes:
      rows: int [T, B], indices of rows; -1 in the padding.
      labels: int [T], the class of each tile.
      pairs: int32 [P, 2], all tiles i <= j of one class, ascending.
    """

    rows: np.ndarray
    labels: np.ndarray
    pairs: np.ndarray

    def gather(self, x: np.ndarray) -> np.ndarray:
        """Return the rows of x [N, D] by tile, and zeros in the padding: [T, B, D]."""
        tiles = x[self.rows]
        tiles[self.rows < 0] = 0
        return tiles


def divide(groups: Sequence[np.ndarray]) -> ClassTiles:
    """Divide the rows of each class into tiles.

    Args:
      groups: For each class the indices of its rows, at least one.
    """
    sizes = np.array([len(group) for group in groups])
    size = min(_SIZES, key=lambda size: _cost(sizes, size))
    rows, pairs = [], []
    labels: list[int] = []
    for label, group in enumerate(groups):
        count = -(-len(group) // size)
        first, second = np.triu_indices(count)
        pairs.append(np.stack([first, second], axis=1) + len(labels))
        padding = np.full(count * size - len(group), -1)
        rows.append(np.concatenate([group, padding]).reshape(count, size))
        labels += [label] * count
    return ClassTiles(
        np.concatenate(rows),
        np.array(labels),
        np.concatenate(pairs).astype(np.int32),
    )


def _cost(sizes: np.ndarray, size: int) -> int:
    """Return the cost of visiting all pairs of tiles of this size."""
    tiles = -(-sizes // size)
    return int(np.sum(tiles * (tiles + 1) // 2) * (size**2 + _STEP))
