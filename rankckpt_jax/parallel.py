"""The only room that knows devices and hosts.

Per-example code elsewhere is written for one device, with a named axis `AXIS` for
its collectives (`jax.lax.psum(x, AXIS)`); `map_devices` runs it on every local
device of every process. One process with one device is the same path with an axis
of size one.

Several processes run the same program side by side: `join` brings them together, and
whatever decides what comes next is made equal on all of them (`agree`, `gather`,
`together`, `should_stop`). These are collectives too: every process calls them, in the
same order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rankckpt_jax.errors import InputError

AXIS = "batch"
"""Name of the mapped axis: the devices, over which a batch is divided."""

MAPPING = "pmap"
"""How `map_devices` maps: "pmap" or "shard_map"; the results are equal."""

PROGRAMS_KEPT = 32
"""Compiled functions of a kind that are kept: as many as a pool may well mix
architectures; see `kept`."""

EXIT_AGAIN = 75
"""Exit code of a run that was stopped and goes on when started again: EX_TEMPFAIL."""

_CPU_DEVICES = 8
"""Most devices that the cores of a CPU are divided into: each holds the weights."""

# A process that has died is noticed within this time at the latest.
_HEARTBEAT_SECONDS = 60

Tree = TypeVar("Tree")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


def num_cores() -> int:
    """Processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def divide_cores() -> None:
    """Makes a device of each core of a CPU; before JAX is asked for a device.

    One device works on a batch with all cores, but what it does between two large
    products is often done by one of them. Where each core takes its share of a batch
    none waits: on two cores features are extracted 13 to 19 % faster.
    Accelerators are not concerned, and a number of CPU devices that the environment
    sets (XLA_FLAGS or JAX_NUM_CPU_DEVICES) stands.
    """
    said = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not said and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", min(num_cores(), _CPU_DEVICES))


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
            mend="start all processes at about the same time; check "
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


def local_device_count() -> int:
    """Number of devices attached to this process."""
    return jax.local_device_count()


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


def gather(value: Any) -> list[Any]:
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


def agree(value: Any) -> Any:
    """Process 0's value, on every process; JSON-able."""
    return value if jax.process_count() == 1 else gather(value)[0]


def broadcast(tree: Tree) -> Tree:
    """Process 0's arrays, in NumPy, on every process; shapes and dtypes are equal."""
    return multihost_utils.broadcast_one_to_all(tree)


def together(action: Callable[[], Result]) -> Result:
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
    everyone = gather([told, _questions.asked])
    _questions.asked = max(asked for _, asked in everyone)
    if error is not None:
        raise error
    for process, (message, _) in enumerate(everyone):
        if message is not None:
            name, what, text = message
            kinds = {kind.__name__: kind for kind in InputError.__subclasses__()}
            kind = kinds.get(name, InputError)
            raise kind(what, found=f"in process {process}: {text}")
    return result  # type: ignore[return-value]


_told_to_stop = threading.Event()


@dataclasses.dataclass
class _Questions:
    """How often `should_stop` has asked; equal on all processes, or they never meet."""

    asked: int = 0


_questions = _Questions()


@contextlib.contextmanager
def stopping_when_told() -> Iterator[None]:
    """Turns SIGTERM, a scheduler's notice, into the answer of `should_stop`.

    With several processes JAX's own preemption service listens: whichever of them is
    told, all stop at the same question.
    """
    if jax.process_count() > 1 or threading.current_thread() is not (
        threading.main_thread()
    ):
        yield
        return

    def note(number: int, frame: types.FrameType | None) -> None:
        del number, frame
        _told_to_stop.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _told_to_stop.clear()


def should_stop() -> bool:
    """Whether this run has been told to end; the same answer on every process."""
    # JAX counts questions, and tells all processes at the same one.
    if jax.process_count() > 1:
        _questions.asked += 1
        if multihost_utils.reached_preemption_sync_point(_questions.asked):
            _told_to_stop.set()
    return _told_to_stop.is_set()


def map_devices(
    function: Callable[..., Any],
    in_axes: Any = 0,
    out_axes: Any = 0,
    *,
    donate_argnums: Sequence[int] = (),
) -> Callable[..., Any]:
    """Compiles `function` for one device and maps it over all of them.

    Args:
      function: Per-device code; may use collectives over `AXIS`.
      in_axes: As in `jax.pmap`: None for a value that all devices share, 0 for one
        whose leading axis is the local device (see `shard`).
      out_axes: Likewise; None for a result that is equal on every device.
      donate_argnums: Arguments whose memory may be reused for the results.

    Returns:
      The mapped function. Keep it: a new one compiles again.
    """
    mapping = {"pmap": _pmap, "shard_map": _shard_map}[MAPPING]
    return mapping(function, in_axes, out_axes, tuple(donate_argnums))


def kept(make: Callable[..., Callable[..., Any]]) -> Any:
    """`functools.cache` for functions that compile, so that memory stays bounded.

    JAX holds on to whatever pmap has compiled, also where nobody else does; it can only
    be told to drop everything. This is done after each `PROGRAMS_KEPT` of a kind: what
    is used again after that is compiled again.

    Args:
      make: Called as `make(*hashable)`; returns a function that `map_devices` made, or
        that such functions call.
    """
    known: dict[Any, Callable[..., Any]] = {}

    @functools.wraps(make)
    def get(*key: Any) -> Callable[..., Any]:
        if key not in known:
            if len(known) >= PROGRAMS_KEPT:
                known.clear()
                jax.clear_caches()
            known[key] = make(*key)
        return known[key]

    get.cache_clear = known.clear  # type: ignore[attr-defined]
    return get


def _pmap(
    function: Callable[..., Any], in_axes: Any, out_axes: Any, donate: tuple[int, ...]
) -> Callable[..., Any]:
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=in_axes,
        out_axes=out_axes,
        donate_argnums=donate,
    )


def _shard_map(
    function: Callable[..., Any], in_axes: Any, out_axes: Any, donate: tuple[int, ...]
) -> Callable[..., Any]:
    """As `_pmap`: the same axes, with a leading axis of local devices where it is 0."""

    def on_one(*arguments: Any) -> Any:
        arguments = _where_mapped(in_axes, arguments, lambda x: jnp.squeeze(x, 0))
        result = function(*arguments)
        return _where_mapped(out_axes, result, lambda x: jnp.expand_dims(x, 0))

    # In the order in which the processes count them.
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    in_specs, out_specs = _specs(in_axes), _specs(out_axes)
    mapped = jax.jit(
        jax.shard_map(
            on_one, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        ),
        donate_argnums=donate,
    )
    if jax.process_count() == 1:
        return mapped

    def call(*arguments: Any) -> Any:
        given = multihost_utils.host_local_array_to_global_array(
            arguments, mesh, in_specs
        )
        return multihost_utils.global_array_to_host_local_array(
            mapped(*given), mesh, out_specs
        )

    return call


def _is_none(axis: Any) -> bool:
    return axis is None


def _specs(axes: Any) -> Any:
    spec = jax.sharding.PartitionSpec
    return jax.tree.map(
        lambda axis: spec() if axis is None else spec(AXIS), axes, is_leaf=_is_none
    )


def _where_mapped(axes: Any, tree: Any, change: Callable[[Any], Any]) -> Any:
    def part(axis: Any, subtree: Any) -> Any:
        return subtree if axis is None else jax.tree.map(change, subtree)

    return jax.tree.map(part, axes, tree, is_leaf=_is_none)


def shard(tree: Tree) -> Tree:
    """Splits each array's leading axis [n * b, ...] into [n, b, ...] for n devices."""
    devices = local_device_count()

    def split(array: Any) -> Any:
        return array.reshape(devices, array.shape[0] // devices, *array.shape[1:])

    return jax.tree.map(split, tree)


def unshard(tree: Tree) -> Tree:
    """Undoes `shard`, onto the host: [n, b, ...] to NumPy [n * b, ...]."""

    def join(array: Any) -> np.ndarray:
        array = np.asarray(array)
        return array.reshape(-1, *array.shape[2:])

    return jax.tree.map(join, tree)


def round_up_to_devices(batch_size: int) -> int:
    """Smallest multiple of the local device count that is at least `batch_size`."""
    devices = local_device_count()
    return math.ceil(batch_size / devices) * devices


def replicate(tree: Tree) -> Tree:
    """Puts a pytree on every local device once, for arguments with `in_axes=None`.

    Without this each call would copy the value from the first device to the others.
    """
    mesh = jax.sharding.Mesh(np.asarray(jax.local_devices()), (AXIS,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(lambda x: jax.device_put(jnp.asarray(x), everywhere), tree)
