"""A TensorFlow graph as a pure function: images and variables in, tensors out.

Modules and SavedModels keep their network as a graph in which functions call functions
and variables are read and assigned in place. `flat_graph.flatten` brings all calls to
one level; `extract` keeps what some outputs need, makes a placeholder of every variable
and an output of every assignment, and gives nodes names that depend on the structure
alone, so that two checkpoints of one network have equal graphs.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rankckpt_jax.checkpoints.graphs import flat_graph as flat_lib
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files

Path = tuple[str, ...]
"""Where a variable stands: ("params" or "batch_stats", scope, ..., leaf)."""

IMAGES = "images"
"""Name of the images' placeholder in an extracted graph."""

_CONTROL_FLOW = re.compile(
    "(Ref)?(Switch|Merge|Enter|Exit|NextIteration)|LoopCond|(Stateless)?(If|While|Case)"
)
# TensorFlow's numbers of two types.
_FLOAT, _BOOL = 1, 10
_PLACEHOLDERS = ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault")


@dataclasses.dataclass(frozen=True)
class Graph:
    """A pure function of images and variables, as TensorFlow would describe it.

    Attributes:
      definition: Serialized `GraphDef` with placeholders `IMAGES` and `variables`.
      variables: Placeholder's name and path of every variable that is read.
      features: Name of the features' tensor.
      updates: Path of every variable that a step of training assigns, and the name
        of the tensor with its new value.
    """

    definition: bytes = dataclasses.field(repr=False)
    variables: tuple[tuple[str, Path], ...] = dataclasses.field(repr=False)
    features: str
    updates: tuple[tuple[Path, str], ...] = dataclasses.field(default=(), repr=False)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides the function."""
        return files.digest(
            self.definition, repr((self.variables, self.features, self.updates))
        )


@dataclasses.dataclass(frozen=True)
class Slot:
    """What becomes of a variable.

    Attributes:
      path: Where it goes.
      dtype: TensorFlow's number of its type.
    """

    path: Path
    dtype: int


def extract(
    flat: flat_lib.Flat,
    *,
    images: str,
    features: str,
    slots: Mapping[str, Slot],
    assigned: Iterable[str] = (),
    where: str = "",
) -> Graph:
    """Keeps what the features and the assignments need, as a pure function.

    Args:
      flat: Where from; unchanged.
      images: Tensor of the images.
      features: Tensor of the features.
      slots: What becomes of each variable, by its name in the graph.
      assigned: Nodes that assign, from `flat_graph.assignments`.
      where: For messages: the file or handle.

    Raises:
      InputError: An operation has no counterpart in JAX, or another input than the
        images is needed.
    """
    images = flat.resolve(images)
    made: dict[str, Any] = {}
    updates: dict[str, str] = {}
    node_type = type(next(iter(flat.nodes.values())))
    for name in assigned:
        node = flat.nodes[name]
        variable = flat.variable(node.input[0])
        if variable is None:
            raise flat_lib.unsupported(node.op, name, where)
        operation = flat_lib.ASSIGNMENTS[node.op]
        if operation is None:
            updates[variable] = node.input[1]
            continue
        # A second assignment of the kind goes on from the first.
        old = updates.get(variable, node.input[0])
        kind = node.attr["T" if "T" in node.attr else "dtype"].type
        made[f"{name}/new"] = made_node = node_type(name=f"{name}/new", op=operation)
        made_node.attr["T"].type = kind
        made_node.input.extend([old, node.input[1]])
        updates[variable] = f"{name}/new:0"

    fed = flat.nodes[flat_lib.node_name(images)]
    made[fed.name] = placeholder_node = node_type(name=fed.name, op="Placeholder")
    placeholder_node.attr["dtype"].type = _FLOAT
    nodes = {**flat.nodes, **made}
    lookup = dataclasses.replace(flat, nodes=nodes)
    used: set[str] = set()

    def sources(tensor: str) -> tuple[str, list[str]]:
        """(the tensor itself, what it is computed from)."""
        if tensor == images:
            return tensor, []
        variable = lookup.variable(tensor)
        if variable is not None:
            used.add(variable)
            return f"variable {variable}", []
        tensor = lookup.value(tensor)
        if tensor == images:
            return tensor, []
        node = nodes[flat_lib.node_name(tensor)]
        if node.op == "PlaceholderWithDefault" and not _is_switch(node):
            return sources(lookup.resolve(node.input[0]))
        _check(node, lookup, where)
        return tensor, list(node.input)

    ends = [features, *(updates[name] for name in sorted(updates))]
    order, final = _sorted(ends, sources)
    graph_def = _definition(flat, nodes, order)
    names = {name: f"n{i}" for i, name in enumerate(order)}

    def rename(tensor: str) -> str:
        tensor = final[flat_lib.tensor_name(tensor)]
        if tensor == images:
            return IMAGES
        if tensor.startswith("variable "):
            return placeholder[tensor.removeprefix("variable ")]
        name, _, index = tensor.rpartition(":")
        return f"{names[name]}:{index}"

    placeholder = {
        name: f"v{i}"
        for i, name in enumerate(sorted(used, key=lambda name: slots[name].path))
    }
    for node in graph_def.node:
        original = node.name
        node.name = IMAGES if f"{original}:0" == images else names[original]
        inputs = [rename(i) for i in node.input]
        del node.input[:]
        node.input.extend(inputs)
    for variable, name in placeholder.items():
        node = graph_def.node.add(name=name, op="Placeholder")
        node.attr["dtype"].type = slots[variable].dtype
    outputs = [rename(end) for end in ends]
    return Graph(
        graph_def.SerializeToString(deterministic=True),
        tuple((name, slots[variable].path) for variable, name in placeholder.items()),
        flat_lib.tensor_name(outputs[0]),
        tuple(
            (slots[variable].path, flat_lib.tensor_name(tensor))
            for variable, tensor in zip(sorted(updates), outputs[1:], strict=True)
        ),
    )


def _sorted(
    ends: Iterable[str], sources: Callable[[str], tuple[str, list[str]]]
) -> tuple[list[str], dict[str, str]]:
    """Orders nodes so that inputs come first, by the structure alone.

    Returns:
      (names of nodes, the tensor itself of every reference met).
    """
    order: dict[str, None] = {}
    final: dict[str, str] = {}
    for end in ends:
        # Depth first, with a stack of our own: graphs are deeper than Python's.
        stack: list[tuple[str, Iterator[str] | None]] = [
            (flat_lib.tensor_name(end), None)
        ]
        while stack:
            reference, rest = stack[-1]
            if rest is None:
                if reference in final:
                    stack.pop()
                    continue
                final[reference], needed = sources(reference)
                if not needed and (
                    final[reference].startswith("variable ")
                    or flat_lib.node_name(final[reference]) in order
                ):
                    stack.pop()
                    continue
                rest = iter([flat_lib.tensor_name(i) for i in needed])
                stack[-1] = (reference, rest)
            following = next(rest, None)
            if following is not None:
                stack.append((following, None))
                continue
            stack.pop()
            order.setdefault(flat_lib.node_name(final[reference]))
    return list(order), final


def _definition(
    flat: flat_lib.Flat, nodes: Mapping[str, Any], order: Iterable[str]
) -> Any:
    """A `GraphDef` of the nodes in that order, without what depends on the export."""
    from tensorflow.core.framework import graph_pb2

    graph_def = graph_pb2.GraphDef()
    graph_def.versions.CopyFrom(flat.versions)
    functions = set()
    for name in order:
        node = graph_def.node.add()
        node.CopyFrom(nodes[name])
        node.ClearField("device")
        node.ClearField("experimental_debug_info")
        for key in [key for key in node.attr if key.startswith("_")]:
            del node.attr[key]
        for value in node.attr.values():
            functions |= {value.func.name, *(f.name for f in value.list.func)}
    functions.discard("")
    if functions:
        graph_def.library.CopyFrom(flat.library)
    return graph_def


def _check(node: Any, lookup: flat_lib.Flat, where: str) -> None:
    """Refuses a node that cannot become JAX."""
    if node.op in _PLACEHOLDERS:
        if _is_switch(node):
            raise InputError(
                f"The graph waits for a switch, {node.name!r}, to be told whether it "
                "is training",
                where=where,
                expected="two graphs (tags {} and {train}), or a function with an "
                "argument `training`",
                found=f"{node.op} {node.name!r}",
                fix="export it again with the switch set to a Python bool, once as "
                "False and once as True",
            )
        raise InputError(
            f"The graph needs another input than the images: {node.name!r}",
            where=where,
            found=f"{node.op} {node.name!r}",
            fix="export it with images as the only input, or name another signature",
        )
    functional = node.op in ("StatelessIf", "If", "StatelessWhile", "While")
    if functional and not any(lookup.value(i) in lookup.handles for i in node.input):
        return
    if _CONTROL_FLOW.fullmatch(node.op):
        raise InputError(
            f"The graph has control flow: {node.op}",
            where=where,
            found=f"{node.op} {node.name!r}",
            fix="export the network with Python's `if` on a Python bool, once for "
            "training and once for evaluation",
        )
    if not supported(node.op):
        raise flat_lib.unsupported(node.op, node.name, where)


def supported(op: str) -> bool:
    """Whether the operation has a counterpart in JAX."""
    from rankckpt_jax.checkpoints.graphs import jax_operations

    return jax_operations.supported(op)


def _is_switch(node: Any) -> bool:
    return node.op in _PLACEHOLDERS and node.attr["dtype"].type == _BOOL
