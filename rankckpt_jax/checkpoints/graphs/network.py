"""A network as its file tells it, before it becomes a `Backbone`.

`saved_models` and `keras_files` fill in a `Network`; here its features are chosen and
its variables are given their places.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from rankckpt_jax.checkpoints.graphs import flat_graph as flat_lib
from rankckpt_jax.checkpoints.graphs import graph as graph_lib
from rankckpt_jax.checkpoints.graphs.graph_apply import Graphs, Pixels
from rankckpt_jax.errors import InputError
from rankckpt_jax.models import layers

Shape = tuple[int | None, ...] | None
"""A tensor's shape; None for what is not known."""

_log = logging.getLogger(__name__)

# Names of pooled pre-logits, the surest first: VTAB's, TF-Hub's, Keras's.
_FEATURE_NAMES = (
    "pre_logits",
    "representation",
    "feature_vector",
    "features",
    "default",
    "pooled",
    "pooler_output",
)
_LOGITS_NAMES = re.compile(
    r"(.*/)?(logits?|predictions?|prob(s|abilities)?|class(es|ification|_logits)?"
    r"|scores|softmax)"
)


@dataclasses.dataclass(frozen=True)
class Function:
    """One way through a network.

    Attributes:
      flat: Its graph.
      images: Tensor that the images are fed to.
      image_shape: Of that tensor.
      outputs: Tensors by the names that the file gives them.
      shapes: Theirs.
      assigned: Nodes that assign variables when it runs.
    """

    flat: flat_lib.Flat
    images: str
    image_shape: Shape
    outputs: Mapping[str, str]
    shapes: Mapping[str, Shape]
    assigned: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Network:
    """What a file holds.

    Attributes:
      where: The file or handle, for messages.
      kind: "TF-Hub module", "SavedModel" or "Keras model".
      evaluation: With batch norm's moving averages.
      training: With batch statistics; None where the file has no such graph.
      dtypes: TensorFlow's number of each variable's type, by name.
      trainable: Names of the variables that training moves.
      read: Values of the named variables.
      image_size: Where the file tells it.
      input_range: Likewise; see `Backbone`.
      input_mean: Likewise.
      pixels: See `Pixels`.
      architecture: The network's name, where the file has one.
    """

    where: str
    kind: str
    evaluation: Function
    training: Function | None
    dtypes: Mapping[str, int]
    trainable: frozenset[str]
    read: Callable[[Iterable[str]], dict[str, np.ndarray]]
    image_size: int | None = None
    input_range: tuple[float, float] = (0.0, 1.0)
    input_mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pixels: Pixels = Pixels()
    architecture: str = ""


@dataclasses.dataclass(frozen=True)
class Converted:
    """A network as Flax variables and graphs.

    Attributes:
      graphs: Its functions.
      variables: {"params", "batch_stats"}, with the classifier as `params["logits"]`.
      names: TensorFlow's names of all variables, with or without use, and shapes.
      values: Of all variables by TensorFlow's names.
      output: Name of the output that the features are.
    """

    graphs: Graphs
    variables: dict[str, Any]
    values: Mapping[str, np.ndarray]
    output: str


def convert(network: Network, output: str | None = None) -> Converted:
    """Chooses the features and makes pure functions and Flax variables.

    Args:
      network: What a file holds.
      output: Name of the features' output, or of a tensor within the graph; chosen by
        the usual names if None.

    Raises:
      InputError: The features cannot be told, or the graph has no counterpart in JAX.
    """
    name = _choose(network, output)
    features, head = _features(network.evaluation, name)
    split = output is None and head is not None and _is_linear(network, head)
    if not split:
        features, head = _tensor(network.evaluation, name), None
    if output is None and head is None:
        head = _head_of_another(network.evaluation, features)
    slots = _slots(network)

    evaluation = graph_lib.extract(
        network.evaluation.flat,
        images=network.evaluation.images,
        features=features,
        slots=slots,
        where=network.where,
    )
    training = None
    if network.training is not None:
        function = network.training
        training_features = _tensor(function, name)
        if split:
            training_features, found = _features(function, name)
            if found is None:
                raise InputError(
                    "The graphs for training and evaluation end differently",
                    where=network.where,
                    fix="name an output that both have: output=NAME",
                )
        movable = [
            node
            for node in function.assigned
            if _assigned(function, node) not in network.trainable
        ]
        training = graph_lib.extract(
            function.flat,
            images=function.images,
            features=training_features,
            slots=slots,
            assigned=movable,
            where=network.where,
        )
    used = {path for graph in (evaluation, training) if graph for path in _paths(graph)}
    names = {slot.path: variable for variable, slot in slots.items()}
    wanted = {names[path] for path in used}
    wanted |= {v for v in (head.kernel, head.bias) if v} if head else set()
    values = network.read(sorted(wanted))
    _finite(values, network.where)
    flat: dict[graph_lib.Path, np.ndarray] = {
        path: _narrow(values[names[path]]) for path in used
    }
    if head is not None:
        flat |= _head_leaves(head, values)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    variables |= flax.traverse_util.unflatten_dict(flat)
    batch = (network.evaluation.image_shape or (None,))[0] or 0
    graphs = Graphs(evaluation, training, network.pixels, batch)
    return Converted(graphs, variables, values, name)


def _narrow(value: np.ndarray) -> np.ndarray:
    """Values in JAX's own width: counters of random draws come in 64 bits."""
    narrow = {"int64": np.int32, "uint64": np.uint32, "float64": np.float32}
    return value.astype(narrow.get(str(value.dtype), value.dtype))


def _assigned(function: Function, node: str) -> str | None:
    return function.flat.variable(function.flat.nodes[node].input[0])


def _paths(graph: graph_lib.Graph) -> list[graph_lib.Path]:
    return [path for _, path in graph.variables] + [path for path, _ in graph.updates]


def _choose(network: Network, output: str | None) -> str:
    """The name of the output or tensor that the features are."""
    function = network.evaluation
    outputs = function.outputs
    if output is not None:
        if output in outputs or _inner(function, output):
            return output
        raise _ambiguous(network, f"There is no output {output!r}")
    fit = [name for name in outputs if _fits(function.shapes[name])]
    if len(outputs) == 1 and fit:
        return fit[0]
    for name in _FEATURE_NAMES:
        if name in fit:
            return name
    pooled = [name for name in fit if not _LOGITS_NAMES.fullmatch(name)]
    pooled = [name for name in pooled if _is_pooled(function.shapes[name])]
    if len(pooled) == 1:
        return pooled[0]
    raise _ambiguous(network, "It cannot be told which output the features are")


def _fits(shape: Shape) -> bool:
    return shape is None or len(shape) in (2, 4)


def _is_pooled(shape: Shape) -> bool:
    return shape is not None and (len(shape) == 2 or shape[1:3] == (1, 1))


def _ambiguous(network: Network, what: str) -> InputError:
    shapes = network.evaluation.shapes
    listed = ", ".join(
        f"{name} {'of unknown shape' if shape is None else list(shape)}"
        for name, shape in shapes.items()
    )
    return InputError(
        what,
        where=network.where,
        expected="one output of shape [B, D] or [B, h, w, D]",
        found=(listed or "no output").replace("None", "?"),
        fix="name it: output=NAME, also of a tensor within the graph; or name another "
        "signature",
    )


def _inner(function: Function, output: str) -> str | None:
    """The one tensor within a graph that a name or the end of one means."""
    if ":" in output and flat_lib.node_name(output) in function.flat.nodes:
        return output
    found = [
        f"{name}:0"
        for name in function.flat.nodes
        if name == output or name.endswith(f"/{output}")
    ]
    return found[0] if len(found) == 1 else None


def _tensor(function: Function, name: str) -> str:
    tensor = function.outputs.get(name) or _inner(function, name)
    if tensor is None:
        raise InputError(
            f"The training graph has no output {name!r}",
            found=", ".join(function.outputs),
            fix="name an output that both graphs have",
        )
    return tensor


def _features(function: Function, name: str) -> tuple[str, flat_lib.Head | None]:
    """(the features' tensor, the classifier that was taken off to get at them).

    Where a network has no other output than its classifier's, its features are what
    the classifier reads.
    """
    tensor = _tensor(function, name)
    found = flat_lib.head(function.flat, tensor)
    if found is None:
        return tensor, None
    head, squashed = found
    if squashed or _LOGITS_NAMES.fullmatch(name):
        return head.features, head
    return tensor, None


def _head_of_another(function: Function, features: str) -> flat_lib.Head | None:
    """The classifier among the other outputs, if it reads the features."""
    flat = function.flat

    def bare(tensor: str) -> str:
        while (node := flat.producer(tensor)).op in ("Squeeze", "Reshape"):
            tensor = node.input[0]
        return flat.value(tensor)

    for name, tensor in function.outputs.items():
        found = flat_lib.head(flat, tensor)
        if (
            found is not None
            and (found[1] or _LOGITS_NAMES.fullmatch(name))
            and bare(found[0].features) == bare(features)
        ):
            return found[0]
    return None


def _is_linear(network: Network, head: flat_lib.Head) -> bool:
    """Whether a classifier that is a convolution looks at one place only."""
    kernel = network.read([head.kernel])[head.kernel]
    return kernel.ndim == 2 or kernel.shape[:2] == (1, 1)


def _head_leaves(
    head: flat_lib.Head, values: Mapping[str, np.ndarray]
) -> dict[graph_lib.Path, np.ndarray]:
    kernel = values[head.kernel]
    kernel = kernel.reshape(kernel.shape[-2:])
    bias = np.zeros(kernel.shape[-1:], kernel.dtype)
    if head.bias is not None:
        bias = values[head.bias].reshape(-1)
    place = ("params", layers.HEAD)
    return {(*place, "kernel"): kernel, (*place, "bias"): bias}


def _slots(network: Network) -> dict[str, graph_lib.Slot]:
    """Gives every variable its place in the tree, by its own name.

    A scope that is a variable as well gets a "_" at its end, and so does a top scope
    that would be taken for the classifier.
    """
    taken: set[graph_lib.Path] = set()
    scopes = {
        tuple(parts[:i])
        for parts in map(_parts, network.dtypes)
        for i in range(1, len(parts))
    }
    slots = {}
    for name, dtype in network.dtypes.items():
        collection = "params" if name in network.trainable else "batch_stats"
        parts = _parts(name)
        if parts[0] == layers.HEAD:
            parts = (f"{layers.HEAD}_", *parts[1:])
        if parts in scopes:
            parts = (*parts[:-1], f"{parts[-1]}_")
        while (collection, *parts) in taken:
            parts = (*parts[:-1], f"{parts[-1]}_")
        taken.add((collection, *parts))
        slots[name] = graph_lib.Slot((collection, *parts), dtype)
    return slots


def _parts(name: str) -> tuple[str, ...]:
    """A variable's name in parts, without the scope that TF-Hub puts around all."""
    parts = tuple(part for part in name.split("/") if part)
    return parts[1:] if len(parts) > 1 and parts[0] == "module" else parts


def _finite(values: Mapping[str, np.ndarray], where: str) -> None:
    for name, value in values.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise InputError(
                f"Variable {name!r} has NaN or infinite values",
                where=where,
                fix="take another step of the training run that wrote it",
            )
