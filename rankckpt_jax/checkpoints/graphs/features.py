"""Find a network's features and its linear classifier."""

from __future__ import annotations

import dataclasses
import re

from rankckpt_jax.checkpoints.graphs.flat_graph import FlatGraph, node_name
from rankckpt_jax.checkpoints.graphs.network import Function, Network, Shape
from rankckpt_jax.errors import InputError

# Names of pooled pre-logits in VTAB, TF-Hub and Keras, the most specific first.
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
# Ends of names of outputs that are features, even if a linear layer computes them.
_EMBEDDING_NAMES = re.compile(
    r"embed|project|latent|feature|represent|code|pre_?logits"
)
_RESHAPES = ("Reshape", "Squeeze", "ExpandDims")
_ACTIVATIONS = ("Softmax", "LogSoftmax", "Sigmoid")
# Operations between pooling and a classifier.
_BEHIND_POOLING = (*_RESHAPES, "Relu", "Relu6", "Cast", "Mul", "Dropout")
_POOLING = ("Mean", "Max", "AvgPool", "MaxPool")


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A linear classifier at the end of a graph.

    Attributes:
      features: Tensor that it reads.
      kernel: Variable of shape [D, C] or [1, 1, D, C].
      bias: Variable with C values, or None.
      has_activation: Whether a softmax or sigmoid follows.
      is_dense: Whether it is a matrix product instead of a convolution.
    """

    features: str
    kernel: str
    bias: str | None
    has_activation: bool
    is_dense: bool


def choose_output(network: Network, output: str | None) -> str:
    """Return the name of the output or tensor that holds the features.

    Args:
      network: The contents of the checkpoint.
      output: The user's choice; None selects by the usual names.

    Raises:
      InputError: There is no such output, or the choice is ambiguous.
    """
    function = network.evaluation
    if output is not None:
        if output in function.outputs or _inner_tensor(function, output):
            return output
        raise _ambiguous(network, f"There is no output {output!r}")
    candidates = [
        name
        for name in function.outputs
        if (shape := function.shapes[name]) is None or len(shape) in (2, 4)
    ]
    if len(function.outputs) == 1 and candidates:
        return candidates[0]
    for name in _FEATURE_NAMES:
        if name in candidates:
            return name
    pooled = [
        name
        for name in candidates
        if not _LOGITS_NAMES.fullmatch(name) and _is_pooled(function.shapes[name])
    ]
    if len(pooled) == 1:
        return pooled[0]
    raise _ambiguous(network, "Ambiguous output")


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
        fix="name it: output=NAME, which may be a tensor within the graph; or name "
        "another signature",
    )


def _inner_tensor(function: Function, output: str) -> str | None:
    """Return the only tensor within a graph with that name or end of a name."""
    nodes = function.flat.nodes
    if ":" in output and node_name(output) in nodes:
        return output
    matches = [n for n in nodes if n == output or n.endswith(f"/{output}")]
    return f"{matches[0]}:0" if len(matches) == 1 else None


def tensor(function: Function, name: str) -> str:
    """Return the tensor of an output, or a tensor within the graph.

    Raises:
      InputError: There is none.
    """
    result = function.outputs.get(name) or _inner_tensor(function, name)
    if result is None:
        raise InputError(
            f"The training graph has no output {name!r}",
            found=", ".join(function.outputs),
            fix="name an output that both graphs have",
        )
    return result


def classifier_of(function: Function, name: str) -> Classifier | None:
    """Return the classifier that computes an output, or None.

    A dense layer, or a convolution over pooled features, that is the last layer is a
    classifier, unless its output is named like features. A convolution over positions
    counts if its output is named like a classifier's, or if a softmax or sigmoid
    follows.
    """
    flat = function.flat
    layer = _linear_layer(flat, tensor(function, name))
    if layer is None:
        return None
    if layer.has_activation or _LOGITS_NAMES.fullmatch(name):
        return layer
    if name in _FEATURE_NAMES or _EMBEDDING_NAMES.search(name.lower()):
        return None
    return layer if layer.is_dense or _is_pooled_tensor(flat, layer.features) else None


def _is_pooled_tensor(flat: FlatGraph, tensor: str) -> bool:
    """Return whether a tensor is pooled features, by the operations before it."""
    while (node := flat.producer(tensor)).op in _BEHIND_POOLING:
        tensor = node.input[0]
    return node.op in _POOLING


def classifier_on(function: Function, features: str) -> Classifier | None:
    """Return the classifier among all outputs that reads the features, or None."""
    target = _before_reshapes(function.flat, features)
    for name in function.outputs:
        head = classifier_of(function, name)
        if head and _before_reshapes(function.flat, head.features) == target:
            return head
    return None


def _before_reshapes(flat: FlatGraph, tensor: str) -> str:
    while (node := flat.producer(tensor)).op in _RESHAPES:
        tensor = node.input[0]
    return flat.value(tensor)


def _linear_layer(flat: FlatGraph, tensor: str) -> Classifier | None:
    """Return the linear layer that computes a tensor, or None."""
    has_activation = False

    def skip(tensor: str) -> str:
        nonlocal has_activation
        # Networks of mixed precision cast between layers.
        passed = ("Cast", *_ACTIVATIONS, *_RESHAPES)
        while (node := flat.producer(tensor)).op in passed:
            has_activation |= node.op in _ACTIVATIONS
            tensor = node.input[0]
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
    transposed = "transpose_b" in node.attr and node.attr["transpose_b"].b
    if node.op not in ("MatMul", "Conv2D") or transposed:
        return None
    kernel = flat.variable(_before_casts(flat, node.input[1]))
    if kernel is None:
        return None
    is_dense = node.op == "MatMul"
    features = flat.value(node.input[0])
    return Classifier(features, kernel, bias, has_activation, is_dense)


def _bias(flat: FlatGraph, tensor: str) -> str | None:
    """Return the variable that a tensor is, possibly reshaped, or None."""
    return flat.variable(_before_reshapes(flat, _before_casts(flat, tensor)))


def _before_casts(flat: FlatGraph, tensor: str) -> str:
    while (node := flat.producer(tensor)).op == "Cast":
        tensor = node.input[0]
    return tensor
