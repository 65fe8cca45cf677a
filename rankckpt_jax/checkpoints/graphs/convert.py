"""Convert a network that was read from a file to a `Backbone`."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.checkpoints.backbone import Backbone, split_head
from rankckpt_jax.checkpoints.graphs import features as features_lib
from rankckpt_jax.checkpoints.graphs import input_range as input_range_lib
from rankckpt_jax.checkpoints.graphs import pure_graph, recognize
from rankckpt_jax.checkpoints.graphs.flat_graph import UnsupportedOperation, node_name
from rankckpt_jax.checkpoints.graphs.graph_apply import GraphApply, Graphs
from rankckpt_jax.checkpoints.graphs.network import Function, Network
from rankckpt_jax.checkpoints.graphs.pure_graph import Path, PureGraph
from rankckpt_jax.checkpoints.pixels import Pixels
from rankckpt_jax.checkpoints.sources import Options
from rankckpt_jax.errors import InputError
from rankckpt_jax.models import layers

_log = logging.getLogger(__name__)

_DEFAULT_SIZE = 224


def to_backbone(network: Network, fingerprint: str, options: Options) -> Backbone:
    """Return the network as a Flax network of `models` if it is one, else as a graph.

    Args:
      network: The contents of the checkpoint.
      fingerprint: Digest of the checkpoint's files and of the selected output.
      options: The user's choices.

    Raises:
      InputError: The features are ambiguous, the graph has no counterpart in JAX, or
        the image size does not fit.
    """
    handle = options.handle or network.where
    size, warnings = _image_size(network, options, handle)
    converted = convert(network, options.output or None)
    found = None
    if network.kind != "TF-Hub module":
        found = input_range_lib.find(network)
    if found is not None:
        converted = converted.without_pixels()
    input_range = options.input_range or found or network.input_range
    if input_range is None:
        input_range = (0.0, 1.0)
        warnings["input_range"] = (
            "Input range unknown; assuming [0, 1]. To set another, append "
            "#input_range=LOW:HIGH to the checkpoint's name, such as 0:255 or -1:1"
        )
    elif not (options.input_range or found) and network.range_source:
        warnings["input_range"] = network.range_source
    for text in warnings.values():
        _log.warning("%s: %s", handle, text)
    if converted.graphs.training is None:
        _log.warning(
            "%s: no graph for training; fine-tuning leaves its batch norm unchanged. "
            "To fine-tune it fully, export it again with a training graph",
            handle,
        )
    apply = GraphApply(converted.graphs)
    variables = converted.variables
    feature_dim = _feature_dim(apply, variables, size, handle)
    without_head, head = split_head(variables)
    parameters = jax.tree.leaves(without_head["params"])
    graph_digest = converted.graphs.evaluation.digest
    graph_backbone = Backbone(
        name=options.name,
        architecture=network.architecture or f"graph_{graph_digest[:8]}",
        variables=variables,
        apply=apply,
        image_size=size,
        input_range=input_range,
        input_mean=options.input_mean or network.input_mean,
        feature_dim=feature_dim,
        num_source_classes=0 if head is None else head["bias"].shape[-1],
        num_parameters=sum(leaf.size for leaf in parameters),
        fingerprint=fingerprint,
        source=options.handle,
        feature_tensor=converted.feature_tensor,
        own_image_size=network.image_size,
        warnings=warnings,
    )
    match = recognize.match_variables(converted.values, head)
    return recognize.to_flax(match, graph_backbone) if match else graph_backbone


@dataclasses.dataclass(frozen=True)
class Converted:
    """A network as Flax variables and pure graphs.

    Attributes:
      graphs: The pure graphs.
      variables: {"params", "batch_stats"}, with the classifier as `params["logits"]`.
      values: The used variables by TensorFlow's names.
      feature_tensor: Name of the features' tensor, and of the removed classifier.
    """

    graphs: Graphs
    variables: dict[str, Any]
    values: Mapping[str, np.ndarray]
    feature_tensor: str = ""

    def without_pixels(self) -> Converted:
        """Return the network without the preprocessing of its family."""
        graphs = dataclasses.replace(self.graphs, pixels=Pixels())
        return dataclasses.replace(self, graphs=graphs)


def convert(network: Network, output: str | None = None) -> Converted:
    """Return a network's pure graphs and Flax variables.

    Args:
      network: The contents of the checkpoint.
      output: Name of the features' output, or of a tensor within the graph. None
        selects by the usual names and removes the classification head.

    Raises:
      InputError: The features are ambiguous, or the graph has no counterpart in JAX.
    """
    function = network.evaluation
    name = features_lib.choose_output(network, output)
    head, removed = None, False
    features = features_lib.tensor(function, name)
    if output is None:
        head = features_lib.classifier_of(function, name)
        removed = head is not None and _reads_one_position(network, head)
        if removed and head is not None:
            features = head.features
        else:
            head = features_lib.classifier_on(function, features)

    paths = _variable_paths(network)
    extract = functools.partial(
        pure_graph.extract, paths=paths, dtypes=network.dtypes, where=network.where
    )
    evaluation = extract(function.flat, images=function.images, features=features)
    training = None
    if network.training is not None:
        try:
            training = _training_graph(
                network, network.training, name, removed, extract
            )
        except UnsupportedOperation as error:
            # Such as augmentation, which evaluation does not need.
            _log.warning("%s: the training graph is left out: %s", network.where, error)
    used = {path for graph in (evaluation, training) if graph for path in _used(graph)}
    names = {path: variable for variable, path in paths.items()}
    to_read = {names[path] for path in used}
    if head is not None:
        to_read |= {v for v in (head.kernel, head.bias) if v}
    values = network.read(sorted(to_read))
    _check_finite(values, network.where)
    flat = {path: _to_32_bits(values[names[path]]) for path in used}
    if head is not None:
        flat |= _head_variables(head, values)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    variables |= flax.traverse_util.unflatten_dict(flat)
    batch_size = (function.image_shape or (None,))[0] or 0
    graphs = Graphs(evaluation, training, network.pixels, batch_size)
    described = node_name(function.flat.value(features))
    if removed and head is not None:
        described += f" (input of the removed classifier {head.kernel})"
    return Converted(graphs, variables, values, described)


def _training_graph(
    network: Network,
    function: Function,
    name: str,
    head_removed: bool,
    extract: Callable[..., PureGraph],
) -> PureGraph:
    features = features_lib.tensor(function, name)
    if head_removed:
        head = features_lib.classifier_of(function, name)
        if head is None:
            raise InputError(
                "The graphs for training and evaluation end differently",
                where=network.where,
                fix="name an output that both have: output=NAME",
            )
        features = head.features
    # Gradients update the trainable variables.
    assigned = [
        node
        for node in function.assigned
        if function.flat.variable(function.flat.nodes[node].input[0])
        not in network.trainable
    ]
    return extract(
        function.flat, images=function.images, features=features, assigned=assigned
    )


def _reads_one_position(network: Network, head: features_lib.Classifier) -> bool:
    """Return whether a classifier is dense, or a convolution of kernel size 1."""
    kernel = network.read([head.kernel])[head.kernel]
    return kernel.ndim == 2 or kernel.shape[:2] == (1, 1)


def _to_32_bits(value: np.ndarray) -> np.ndarray:
    """Convert 64-bit values, such as counters of random draws, to JAX's width."""
    narrow = {"int64": np.int32, "uint64": np.uint32, "float64": np.float32}
    return value.astype(narrow.get(str(value.dtype), value.dtype))


def _used(graph: PureGraph) -> list[Path]:
    return [path for _, path in graph.variables] + [path for path, _ in graph.updates]


def _head_variables(
    head: features_lib.Classifier, values: Mapping[str, np.ndarray]
) -> dict[Path, np.ndarray]:
    kernel = values[head.kernel]
    kernel = kernel.reshape(kernel.shape[-2:])
    bias = np.zeros(kernel.shape[-1:], kernel.dtype)
    if head.bias is not None:
        bias = values[head.bias].reshape(-1)
    scope = ("params", layers.HEAD)
    return {(*scope, "kernel"): kernel, (*scope, "bias"): bias}


def _variable_paths(network: Network) -> dict[str, Path]:
    """Return a path in the Flax variables for every variable, by its name.

    "_" is appended to a variable's name that is a scope as well, and to a top scope
    with the name of the classifier.
    """
    taken: set[Path] = set()
    scopes = {
        parts[:i] for parts in map(_parts, network.dtypes) for i in range(1, len(parts))
    }
    paths = {}
    for name in network.dtypes:
        collection = "params" if name in network.trainable else "batch_stats"
        parts = _parts(name)
        if parts[0] == layers.HEAD:
            parts = (f"{layers.HEAD}_", *parts[1:])
        if parts in scopes:
            parts = (*parts[:-1], f"{parts[-1]}_")
        while (collection, *parts) in taken:
            parts = (*parts[:-1], f"{parts[-1]}_")
        taken.add((collection, *parts))
        paths[name] = (collection, *parts)
    return paths


def _parts(name: str) -> tuple[str, ...]:
    """Split a variable's name; remove the scope "module" that TF-Hub adds."""
    parts = tuple(part for part in name.split("/") if part)
    return parts[1:] if len(parts) > 1 and parts[0] == "module" else parts


def _check_finite(values: Mapping[str, np.ndarray], where: str) -> None:
    for name, value in values.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise InputError(
                f"Variable {name!r} has NaN or infinite values",
                where=where,
                fix="use a checkpoint of another training step",
            )


def _image_size(
    network: Network, options: Options, handle: str
) -> tuple[int, dict[str, str]]:
    """Return (side of the images, warnings by topic)."""
    given, own = options.image_size, network.image_size or 0
    shape = network.evaluation.image_shape
    is_fixed = shape is not None and None not in shape[1:3]
    if is_fixed and given and given != own:
        if options.is_size_preferred:
            text = f"The network takes images of {own} x {own} pixels only, not {given}"
            return own, {"image_size": text}
        raise InputError(
            f"The network takes images of {own} x {own} pixels only",
            where=handle,
            found=f"{given} x {given}",
            fix=f"remove #image_size={given} from the checkpoint's name",
        )
    if given or own:
        return given or own, {}
    text = (
        f"Image size unknown; assuming {_DEFAULT_SIZE}. To set another, append "
        "#image_size=PIXELS to the checkpoint's name"
    )
    return _DEFAULT_SIZE, {"image_size": text}


def _feature_dim(apply: GraphApply, variables: Any, size: int, handle: str) -> int:
    """Return the features' width. Trace both modes, so that errors appear here."""
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    try:
        output = jax.eval_shape(apply, variables, images)
        if not apply.graphs.batch_size:
            jax.eval_shape(
                lambda variables, images: apply(variables, images, train=True),
                variables,
                images,
            )
    except InputError:
        raise
    except Exception as error:  # tf2jax and JAX raise errors of many types.
        lines = str(error).strip().splitlines()
        raise InputError(
            "The graph cannot be computed in JAX",
            where=handle,
            found=f"{type(error).__name__}: {lines[0] if lines else ''}",
            fix="name an earlier output, or another image size",
        ) from error
    shape = output.features.shape
    if len(shape) != 2:
        raise InputError(
            "The output cannot be used as features",
            where=handle,
            expected="[B, D] or [B, h, w, D]",
            found=str(list(shape)),
            fix="name another one: output=NAME",
        )
    return int(shape[1])
