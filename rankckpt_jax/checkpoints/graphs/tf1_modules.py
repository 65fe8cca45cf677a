"""TF-Hub modules and SavedModels of TensorFlow 1.

`tfhub_module.pb` stands beside `saved_model.pb`, which has a graph for each set of
tags: {} for evaluation and {train} for training, whose moving averages move by
operations in the collection "update_ops". Nothing of the graphs is run: variables are
read from the files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints.graphs import flat_graph as flat_lib
from rankckpt_jax.checkpoints.graphs import signatures
from rankckpt_jax.checkpoints.graphs.network import Function, Network, Shape
from rankckpt_jax.checkpoints.tensorflow_files import checkpoint_files
from rankckpt_jax.errors import InputError, some

HUB_MODULE = "tfhub_module.pb"
"""The file that makes it a TF-Hub module of TensorFlow 1."""

_log = logging.getLogger(__name__)

_MOVING = re.compile(r"(.*/)?moving_(mean|variance)")


def check_format(place: epath.Path) -> None:
    """Refuses a module of another format than the one that was ever published."""
    marker = place / HUB_MODULE
    if marker.exists() and fields(marker.read_bytes()).get(1) != 3:
        raise InputError(
            "A TF-Hub module of an unknown format",
            where=str(marker),
            expected="format 3",
            fix="copy it again; it may be damaged",
        )


def read(where: str, graphs: list[Any], signature: str | None) -> Network:
    """Makes a `Network` of a SavedModel's graphs.

    Args:
      where: The module's directory.
      graphs: Its `MetaGraphDef`s.
      signature: Which of its functions; the usual one if None.

    Raises:
      InputError: There is no such function, or files are missing.
    """
    evaluation, training = _by_tags(graphs, where)
    key = signatures.choose(list(evaluation.signature_def), signature, where)
    prefix = f"{where}/variables/variables"
    found = (
        checkpoint_files.shapes(prefix)
        if epath.Path(f"{prefix}.index").exists()
        else {}
    )
    functions = [_graph_function(evaluation, key, where)]
    if training is not None:
        if key in training.signature_def:
            functions.append(_graph_function(training, key, where))
        else:
            _log.warning("%s: its training graph has no signature %r", where, key)
    dtypes: dict[str, int] = {}
    keys: dict[str, str] = {}
    for function in functions:
        for name in function.flat.handles.values():
            node = function.flat.nodes[name]
            dtypes[name] = int(node.attr["dtype"].type)
            shared = node.attr["shared_name"].s.decode()
            keys[name] = shared if name not in found and shared in found else name

    def values(names: Iterable[str]) -> dict[str, np.ndarray]:
        names = list(names)
        missing = [name for name in names if keys[name] not in found]
        if missing:
            raise InputError(
                "Variables of the graph are not in the module's files",
                where=prefix,
                found=f"without {some(missing)}",
                fix="copy the directory variables/ again",
            )
        stored = checkpoint_files.read(prefix, [keys[name] for name in names])
        return {name: stored[keys[name]] for name in names}

    names = set(dtypes)
    trainable = _trainable([evaluation, *([training] if training else [])], names)
    return Network(
        where=where,
        kind="TF-Hub module",
        evaluation=functions[0],
        training=functions[1] if len(functions) > 1 else None,
        dtypes=dtypes,
        trainable=trainable,
        read=values,
        image_size=signatures.size_of(functions[0].image_shape, where)
        or _attached_size(evaluation),
    )


def _by_tags(graphs: list[Any], where: str) -> tuple[Any, Any | None]:
    """(the graph for evaluation, that for training or None)."""
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
    flat = flat_lib.flatten(meta_graph.graph_def)
    update_ops = meta_graph.collection_def["update_ops"].node_list.value
    ends = [*outputs.values(), *update_ops]
    return Function(
        flat,
        images,
        shape,
        outputs,
        {name: _proto_shape(signature.outputs[name].tensor_shape) for name in outputs},
        tuple(flat_lib.assignments(flat, ends)),
    )


def _proto_shape(shape: Any) -> Shape:
    if shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)


def _trainable(meta_graphs: list[Any], names: set[str]) -> frozenset[str]:
    """Variables of the collection; without one, all but moving averages."""
    from tensorflow.core.framework import variable_pb2

    found = set()
    for meta_graph in meta_graphs:
        collection = meta_graph.collection_def["trainable_variables"]
        for data in collection.bytes_list.value:
            variable = variable_pb2.VariableDef.FromString(data)
            found.add(flat_lib.node_name(variable.variable_name))
    known = found & names
    return frozenset(known or {name for name in names if not _MOVING.fullmatch(name)})


def _attached_size(meta_graph: Any) -> int | None:
    """Side of the images by TF-Hub's attachment "image_module_info"."""
    collection = meta_graph.collection_def["hub_module_attachments"]
    for data in collection.bytes_list.value:
        attachment = fields(data)
        if attachment.get(1) == b"image_module_info":
            size = fields(fields(attachment.get(2, b"")).get(1, b""))
            height, width = size.get(1), size.get(2)
            return height if height == width else None
    return None


def fields(data: bytes) -> dict[int, Any]:
    """Fields of a protocol buffer of numbers and bytes, without its description.

    TF-Hub's own messages come with tensorflow_hub, which is not needed otherwise.
    """
    fields: dict[int, Any] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data):
                raise ValueError("cut short")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    try:
        while at < len(data):
            tag = number()
            if tag & 7 == 0:
                fields[tag >> 3] = number()
            elif tag & 7 == 2:
                length = number()
                fields[tag >> 3] = data[at : at + length]
                at += length
            else:
                raise ValueError("not a field of the messages read here")
    except ValueError:
        return {}
    return fields
