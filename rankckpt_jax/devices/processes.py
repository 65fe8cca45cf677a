"""Several processes of one run: joining them, and keeping their decisions equal.

The processes run the same program side by side, and `join` connects them. A value that
decides the next step is made equal on all of them (`broadcast_from_main`, `all_gather`,
`sync_errors`). These functions are collectives: all processes call them in the same
order.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rankckpt_jax.devices import signals
from rankckpt_jax.errors import InputError

_log = logging.getLogger(__name__)

# Time after which the other processes notice that one has died.
_HEARTBEAT_SECONDS = 60

# Variables with the number of processes, by which Slurm and Open MPI start programs.
_SIZES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")

Result = TypeVar("Result")


def join(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: int = 300,
) -> None:
    """Connect the processes of a run. Call it before JAX creates its devices.

    On Cloud TPU, GKE, Slurm and with Open MPI, JAX finds the arguments in the
    environment. Without such an environment the run has a single process. All processes
    of a run have the same command line. In a step of Slurm or a job of Open MPI only
    such processes meet, because the coordinator's port depends on it.

    Args:
      coordinator: "HOST:PORT" of process 0; empty to read the environment.
      num_processes: Number of processes; None to read the environment.
      process_id: Number of this process, from 0; None to read the environment.
      timeout_seconds: A process that has not joined by then prints an error and ends
        with exit code 2.

    Raises:
      InputError: Only some of the first three arguments are given, or they are invalid.
    """
    given = {"num_processes": num_processes, "process_id": process_id}
    if coordinator:
        _check_distributed(coordinator, given)
    elif any(value is not None for value in given.values()):
        raise InputError(
            "`config.distributed.coordinator` is not set",
            where="config.distributed",
            expected="HOST:PORT of process 0, such as 10.0.0.1:1234",
            fix="set it, or leave num_processes and process_id unset too",
        )
    elif "COLAB_RELEASE_TAG" in os.environ:
        # A single host, although its TPU looks like part of a cluster.
        return
    elif sizes := [os.environ[name] for name in _SIZES if name in os.environ]:
        if set(sizes) == {"1"}:
            return
        os.environ.setdefault("JAX_COORDINATOR_PORT", str(_port()))
    what = f"process {process_id} of {num_processes}" if coordinator else "this process"
    where = coordinator or "the coordinator named by the cluster's environment"

    def give_up() -> None:
        error = InputError(
            f"{what[0].upper()}{what[1:]} could not join the others within "
            f"{timeout_seconds} s",
            where=where,
            expected="all processes running, and the coordinator to be the address of "
            "process 0, reachable from all of them",
            fix="start all processes at about the same time and with the same command "
            "line; give other runs a Slurm step of their own; check config.distributed "
            "and the firewall; for slower starts raise "
            "config.distributed.timeout_seconds",
        )
        print(f"Error: {error}", file=sys.stderr, flush=True)
        # The main thread waits inside JAX and cannot be interrupted.
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
        # No cluster: a single process.
    finally:
        watch.cancel()


def _port() -> int:
    """Return a port for the processes with this command line in this step."""
    step = [os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    digest = zlib.crc32("\0".join([*step, *sys.argv[1:]]).encode(errors="replace"))
    # The range from which JAX chooses by the job alone.
    return 61_440 + digest % 4096


def check_devices() -> None:
    """Check that JAX has a device. Call it after `join`.

    Raises:
      InputError: The platform that JAX_PLATFORMS names is not there.
    """
    try:
        jax.devices()
    except RuntimeError as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(
            "JAX cannot use the devices of this machine",
            where=f"JAX_PLATFORMS={platforms}" if platforms else "jax.devices()",
            expected="cpu, or cuda or tpu with the device and its driver present",
            found=str(error).strip().splitlines()[0],
            fix="unset JAX_PLATFORMS, or install the extra [cuda] or [tpu]",
        ) from error


def _check_distributed(coordinator: str, given: dict[str, int | None]) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(
            "Invalid coordinator address",
            where="config.distributed.coordinator",
            expected="HOST:PORT, such as 10.0.0.1:1234",
            found=coordinator,
        )
    for name, value in given.items():
        if value is None:
            raise InputError(
                f"`config.distributed.{name}` is not set",
                where="config.distributed",
                expected="coordinator, num_processes and process_id together",
            )
    processes, process = given["num_processes"], given["process_id"]
    if processes is None or process is None or not 0 <= process < processes:
        raise InputError(
            "`config.distributed.process_id` is out of range",
            where="config.distributed",
            expected=f"0 to {(processes or 1) - 1}",
            found=str(process),
        )


def is_loss_of_a_process(error: Exception) -> bool:
    """Return whether an error means that another process of this run has ended."""
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    return several and isinstance(error, jax.errors.JaxRuntimeError)


def process_index() -> int:
    """Return the number of this process, from 0."""
    return jax.process_index()


def process_count() -> int:
    """Return the number of processes of this run."""
    return jax.process_count()


def is_main_process() -> bool:
    """Return whether this is process 0, which prints and writes results."""
    return jax.process_index() == 0


def describe_devices() -> str:
    """Return a description such as "4 x TPU v5 lite in 1 process"."""
    device = jax.devices()[0]
    processes = jax.process_count()
    noun = "process" if processes == 1 else "processes"
    return f"{jax.device_count()} x {device.device_kind} in {processes} {noun}"


def barrier(name: str) -> None:
    """Wait until every process has called this with the same `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_gather(value: Any) -> list[Any]:
    """Return the JSON-able values of all processes, in the order of the processes."""
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data))))
    # Powers of two, because each length compiles a program of its own.
    padded = np.zeros(1 << max(12, int(sizes.max() - 1).bit_length()), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [
        json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)
    ]


def broadcast_from_main(value: Any) -> Any:
    """Return the JSON-able value of process 0 on every process."""
    return value if jax.process_count() == 1 else all_gather(value)[0]


def sync_errors(action: Callable[[], Result]) -> Result:
    """Run an action, and raise on all processes an `InputError` raised on one of them.

    Otherwise the others would wait forever for a process that has failed.

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
    # A process that failed has called `should_stop` less often than the others.
    raised_here = (
        None if error is None else [type(error).__name__, error.what, str(error)]
    )
    gathered = all_gather([raised_here, signals.num_checks()])
    signals.set_num_checks(max(checks for _, checks in gathered))
    if error is not None:
        raise error
    for process, (message, _) in enumerate(gathered):
        if message is not None:
            name, what, text = message
            kinds = {kind.__name__: kind for kind in InputError.__subclasses__()}
            kind = kinds.get(name, InputError)
            raise kind(what, found=f"in process {process}: {text}")
    return result  # type: ignore[return-value]
