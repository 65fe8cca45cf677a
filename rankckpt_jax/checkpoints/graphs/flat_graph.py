"""A TensorFlow graph without function calls, and what can be read off it.

Nothing of a graph is run here, and this module does not import TensorFlow: it handles
protocol buffers that its callers have read.
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
"""Operations that assign a variable, and those that make its new value of the old and
the given one; None where the given one is it."""

# What passes its first input on unchanged. Of these PreventGradient would stop tf2jax,
# and IdentityN may name a gradient function that exists only where it was exported.
_PASSING = ("Identity", "IdentityN", "PreventGradient", "CheckNumerics", "EnsureShape")


@dataclasses.dataclass
class Flat:
    """A graph without function calls, between `flatten` and `extract`.

    Tensors are named "NODE:INDEX".

    Attributes:
      nodes: `NodeDef`s by name; their inputs may be aliases.
      aliases: Tensors that are other tensors under another name.
      handles: Variables' names by the tensor that refers to them.
      controls: What runs before a node, beside its inputs.
      library: Functions that nodes other than calls name.
      versions: Of the `GraphDef`.
    """

    nodes: dict[str, Any]
    aliases: dict[str, str]
    handles: dict[str, str]
    controls: dict[str, list[str]]
    library: Any
    versions: Any

    def resolve(self, tensor: str) -> str:
        """Follows aliases to the tensor they stand for."""
        tensor = tensor_name(tensor)
        while tensor in self.aliases:
            tensor = self.aliases[tensor]
        return tensor

    def producer(self, tensor: str) -> Any:
        """The node that a tensor comes from, aliases and passing nodes followed."""
        return self.nodes[node_name(self.value(tensor))]

    def value(self, tensor: str) -> str:
        """Follows aliases and nodes that change nothing."""
        tensor = self.resolve(tensor)
        while (node := self.nodes[node_name(tensor)]).op in _PASSING:
            index = int(tensor.rpartition(":")[2])
            tensor = self.resolve(node.input[index])
        return tensor

    def variable(self, tensor: str) -> str | None:
        """The variable whose value a tensor is, if it is one's."""
        tensor = self.value(tensor)
        node = self.nodes[node_name(tensor)]
        if node.op == "ReadVariableOp":
            tensor = self.value(node.input[0])
        return self.handles.get(tensor)


@dataclasses.dataclass(frozen=True)
class Head:
    """A linear classifier found at the end of a graph.

    Attributes:
      features: Tensor that it reads.
      kernel: Variable of shape [D, C] or [1, 1, D, C].
      bias: Variable of shape [C], or None.
    """

    features: str
    kernel: str
    bias: str | None


def tensor_name(reference: str) -> str:
    """Writes a node's reference as a tensor's name: "a" is "a:0"."""
    return reference if ":" in reference else f"{reference}:0"


def node_name(reference: str) -> str:
    """The node that a reference of any form is to: "^a", "a", "a:1", "a:out:0"."""
    return reference.removeprefix("^").split(":")[0]


def flatten(graph_def: Any, captured: Mapping[str, str] | None = None) -> Flat:
    """Brings the bodies of all functions to the top level.

    Args:
      graph_def: A `GraphDef`.
      captured: Variables' names by the placeholders that stand for their handles.
    """
    library = {f.signature.name: f for f in graph_def.library.function}
    flat = Flat({}, {}, {}, {}, graph_def.library, graph_def.versions)

    def place(
        nodes: Iterable[Any], prefix: str, translate: Callable[[str], str]
    ) -> None:
        for node in nodes:
            name = prefix + node.name
            inputs = [translate(i) for i in node.input if not i.startswith("^")]
            before = [prefix + node_name(i) for i in node.input if i.startswith("^")]
            called = _called(node, library)
            flat.controls[name] = before
            if called is not None:
                enter(called, name, inputs)
                continue
            copy = type(node)()
            copy.CopyFrom(node)
            copy.name = name
            del copy.input[:]
            copy.input.extend(inputs)
            flat.nodes[name] = copy
            if node.op in _HANDLES:
                flat.handles[f"{name}:0"] = name

    def enter(function: Any, name: str, inputs: list[str]) -> None:
        arguments = {
            argument.name: given
            for argument, given in zip(
                function.signature.input_arg, inputs, strict=True
            )
        }
        body = {node.name: node for node in function.node_def}

        def translate(reference: str) -> str:
            if node_name(reference) in arguments:
                return arguments[node_name(reference)]
            inner, output, index = reference.split(":")
            offset = _offset(body[inner], output, library)
            return f"{name}/{inner}:{offset + int(index)}"

        place(function.node_def, f"{name}/", translate)
        for i, output in enumerate(function.signature.output_arg):
            flat.aliases[f"{name}:{i}"] = translate(function.ret[output.name])
        # A call has run when all of its effects have.
        flat.controls[name] += [
            f"{name}/{node_name(inner)}" for inner in function.control_ret.values()
        ]

    place(graph_def.node, "", tensor_name)
    for placeholder, variable in (captured or {}).items():
        flat.handles[f"{placeholder}:0"] = variable
    return flat


def _called(node: Any, library: Mapping[str, Any]) -> Any:
    if node.op in _CALLS:
        return library[node.attr["f"].func.name]
    return library.get(node.op)


def _offset(node: Any, output: str, library: Mapping[str, Any]) -> int:
    """Index of the first tensor of a node's output of that name."""
    called = library.get(node.op)
    if called is not None:
        return [o.name for o in called.signature.output_arg].index(output)
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


def assignments(flat: Flat, ends: Iterable[str] | None = None) -> list[str]:
    """Names of the nodes that assign variables.

    Args:
      flat: Where.
      ends: Nodes or tensors; only what runs before them counts. All if None, which is
        what a TensorFlow 2 function runs.
    """
    if ends is None:
        reached: Iterable[str] = flat.nodes
    else:
        reached = _before(flat, ends)
    return [name for name in reached if flat.nodes[name].op in ASSIGNMENTS]


def _before(flat: Flat, ends: Iterable[str]) -> list[str]:
    """All nodes that run for `ends`, in the order of the graph."""
    seen: set[str] = set()
    waiting = []
    for end in ends:
        name = node_name(end)
        waiting.append(node_name(flat.resolve(end)) if name not in flat.nodes else name)
        waiting += flat.controls.get(name, [])
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += flat.controls.get(name, [])
        if name in flat.nodes:
            waiting += [node_name(flat.resolve(i)) for i in flat.nodes[name].input]
    return [name for name in flat.nodes if name in seen]


def head(flat: Flat, tensor: str) -> tuple[Head, bool] | None:
    """Recognizes a tensor as a linear classifier's logits or probabilities.

    Returns:
      (the classifier, whether a softmax or sigmoid follows it), or None.
    """
    squashed = False

    def skip(tensor: str) -> str:
        nonlocal squashed
        while (op := flat.producer(tensor).op) in (
            "Softmax",
            "Sigmoid",
            "Squeeze",
            "Reshape",
        ):
            squashed |= op in ("Softmax", "Sigmoid")
            tensor = flat.producer(tensor).input[0]
        return flat.value(tensor)

    tensor = skip(tensor)
    node, bias = flat.producer(tensor), None
    if node.op in ("BiasAdd", "Add", "AddV2"):
        first, second = node.input[:2]
        if _bias(flat, second) is None:
            first, second = second, first
        bias = _bias(flat, second)
        if bias is None:
            return None
        node = flat.producer(skip(first))
    if node.op not in ("MatMul", "Conv2D") or (
        "transpose_b" in node.attr and node.attr["transpose_b"].b
    ):
        return None
    kernel = flat.variable(node.input[1])
    if kernel is None:
        return None
    return Head(flat.value(node.input[0]), kernel, bias), squashed


def _bias(flat: Flat, tensor: str) -> str | None:
    """The variable that a tensor is, be it with dimensions of 1 before its own."""
    while (node := flat.producer(tensor)).op in ("Reshape", "Squeeze", "ExpandDims"):
        tensor = node.input[0]
    return flat.variable(tensor)


def unsupported(op: str, name: str, where: str = "") -> InputError:
    """The error for an operation that cannot become JAX."""
    return InputError(
        f"The graph has an operation without a counterpart in JAX: {op}",
        where=where,
        found=f"{op} {name!r}",
        fix="name an earlier output, or export the network without it",
    )
