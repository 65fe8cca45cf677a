"""Joins the processes of a run and keeps their decisions equal.

Several processes run the same program side by side. `join` connects them. Whatever
decides the next step is made equal on all of them (`broadcast_from_main`, `all_gather`,
`sync_errors`). These functions are collectives: every process calls them, in the same
order.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rankckpt_jax.devices import signals
from rankckpt_jax.errors import InputError

_log = logging.getLogger(__name__)

# A process that has died is noticed within this time at the latest.
_HEARTBEAT_SECONDS = 60

Tree = TypeVar("Tree")
Result = TypeVar("Result")


def join(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: int = 300,
) -> None:
    """Brings the processes of a run together; before JAX is asked for a device.

    On Cloud TPU, GKE, Slurm and under Open MPI nothing need be given: JAX finds it in
    the environment. Without such an environment this process is alone.

    Args:
      coordinator: "HOST:PORT" of process 0; empty to look for it.
      num_processes: How many there are; None to look for it.
      process_id: This one's number, from 0; None to look for it.
      timeout_seconds: A process that has not joined by then ends with exit code 2 and
        a message.

    Raises:
      InputError: Some of the three are given and others missing, or make no sense.
    """
    given = {"num_processes": num_processes, "process_id": process_id}
    if coordinator:
        _check_distributed(coordinator, given)
    elif any(value is not None for value in given.values()):
        raise InputError(
            "The processes have nobody to meet at",
            where="config.distributed.coordinator",
            expected="HOST:PORT of process 0",
            found="nothing",
        )
    elif "COLAB_RELEASE_TAG" in os.environ:
        # One host, whose TPU looks like part of a cluster.
        return
    what = f"process {process_id} of {num_processes}" if coordinator else "this process"
    where = coordinator or "the coordinator that the cluster's environment names"

    def give_up() -> None:
        error = InputError(
            f"{what[0].upper()}{what[1:]} could not join the others within "
            f"{timeout_seconds} s",
            where=where,
            expected="every process started, and the coordinator's address to be that "
            "of process 0, reachable from all",
            fix="start all processes at about the same time; check "
            "config.distributed and the firewall; "
            "config.distributed.timeout_seconds allows for slower starts",
        )
        print(f"Error: {error}", file=sys.stderr, flush=True)
        # The thread that waits in JAX can only be aborted.
        os._exit(2)

    watch = threading.Timer(timeout_seconds, give_up)
    watch.daemon = True
    watch.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            jax.distributed.initialize(
                coordinator or None,
                num_processes,
                process_id,
                initialization_timeout=timeout_seconds + 60,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            )
    except ValueError:
        if coordinator:
            raise
        # No cluster: this process is alone.
    finally:
        watch.cancel()


def _check_distributed(coordinator: str, given: dict[str, int | None]) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(
            "The coordinator's address cannot be used",
            where="config.distributed.coordinator",
            expected="HOST:PORT, such as 10.0.0.1:1234",
            found=coordinator,
        )
    for name, value in given.items():
        if value is None:
            raise InputError(
                "A coordinator alone does not tell the processes apart",
                where=f"config.distributed.{name}",
                expected="a number",
                found="nothing",
            )
    processes, process = given["num_processes"], given["process_id"]
    if processes is None or process is None or not 0 <= process < processes:
        raise InputError(
            "A process's number lies outside their count",
            where="config.distributed.process_id",
            expected=f"0 to {(processes or 1) - 1}",
            found=str(process),
        )


def is_loss_of_a_process(error: Exception) -> bool:
    """Whether an error means that another process of this run has ended."""
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    return several and isinstance(error, jax.errors.JaxRuntimeError)


def process_index() -> int:
    """This process's rank among all, from 0."""
    return jax.process_index()


def process_count() -> int:
    """Number of processes that take part in this run."""
    return jax.process_count()


def is_main_process() -> bool:
    """Whether this is the one process that prints and writes results."""
    return jax.process_index() == 0


def describe_devices() -> str:
    """One line for a log or a report: "4 x TPU v5 lite in 1 process"."""
    device = jax.devices()[0]
    processes = jax.process_count()
    noun = "process" if processes == 1 else "processes"
    return f"{jax.device_count()} x {device.device_kind} in {processes} {noun}"


def barrier(name: str) -> None:
    """Waits until every process is here; `name` tells two barriers apart."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_gather(value: Any) -> list[Any]:
    """Every process's value, in the order of the processes.

    Args:
      value: JSON-able.
    """
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data))))
    # Few lengths, since each is a program of its own.
    padded = np.zeros(1 << max(12, int(sizes.max() - 1).bit_length()), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [
        json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)
    ]


def broadcast_from_main(value: Any) -> Any:
    """Process 0's value, on every process; JSON-able."""
    return value if jax.process_count() == 1 else all_gather(value)[0]


def broadcast(tree: Tree) -> Tree:
    """Process 0's arrays, in NumPy, on every process; shapes and dtypes are equal."""
    return multihost_utils.broadcast_one_to_all(tree)


def sync_errors(action: Callable[[], Result]) -> Result:
    """Runs an action; where it is refused on one process it is refused on all.

    Without this, a process that cannot read its images would leave the others waiting
    for it.

    Raises:
      InputError: The action's own, or that of the first process that raised one.
    """
    if jax.process_count() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except InputError as raised:
        error = raised
    # One that was refused has asked `should_stop` less often than the others.
    told = None if error is None else [type(error).__name__, error.what, str(error)]
    everyone = all_gather([told, signals.question_count.asked])
    signals.question_count.asked = max(asked for _, asked in everyone)
    if error is not None:
        raise error
    for process, (message, _) in enumerate(everyone):
        if message is not None:
            name, what, text = message
            kinds = {kind.__name__: kind for kind in InputError.__subclasses__()}
            kind = kinds.get(name, InputError)
            raise kind(what, found=f"in process {process}: {text}")
    return result  # type: ignore[return-value]
