"""The training state on disk while a run is under way, by Orbax.

Orbax writes a step whole or not at all. Whether what is read later is what was written
is told by a checksum of our own over the arrays, saved with each step.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rankckpt_jax.devices import mapping, processes
from rankckpt_jax.finetune.step import State
from rankckpt_jax.storage import files, store

_log = logging.getLogger(__name__)


class Saves:
    """Saves of one run, or of several that share their steps; the last two are kept.

    All processes hold the same state: process 0 writes it, reads it and hands it round.
    """

    def __init__(self, directory: epath.Path, wanted: dict[str, Any]):
        """Opens `directory`, throwing away what was saved for another request."""
        self._directory = epath.Path(directory)
        request = _request(self._directory)
        if store.load_result(request, wanted) is None:
            remove(self._directory)
            store.save_result(request, wanted, {})
        self._manager = None
        if processes.is_main_process():
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
            with self._writing():
                self._manager.close()

    def restore(self, state: State) -> tuple[State, int, dict[str, Any]]:
        """Returns (state, its step, facts saved with it): the latest, or `state`.

        A save that cannot be read or does not match its checksum is logged and thrown
        away: the one before it is taken, or `state`.
        """
        step: int | None = None
        facts: dict[str, Any] = {}
        # Onto the devices in the form that the compiled step expects, whatever the
        # number of devices was when it was saved.
        values = jax.tree.map(np.asarray, tuple(state))
        if self._manager is not None:
            for saved_step in sorted(self._manager.all_steps(), reverse=True):
                found = self._read(saved_step, values)
                if found is not None:
                    step, (values, facts) = saved_step, found
                    break
                self._manager.delete(saved_step)
        step, facts = processes.broadcast_from_main([step, facts])
        if step is None:
            return state, 0, {}
        _log.info("training goes on from step %d", step)
        restored = processes.broadcast(jax.tree.map(np.asarray, values))
        return mapping.replicate(State(*restored)), step, facts

    def _read(self, step: int, values: Any) -> tuple[Any, dict[str, Any]] | None:
        """(arrays like `values`, facts) of a save; None where it is damaged."""
        assert self._manager is not None
        args = ocp.args
        place = self._directory / str(step)
        try:
            saved = self._manager.restore(
                step,
                args=args.Composite(
                    state=args.StandardRestore(State(*values)),
                    facts=args.JsonRestore(),
                ),
            )
            found = jax.tree.map(np.asarray, tuple(saved.state))
            facts, checksum = saved.facts["facts"], saved.facts["checksum"]
        except Exception as error:
            # Whatever Orbax and what is below it make of damaged files.
            text = "%s cannot be read (%s): not used"
            _log.warning(text, place, files.reason(error))
            return None
        if _checksum(found, facts) != checksum:
            _log.warning("%s does not match its checksum: not used", place)
            return None
        return found, facts

    def save(self, step: int, state: State, facts: dict[str, Any]) -> None:
        """Saves in the background; the state's memory may be reused at once.

        Args:
          step: Steps taken.
          state: After them.
          facts: JSON-able.

        Raises:
          StorageError: This save or the one before cannot be written.
        """
        if self._manager is None or step == self._manager.latest_step():
            return
        values = jax.tree.map(np.asarray, state)
        if processes.process_count() > 1:
            # Orbax takes arrays of all processes for parts of one.
            state = values
        told = {"facts": facts, "checksum": _checksum(tuple(values), facts)}
        args = ocp.args
        with self._writing():
            self._manager.save(
                step,
                args=args.Composite(
                    state=args.StandardSave(state), facts=args.JsonSave(told)
                ),
            )

    def forget(self) -> None:
        """Throws away what was saved; new saves may follow."""
        if self._manager is not None:
            for step in self._manager.all_steps():
                self._manager.delete(step)

    def wait(self) -> None:
        """Returns when what was saved last is on disk."""
        if self._manager is not None:
            with self._writing():
                self._manager.wait_until_finished()

    def discard(self) -> None:
        """Removes what was saved: the outcome is known."""
        self.wait()
        remove(self._directory)

    def _writing(self) -> Any:
        # Orbax tells of a full disk by various errors, some of them from a thread.
        return files.writing(self._directory, ValueError, RuntimeError)


def remove(directory: epath.Path) -> None:
    """Removes the saves in a directory, and what was asked for by them."""
    if processes.is_main_process():
        if directory.exists():
            directory.rmtree()
        _request(directory).unlink(missing_ok=True)


def _request(directory: epath.Path) -> epath.Path:
    return directory.parent / f"{directory.name}.json"


def _checksum(values: Any, facts: Any) -> str:
    """Identity of what one save holds; `facts` as JSON gives them back."""
    text = json.dumps(facts, sort_keys=True)
    return files.digest(text, files.digest_arrays(jax.tree.leaves(values)))
