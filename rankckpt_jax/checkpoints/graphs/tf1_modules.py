"""Read TF-Hub modules and SavedModels of TensorFlow 1 as `Network`s.

A module has `tfhub_module.pb` beside `saved_model.pb`, with one graph per set of tags:
{} for evaluation and {train} for training. The collection "update_ops" lists the
operations that update moving averages. Graphs are never run; variables are read from
the files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints.graphs import flat_graph, signatures
from rankckpt_jax.checkpoints.graphs.network import Function, Network, Shape
from rankckpt_jax.checkpoints.tensorflow_files import (
    checkpoint_files,
    protobuf,
    tensor_bundle,
)
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError, some

HUB_MODULE = "tfhub_module.pb"
"""Marks a TF-Hub module of TensorFlow 1."""

_log = logging.getLogger(__name__)

# Description of the objects in a checkpoint of objects.
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_MOVING = re.compile(r"(.*/)?moving_(mean|variance)")


def check_format(place: epath.Path) -> None:
    """Raise `InputError` unless a module has format 3, the only published one."""
    marker = place / HUB_MODULE
    if marker.exists() and _field(marker.read_bytes(), 1, protobuf.VARINT) != 3:
        raise InputError(
            "The TF-Hub module has an unknown format",
            where=str(marker),
            expected="format 3",
            fix="copy it again; it may be damaged",
        )


def read(where: str, graphs: list[Any], signature: str | None) -> Network:
    """Return a `Network` of a SavedModel's graphs.

    Args:
      where: The module's directory.
      graphs: Its `MetaGraphDef`s.
      signature: Name of a function. None means the usual names.

    Raises:
      InputError: There is no such function, or files are missing.
    """
    evaluation, training = _by_tags(graphs, where)
    key = signatures.choose(list(evaluation.signature_def), signature, where)
    prefix = f"{where}/variables/variables"
    stored: Mapping[str, Any] = {}
    if epath.Path(f"{prefix}.index").exists():
        stored = checkpoint_files.shapes(prefix)
    objects = _object_keys(prefix) if _OBJECT_GRAPH in stored else {}
    functions = [_graph_function(evaluation, key, where)]
    if training is not None:
        if key in training.signature_def:
            functions.append(_graph_function(training, key, where))
        else:
            _log.warning(
                "%s: the training graph has no signature %r; fine-tuning leaves "
                "batch norm unchanged. Name a signature of both graphs: signature=NAME",
                where,
                key,
            )
    dtypes: dict[str, int] = {}
    keys: dict[str, str] = {}
    for function in functions:
        for name in function.flat.handles.values():
            node = function.flat.nodes[name]
            dtypes[name] = int(node.attr["dtype"].type)
            shared = node.attr["shared_name"].s.decode()
            candidates = (name, shared, objects.get(name, ""), objects.get(shared, ""))
            keys[name] = next((key for key in candidates if key in stored), name)

    def values(names: Iterable[str]) -> dict[str, np.ndarray]:
        names = list(names)
        missing = [name for name in names if keys[name] not in stored]
        if missing:
            raise InputError(
                "The module's files lack variables of its graph",
                where=prefix,
                expected=some(missing),
                fix="copy the directory variables/ again",
            )
        arrays = checkpoint_files.read(prefix, [keys[name] for name in names])
        return {name: arrays[keys[name]] for name in names}

    names = set(dtypes)
    is_module = (epath.Path(where) / HUB_MODULE).exists()
    trainable = _trainable([evaluation, *([training] if training else [])], names)
    return Network(
        where=where,
        kind="TF-Hub module" if is_module else "SavedModel",
        evaluation=functions[0],
        training=functions[1] if len(functions) > 1 else None,
        dtypes=dtypes,
        trainable=trainable,
        read=values,
        # TF-Hub's convention for images.
        input_range=(0.0, 1.0) if is_module else None,
        image_size=signatures.size_of(functions[0].image_shape, where)
        or _attached_size(evaluation),
    )


def _object_keys(prefix: str) -> dict[str, str]:
    """Return the keys of variables in a checkpoint of objects, by their names.

    Keras of TensorFlow 1.15 writes such checkpoints beside a graph of TensorFlow 1.
    """
    # Imported late, since it imports TensorFlow.
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    tensor_bundle.check(prefix)
    try:
        data = tensorflow().train.load_checkpoint(prefix).get_tensor(_OBJECT_GRAPH)
        graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(data)
    except Exception as error:  # TensorFlow and protobuf raise errors of many types.
        raise InputError(
            "The objects of a checkpoint cannot be read",
            where=f"{prefix}.index",
            found=str(error),
            fix="copy the directory variables/ again",
        ) from error
    attributes = [attribute for node in graph.nodes for attribute in node.attributes]
    return {item.full_name: item.checkpoint_key for item in attributes}


def _by_tags(graphs: list[Any], where: str) -> tuple[Any, Any | None]:
    """Return (the graph for evaluation, the graph for training or None)."""
    tagged = sorted(
        ((set(graph.meta_info_def.tags), graph) for graph in graphs),
        key=lambda item: (len(item[0]), sorted(item[0])),
    )
    evaluation = [graph for tags, graph in tagged if "train" not in tags]
    training = [graph for tags, graph in tagged if "train" in tags]
    if not evaluation:
        raise InputError(
            "The module has no graph for evaluation",
            where=where,
            expected="tags {} or {serve}",
            found="; ".join(str(sorted(tags)) for tags, _ in tagged),
        )
    return evaluation[0], training[0] if training else None


def _graph_function(meta_graph: Any, key: str, where: str) -> Function:
    signature = meta_graph.signature_def[key]
    inputs = {
        name: (info.name, _proto_shape(info.tensor_shape), info.dtype)
        for name, info in signature.inputs.items()
    }
    images, shape = signatures.images_of(inputs, where)
    outputs = {name: info.name for name, info in sorted(signature.outputs.items())}
    flat = flat_graph.flatten(meta_graph.graph_def)
    update_ops = meta_graph.collection_def["update_ops"].node_list.value
    ends = [*outputs.values(), *update_ops]
    return Function(
        flat,
        images,
        shape,
        outputs,
        {name: _proto_shape(signature.outputs[name].tensor_shape) for name in outputs},
        tuple(flat_graph.assignments(flat, ends)),
    )


def _proto_shape(shape: Any) -> Shape:
    if shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)


def _trainable(meta_graphs: list[Any], names: set[str]) -> frozenset[str]:
    """Return the variables of the collection, or all except moving averages."""
    # Imported late, since it imports TensorFlow.
    from tensorflow.core.framework import variable_pb2

    listed = set()
    for meta_graph in meta_graphs:
        collection = meta_graph.collection_def["trainable_variables"]
        for data in collection.bytes_list.value:
            variable = variable_pb2.VariableDef.FromString(data)
            listed.add(flat_graph.node_name(variable.variable_name))
    names_without_averages = {name for name in names if not _MOVING.fullmatch(name)}
    return frozenset(listed & names or names_without_averages)


def _attached_size(meta_graph: Any) -> int | None:
    """Return the images' side from TF-Hub's attachment "image_module_info"."""
    collection = meta_graph.collection_def["hub_module_attachments"]
    for data in collection.bytes_list.value:
        if _field(data, 1) == b"image_module_info":
            size = _field(_field(data, 2), 1)
            height, width = (_field(size, i, protobuf.VARINT) for i in (1, 2))
            return height if height == width and height else None
    return None


def _field(data: bytes, number: int, wire_type: int = protobuf.BYTES) -> Any:
    """Return a field of a protocol buffer; 0 or b"" if it is absent or damaged.

    TF-Hub's messages are defined in tensorflow_hub, which is not a dependency.
    """
    try:
        return protobuf.parse(data, {number: protobuf.Field("", wire_type)})[""]
    except protobuf.FormatError:
        return 0 if wire_type == protobuf.VARINT else b""
