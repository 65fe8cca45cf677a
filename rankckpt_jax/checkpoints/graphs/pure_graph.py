"""A TensorFlow graph as a pure function: images and variables in, tensors out.

SavedModels keep a network as a graph in which functions call functions, and variables
are read and assigned in place. `flat_graph.flatten` inlines the calls. `extract` keeps
what the requested outputs need, turns every variable into a placeholder and every
assignment into an output, and names the nodes by the structure alone, so that two
checkpoints of one network have equal graphs.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rankckpt_jax.checkpoints.graphs import flat_graph
from rankckpt_jax.checkpoints.graphs.flat_graph import node_name, tensor_name
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files

Path = tuple[str, ...]
"""Place of a variable: ("params" or "batch_stats", scope, ..., leaf)."""

IMAGES = "images"
"""Name of the images' placeholder in an extracted graph."""

_CONTROL_FLOW = re.compile(
    "(Ref)?(Switch|Merge|Enter|Exit|NextIteration)|LoopCond|(Stateless)?(If|While|Case)"
)
_FUNCTIONAL = ("StatelessIf", "If", "StatelessWhile", "While")
# Values of TensorFlow's enum DataType.
_FLOAT, _BOOL = 1, 10
_PLACEHOLDERS = ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault")
# Marks a variable among tensors; no tensor's name contains a space.
_VARIABLE = "variable "


@dataclasses.dataclass(frozen=True)
class PureGraph:
    """A pure function of images and variables.

    Attributes:
      definition: Serialized `GraphDef` with placeholders for `IMAGES` and `variables`.
      variables: Name of the placeholder and path of every variable that is read.
      features: Name of the features' tensor.
      updates: Path of every variable that a training step assigns, and name of the
        tensor with its new value.
    """

    definition: bytes = dataclasses.field(repr=False)
    variables: tuple[tuple[str, Path], ...] = dataclasses.field(repr=False)
    features: str
    updates: tuple[tuple[Path, str], ...] = dataclasses.field(default=(), repr=False)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides the function."""
        return files.digest(
            self.definition, repr((self.variables, self.features, self.updates))
        )


def extract(
    flat: flat_graph.FlatGraph,
    *,
    images: str,
    features: str,
    paths: Mapping[str, Path],
    dtypes: Mapping[str, int],
    assigned: Iterable[str] = (),
    where: str = "",
) -> PureGraph:
    """Return the part of a graph that the features and assignments need.

    Args:
      flat: The graph; it is not changed.
      images: Tensor of the images.
      features: Tensor of the features.
      paths: Path of each variable, by its name in the graph.
      dtypes: `DataType` of each variable, by its name in the graph.
      assigned: Names of nodes that assign, from `flat_graph.assignments`.
      where: The file or handle, for messages.

    Raises:
      InputError: An operation has no counterpart in JAX, or another input than the
        images is needed.
    """
    images = flat.resolve(images)
    nodes = dict(flat.nodes)
    updates = _add_updates(flat, nodes, assigned, where)
    name = node_name(images)
    nodes[name] = type(nodes[name])(name=name, op="Placeholder")
    nodes[name].attr["dtype"].type = _FLOAT
    graph = dataclasses.replace(flat, nodes=nodes)
    used: set[str] = set()

    def inputs_of(tensor: str) -> tuple[str, list[str]]:
        """Return (the tensor that a reference stands for, the inputs of its node)."""
        if tensor == images:
            return tensor, []
        variable = graph.variable(tensor)
        if variable is not None:
            used.add(variable)
            return _VARIABLE + variable, []
        tensor = graph.value(tensor)
        if tensor == images:
            return tensor, []
        node = nodes[node_name(tensor)]
        if node.op == "PlaceholderWithDefault" and not _is_switch(node):
            return inputs_of(graph.resolve(node.input[0]))
        _check_node(node, graph, where)
        return tensor, list(node.input)

    ends = [features, *(updates[name] for name in sorted(updates))]
    order, final = _topological_order(ends, inputs_of)
    names = {name: f"n{i}" for i, name in enumerate(order)}
    names[node_name(images)] = IMAGES
    placeholders = {
        name: f"v{i}"
        for i, name in enumerate(sorted(used, key=lambda name: paths[name]))
    }

    def rename(tensor: str) -> str:
        tensor = final[tensor_name(tensor)]
        if tensor == images:
            return IMAGES
        if tensor.startswith(_VARIABLE):
            return placeholders[tensor.removeprefix(_VARIABLE)]
        name, _, index = tensor.rpartition(":")
        return f"{names[name]}:{index}"

    graph_def = _graph_def(flat, nodes, order)
    for node in graph_def.node:
        node.name = names[node.name]
        inputs = [rename(i) for i in node.input]
        del node.input[:]
        node.input.extend(inputs)
    for variable, name in placeholders.items():
        node = graph_def.node.add(name=name, op="Placeholder")
        node.attr["dtype"].type = dtypes[variable]
    outputs = [tensor_name(rename(end)) for end in ends]
    return PureGraph(
        graph_def.SerializeToString(deterministic=True),
        tuple((name, paths[variable]) for variable, name in placeholders.items()),
        outputs[0],
        tuple(
            (paths[variable], tensor)
            for variable, tensor in zip(sorted(updates), outputs[1:], strict=True)
        ),
    )


def _add_updates(
    flat: flat_graph.FlatGraph,
    nodes: dict[str, Any],
    assigned: Iterable[str],
    where: str,
) -> dict[str, str]:
    """Add nodes for the variables' new values; return their tensors by variable."""
    updates: dict[str, str] = {}
    for name in assigned:
        node = flat.nodes[name]
        variable = flat.variable(node.input[0])
        if variable is None:
            raise flat_graph.unsupported(node.op, name, where)
        operation = flat_graph.ASSIGNMENTS[node.op]
        if operation is None:
            updates[variable] = node.input[1]
            continue
        # A second `+=` of the same variable starts from the result of the first.
        old = updates.get(variable, node.input[0])
        new = type(node)(name=f"{name}/new", op=operation)
        new.attr["T"].type = node.attr["T" if "T" in node.attr else "dtype"].type
        new.input.extend([old, node.input[1]])
        nodes[new.name] = new
        updates[variable] = f"{new.name}:0"
    return updates


def _topological_order(
    ends: Iterable[str], inputs_of: Callable[[str], tuple[str, list[str]]]
) -> tuple[list[str], dict[str, str]]:
    """Sort nodes so that inputs come first, by the structure alone.

    Returns:
      (names of nodes, the tensor that each visited reference stands for).
    """
    order: dict[str, None] = {}
    final: dict[str, str] = {}
    for end in ends:
        # Depth first with an explicit stack: graphs exceed Python's recursion limit.
        stack: list[tuple[str, Iterator[str] | None]] = [(tensor_name(end), None)]
        while stack:
            reference, rest = stack[-1]
            if rest is None:
                if reference in final:
                    stack.pop()
                    continue
                final[reference], inputs = inputs_of(reference)
                if final[reference].startswith(_VARIABLE):
                    stack.pop()
                    continue
                rest = iter([tensor_name(i) for i in inputs])
                stack[-1] = (reference, rest)
            following = next(rest, None)
            if following is not None:
                stack.append((following, None))
                continue
            stack.pop()
            order.setdefault(node_name(final[reference]))
    return list(order), final


def _graph_def(
    flat: flat_graph.FlatGraph, nodes: Mapping[str, Any], order: Iterable[str]
) -> Any:
    """Return a `GraphDef` of nodes, without what differs between exports."""
    # Imported late, since it imports TensorFlow.
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


def _check_node(node: Any, graph: flat_graph.FlatGraph, where: str) -> None:
    """Raise `InputError` for a node that cannot become JAX."""
    # Imported late, since it imports TensorFlow.
    from rankckpt_jax.checkpoints.graphs import jax_operations

    found = f"{node.op} {node.name!r}"
    if node.op in _PLACEHOLDERS:
        if _is_switch(node):
            raise InputError(
                f"The graph reads a boolean input, {node.name!r}, to switch training "
                "on or off",
                where=where,
                expected="two graphs (tags {} and {train}), or a function with an "
                "argument `training`",
                found=found,
                fix="export it again with the switch set to a Python bool, once as "
                "False and once as True",
            )
        raise InputError(
            f"The graph needs another input than the images: {node.name!r}",
            where=where,
            found=found,
            fix="export it with images as the only input, or name another signature",
        )
    if node.op in _FUNCTIONAL and not any(
        graph.value(i) in graph.handles for i in node.input
    ):
        return
    if _CONTROL_FLOW.fullmatch(node.op):
        raise InputError(
            f"The graph has control flow: {node.op}",
            where=where,
            found=found,
            fix="export the network with Python's `if` on a Python bool, once for "
            "training and once for evaluation",
        )
    if not jax_operations.supported(node.op):
        raise flat_graph.unsupported(node.op, node.name, where)


def _is_switch(node: Any) -> bool:
    return node.op in _PLACEHOLDERS and node.attr["dtype"].type == _BOOL
