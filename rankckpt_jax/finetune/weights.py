"""Weights of trials that are kept after training, in finetune/weights/TRIAL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from rankckpt_jax.devices import processes
from rankckpt_jax.finetune.step import State
from rankckpt_jax.storage import store


def directory(finetune: epath.Path) -> epath.Path:
    """Return the directory of all kept weights of a checkpoint."""
    return epath.Path(finetune) / "weights"


def save(
    place: epath.Path, key: Mapping[str, Any], state: State, row: int | None = None
) -> None:
    """Store the weights of a state, without that of the optimizer.

    Args:
      place: A directory of its own.
      key: JSON-able inputs that decide the weights.
      state: The state; with a leading axis for several trials.
      row: Position of the trial on this axis; None for a state of one trial.
    """

    def take(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return array if row is None else array[row]

    kept = {"params": state.params, "batch_stats": state.batch_stats}
    store.save_variables(place, key, {}, jax.tree.map(take, kept))


def load(place: epath.Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `params` and `batch_stats` as in `State`; None if they are not stored.

    Empty parts are missing, such as the batch statistics of a transformer.
    """
    stored = store.load_variables(place, key)
    return None if stored is None else stored[0]


def remove(finetune: epath.Path, keep: str = "") -> None:
    """Remove the kept weights of a checkpoint.

    Args:
      finetune: The checkpoint's `finetune` directory.
      keep: Name of the trial whose weights stay; empty for none.
    """
    place = directory(finetune)
    if not processes.is_main_process() or not place.exists():
        return
    for path in place.iterdir():
        if path.name != keep:
            path.rmtree()
    if not keep:
        place.rmtree()
