"""A TensorFlow graph with all function calls inlined.

This module only reads protocol buffers; nothing of a graph is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rankckpt_jax.errors import InputError

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_HANDLES = ("VarHandleOp", "VariableV2", "Variable")
ASSIGNMENTS: Mapping[str, str | None] = {
    "AssignVariableOp": None,
    "Assign": None,
    "AssignAddVariableOp": "AddV2",
    "AssignAdd": "AddV2",
    "AssignSubVariableOp": "Sub",
    "AssignSub": "Sub",
}
"""Operations that assign a variable, and the operation that computes the new value
from the old value and the second input. None if the second input is the new value."""

# Operations that return their inputs. tf2jax has no PreventGradient, and IdentityN may
# name a gradient function that exists only in the exporting program.
_PASSING = ("Identity", "IdentityN", "PreventGradient", "CheckNumerics", "EnsureShape")


class UnsupportedOperation(InputError):
    """An operation of a graph has no counterpart in JAX."""


@dataclasses.dataclass
class FlatGraph:
    """A graph without function calls. Tensors are named "NODE:INDEX".

    Attributes:
      nodes: `NodeDef`s by name. Their inputs may be aliases.
      aliases: Outputs of inlined calls, and the tensors that they equal.
      handles: Names of variables, by the tensors that refer to them.
      controls: Control inputs of each node: nodes that run before it.
      library: Functions that nodes other than calls use, such as loop bodies.
      versions: Versions of the `GraphDef`.
    """

    nodes: dict[str, Any]
    aliases: dict[str, str]
    handles: dict[str, str]
    controls: dict[str, list[str]]
    library: Any
    versions: Any

    def resolve(self, tensor: str) -> str:
        """Return the tensor that an alias stands for."""
        tensor = tensor_name(tensor)
        while tensor in self.aliases:
            tensor = self.aliases[tensor]
        return tensor

    def value(self, tensor: str) -> str:
        """Return the tensor that was passed on, through aliases and identities."""
        tensor = self.resolve(tensor)
        while (node := self.nodes[node_name(tensor)]).op in _PASSING:
            index = int(tensor.rpartition(":")[2])
            tensor = self.resolve(node.input[index])
        return tensor

    def producer(self, tensor: str) -> Any:
        """Return the node that computes a tensor, through aliases and identities."""
        return self.nodes[node_name(self.value(tensor))]

    def variable(self, tensor: str) -> str | None:
        """Return the name of the variable that a tensor reads, or None."""
        tensor = self.value(tensor)
        node = self.nodes[node_name(tensor)]
        if node.op == "ReadVariableOp":
            tensor = self.value(node.input[0])
        return self.handles.get(tensor)


def tensor_name(reference: str) -> str:
    """Return the name of a tensor: "a" becomes "a:0"."""
    return reference if ":" in reference else f"{reference}:0"


def node_name(reference: str) -> str:
    """Return the node of a reference: "^a", "a", "a:1" and "a:out:0" become "a"."""
    return reference.removeprefix("^").split(":")[0]


def flatten(graph_def: Any, captured: Mapping[str, str] | None = None) -> FlatGraph:
    """Inline all function calls.

    Args:
      graph_def: A `GraphDef`.
      captured: Names of variables, by the placeholders of their handles.
    """
    library = {f.signature.name: f for f in graph_def.library.function}
    flat = FlatGraph({}, {}, {}, {}, graph_def.library, graph_def.versions)

    def add(nodes: Iterable[Any], prefix: str, translate: Callable[[str], str]) -> None:
        for node in nodes:
            name = prefix + node.name
            inputs = [translate(i) for i in node.input if not i.startswith("^")]
            before = [prefix + node_name(i) for i in node.input if i.startswith("^")]
            flat.controls[name] = before
            called = library.get(node.op)
            if node.op in _CALLS:
                called = library[node.attr["f"].func.name]
            if called is not None:
                inline(called, name, inputs)
                continue
            copy = type(node)()
            copy.CopyFrom(node)
            copy.name = name
            del copy.input[:]
            copy.input.extend(inputs)
            flat.nodes[name] = copy
            if node.op in _HANDLES:
                flat.handles[f"{name}:0"] = name

    def inline(function: Any, name: str, inputs: list[str]) -> None:
        names = [argument.name for argument in function.signature.input_arg]
        arguments = dict(zip(names, inputs, strict=True))
        body = {node.name: node for node in function.node_def}

        def translate(reference: str) -> str:
            if node_name(reference) in arguments:
                return arguments[node_name(reference)]
            inner, output, index = reference.split(":")
            offset = _output_offset(body[inner], output, library)
            return f"{name}/{inner}:{offset + int(index)}"

        add(function.node_def, f"{name}/", translate)
        for i, output in enumerate(function.signature.output_arg):
            flat.aliases[f"{name}:{i}"] = translate(function.ret[output.name])
        # A call is complete only after all of its side effects.
        flat.controls[name] += [
            f"{name}/{node_name(inner)}" for inner in function.control_ret.values()
        ]

    add(graph_def.node, "", tensor_name)
    for placeholder, variable in (captured or {}).items():
        flat.handles[f"{placeholder}:0"] = variable
    return flat


def _output_offset(node: Any, output: str, library: Mapping[str, Any]) -> int:
    """Return the index of the first tensor of a node's output of that name."""
    called = library.get(node.op)
    if called is not None:
        return [o.name for o in called.signature.output_arg].index(output)
    # Imported late, since it imports TensorFlow.
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(node.op)
    if definition is None:
        raise unsupported(node.op, node.name)
    index = 0
    for argument in definition.output_arg:
        if argument.name == output:
            return index
        if argument.number_attr:
            index += node.attr[argument.number_attr].i
        elif argument.type_list_attr:
            index += len(node.attr[argument.type_list_attr].list.type)
        else:
            index += 1
    raise ValueError(f"{node.op} has no output {output!r}")


def assignments(flat: FlatGraph, ends: Iterable[str] | None = None) -> list[str]:
    """Return the names of the nodes that assign variables.

    Args:
      flat: The graph.
      ends: Nodes or tensors; only what runs before them counts. None means all nodes,
        which is what a TensorFlow 2 function runs.
    """
    reached = flat.nodes if ends is None else _ancestors(flat, ends)
    return [
        name
        for name, node in flat.nodes.items()
        if name in reached and node.op in ASSIGNMENTS
    ]


def _ancestors(flat: FlatGraph, ends: Iterable[str]) -> set[str]:
    """Return the names of all nodes that run before `ends`."""
    seen: set[str] = set()
    pending = []
    for end in ends:
        name = node_name(end)
        pending.append(name if name in flat.nodes else node_name(flat.resolve(end)))
        pending += flat.controls.get(name, [])
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        pending += flat.controls.get(name, [])
        if name in flat.nodes:
            pending += [node_name(flat.resolve(i)) for i in flat.nodes[name].input]
    return seen


def unsupported(op: str, name: str, where: str = "") -> InputError:
    """Return the error for an operation without a counterpart in JAX."""
    return UnsupportedOperation(
        f"The graph has an operation without a counterpart in JAX: {op}",
        where=where,
        found=f"{op} {name!r}",
        fix="name an earlier output, or export the network without it",
    )
