"""The training state on disk while a run is under way."""

from __future__ import annotations

import concurrent.futures
import logging
from typing import Any

import jax
import numpy as np
from etils import epath

from rankckpt_jax.devices import mapping, processes
from rankckpt_jax.finetune.step import State
from rankckpt_jax.storage import files, store

_SAVES_KEPT = 2

_log = logging.getLogger(__name__)


class Saves:
    """Saves of one training loop in DIRECTORY/STEP; the last two are kept.

    All processes hold the same state. Process 0 writes it in the background.
    """

    def __init__(self, directory: epath.Path, key: dict[str, Any]):
        """Initialize without reading or writing anything.

        Args:
          directory: A directory of its own.
          key: JSON-able inputs that decide the training.
        """
        self._directory = epath.Path(directory)
        self._key = key
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._write: concurrent.futures.Future[None] | None = None
        self._last_step = 0

    def close(self) -> None:
        """Wait for the save that is being written, and stop the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def restore(self, state: State) -> tuple[State, int, dict[str, Any]]:
        """Return (state, step, facts) of the latest intact save, or (`state`, 0, {}).

        Saves that are damaged or have another key are logged and removed.
        """
        named, structure = _named_leaves(state)
        for step in processes.broadcast_from_main(self._steps()[::-1]):
            saved = store.load_variables(self._directory / str(step), self._key)
            if saved is not None and saved[0].keys() == named.keys():
                leaves, facts = [saved[0][name] for name in named], saved[1]
                _log.info("training: resuming from step %d", step)
                self._last_step = step
                # Replicated, because the compiled step expects it.
                state = jax.tree.unflatten(structure, leaves)
                return mapping.replicate(state), step, dict(facts)
            _log.warning("%s: save is not usable; removed", self._directory / str(step))
            if processes.is_main_process():
                (self._directory / str(step)).rmtree()
        return state, 0, {}

    def save(self, step: int, state: State, facts: dict[str, Any]) -> None:
        """Save in the background; the memory of the state may be reused at once.

        Args:
          step: Number of steps taken.
          state: The state after them.
          facts: JSON-able values that `restore` returns.

        Raises:
          StorageError: The previous save could not be written.
        """
        if not processes.is_main_process() or step == self._last_step:
            return
        self.wait()
        self._last_step = step
        # A copy, because the next training step overwrites the arrays.
        named, _ = _named_leaves(jax.tree.map(np.array, state))
        self._write = self._thread.submit(self._save, step, named, facts)

    def _save(self, step: int, named: dict[str, Any], facts: dict[str, Any]) -> None:
        place = self._directory / str(step)
        store.save_variables(place, self._key, facts, named)
        with files.writing(self._directory):
            for old in self._steps()[:-_SAVES_KEPT]:
                (self._directory / str(old)).rmtree()

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
          StorageError: It could not be written.
        """
        write, self._write = self._write, None
        if write is not None:
            write.result()

    def discard(self) -> None:
        """Remove all saves; new ones may follow."""
        self.wait()
        self._last_step = 0
        remove(self._directory)

    def _steps(self) -> list[int]:
        if not processes.is_main_process() or not self._directory.exists():
            return []
        names = [path.name for path in self._directory.iterdir()]
        return sorted(int(name) for name in names if name.isdigit())


def remove(directory: epath.Path) -> None:
    """Remove all saves in a directory."""
    if processes.is_main_process() and directory.exists():
        directory.rmtree()


def _named_leaves(state: State) -> tuple[dict[str, Any], Any]:
    """Return the leaves of a state by their path, and its tree structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}, structure
