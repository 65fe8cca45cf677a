"""The training state on disk while a run is under way, by Orbax."""

from __future__ import annotations

import logging
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rankckpt_jax import parallel, store
from rankckpt_jax.finetune.step import State

_log = logging.getLogger(__name__)


class Saves:
    """Saves of one run, or of several that share their steps; the last two are kept.

    All processes hold the same state: process 0 writes it, reads it and hands it round.
    """

    def __init__(self, directory: epath.Path, wanted: dict[str, Any]):
        """Opens `directory`, throwing away what was saved for another request."""
        self._directory = epath.Path(directory)
        request = self._directory.parent / "state.json"
        if store.load_result(request, wanted) is None:
            self._remove()
            store.save_result(request, wanted, {})
        self._manager = None
        if parallel.is_main_process():
            self._directory.mkdir(parents=True, exist_ok=True)
            alone = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="saves"
            )
            self._manager = ocp.CheckpointManager(
                # Orbax asks for an absolute path.
                self._directory.resolve(),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=2,
                    create=False,
                    # What a killed run was writing.
                    cleanup_tmp_directories=True,
                    multiprocessing_options=alone,
                ),
            )

    def close(self) -> None:
        """Waits for a save that is being written in the background, and ends."""
        if self._manager is not None:
            self._manager.close()

    def restore(self, state: State) -> tuple[State, int, dict[str, Any]]:
        """Returns (state, its step, facts saved with it): the latest, or `state`."""
        step, facts = None, {}
        # Onto the devices in the form that the compiled step expects, whatever the
        # number of devices was when it was saved.
        values = jax.tree.map(np.asarray, tuple(state))
        if self._manager is not None:
            step = self._manager.latest_step()
            if step is not None:
                args = ocp.args
                saved = self._manager.restore(
                    step,
                    args=args.Composite(
                        state=args.StandardRestore(State(*values)),
                        facts=args.JsonRestore(),
                    ),
                )
                values, facts = tuple(saved.state), dict(saved.facts)
        step, facts = parallel.agree([step, facts])
        if step is None:
            return state, 0, {}
        _log.info("fine-tuning goes on from step %d", step)
        restored = parallel.broadcast(jax.tree.map(np.asarray, values))
        return parallel.replicate(State(*restored)), step, facts

    def save(self, step: int, state: State, facts: dict[str, Any]) -> None:
        """Saves in the background; the state's memory may be reused at once.

        Args:
          step: Steps taken.
          state: After them.
          facts: JSON-able.
        """
        if self._manager is None or step == self._manager.latest_step():
            return
        if parallel.process_count() > 1:
            # Orbax takes arrays of all processes for parts of one.
            state = jax.tree.map(np.asarray, state)
        args = ocp.args
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(state), facts=args.JsonSave(facts)
            ),
        )

    def discard(self) -> None:
        """Removes what was saved: the outcome is known."""
        if self._manager is not None:
            self._manager.wait_until_finished()
        self._remove()

    def _remove(self) -> None:
        if not parallel.is_main_process():
            return
        if self._directory.exists():
            self._directory.rmtree()
        (self._directory.parent / "state.json").unlink(missing_ok=True)
