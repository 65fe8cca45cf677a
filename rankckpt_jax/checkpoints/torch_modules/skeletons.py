"""Skeletons: PyTorch networks without weights, into which a trace puts its own.

A skeleton keeps only what no checkpoint of the architecture changes, such as Swin's
tables of relative positions. One skeleton serves all checkpoints of an architecture, so
that they share compiled programs.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from rankckpt_jax.checkpoints.torch_modules import spec as spec_lib
from rankckpt_jax.checkpoints.torch_modules.spec import ModuleSpec
from rankckpt_jax.storage import files

STATISTICS = ("running_mean", "running_var")
"""Buffers that training updates."""

_COUNTER = "num_batches_tracked"

_skeletons: dict[tuple[ModuleSpec, str], Skeleton] = {}
# Threads that compile ahead trace too, and a trace changes the module.
_lock = threading.RLock()


@dataclasses.dataclass(frozen=True, eq=False)
class Skeleton:
    """A network whose parameters and running statistics have no values.

    Attributes:
      module: The network.
      locations: (name, dictionary of a submodule, key) of each parameter and running
        statistic. A shared tensor has several locations and one name.
    """

    module: Any
    locations: tuple[tuple[str, dict[str, Any], str], ...]

    @contextlib.contextmanager
    def filled(
        self, tensors: Mapping[str, Any], train: bool, dtype: Any
    ) -> Iterator[Any]:
        """Yield the network with values, and restore all its attributes afterwards.

        Args:
          tensors: Values by name. A missing one has no value, which is an error where
            it is used.
          train: Whether the network is in training mode.
          dtype: `torch.dtype` of other floating buffers.
        """
        with _lock, unchanged(self.module):
            self.module.train(train)
            for part in self.module.modules():
                for key, buffer in part._buffers.items():
                    if buffer is not None and buffer.is_floating_point():
                        part._buffers[key] = buffer.to(dtype)
            for name, place, key in self.locations:
                if name in tensors:
                    place[key] = tensors[name]
            yield self.module


def register(spec: ModuleSpec, module: Any) -> str:
    """Keep the skeleton of a network, unless an equal one is kept already.

    Args:
      spec: Its name.
      module: The network with its weights, which stays as it is.

    Returns:
      The digest of its constants, to be passed to `get`.
    """
    constants = _digest_constants(module)
    with _lock:
        if (spec, constants) not in _skeletons:
            _skeletons[spec, constants] = _strip(module)
    return constants


def get(spec: ModuleSpec, constants: str) -> Skeleton:
    """Return the skeleton of a network, which is built if none was registered."""
    with _lock:
        if (spec, constants) not in _skeletons:
            register(spec, spec_lib.build(spec).eval())
        return _skeletons[spec, constants]


def named_tensors(module: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (the parameters, the running statistics) of a network by name."""
    statistics = {
        name: buffer
        for name, buffer in module.named_buffers()
        if name.rpartition(".")[2] in STATISTICS and buffer.is_floating_point()
    }
    return dict(module.named_parameters()), statistics


def _strip(module: Any) -> Skeleton:
    """Return the skeleton of a network without copying its weights."""
    torch = spec_lib.import_library("torch")
    parameters, statistics = named_tensors(module)
    memo: dict[int, Any] = {}
    names: dict[int, str] = {}
    for name, tensor in (parameters | statistics).items():
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        if name in parameters:
            empty = torch.nn.Parameter(empty, requires_grad=False)
        # `deepcopy` takes what it finds here for the copy.
        memo[id(tensor)] = empty
        names[id(empty)] = name
    with torch.no_grad():
        skeleton = copy.deepcopy(module, memo).eval()
    locations = []
    for part in skeleton.modules():
        # Without its counter, batch norm does not average cumulatively.
        if _COUNTER in part._buffers:
            part._buffers[_COUNTER] = None
        for place in (part._parameters, part._buffers):
            locations += [
                (names[id(tensor)], place, key)
                for key, tensor in place.items()
                if id(tensor) in names
            ]
    return Skeleton(skeleton, tuple(locations))


def _digest_constants(module: Any) -> str:
    """Return a digest of all tensors that are neither parameters nor statistics."""
    torch = spec_lib.import_library("torch")
    _, statistics = named_tensors(module)
    parts: list[str | bytes] = []
    for prefix, part in module.named_modules():
        tensors = {k: v for k, v in vars(part).items() if isinstance(v, torch.Tensor)}
        for key, tensor in {**part._buffers, **tensors}.items():
            name = f"{prefix}.{key}".strip(".")
            if tensor is None or name in statistics or key == _COUNTER:
                continue
            values = tensor.detach().cpu()
            if values.dtype == torch.bfloat16:
                values = values.float()
            parts += [name, str(values.numpy().dtype), values.numpy().tobytes()]
    return files.digest(*parts)


@contextlib.contextmanager
def unchanged(module: Any) -> Iterator[None]:
    """Restore all attributes of a module and its submodules at the end.

    Some networks keep tensors that they compute from their weights. Other weights must
    not find them.
    """
    kept = [
        (container, container.copy())
        for part in module.modules()
        for container in _containers(vars(part))
    ]
    try:
        yield
    finally:
        for container, contents in kept:
            container.clear()
            add = container.update if isinstance(container, dict) else container.extend
            add(contents)


def _containers(value: Any) -> Iterator[Any]:
    """Yield a dictionary or list and all those within it."""
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item)


@functools.cache
def torch_dtype(name: str) -> Any:
    """Return the `torch.dtype` of a name such as "bfloat16"."""
    return getattr(spec_lib.import_library("torch"), name)
