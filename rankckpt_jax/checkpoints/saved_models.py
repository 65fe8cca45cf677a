"""TF-Hub modules of TensorFlow 1 and SavedModels of TensorFlow 2 as `Network`s.

    TF1   tfhub_module.pb beside saved_model.pb; a graph for each set of tags, {} for
          evaluation and {train} for training, whose moving averages move by operations
          in the collection "update_ops"
    TF2   an object that is called as `module(images, training=...)`, or only functions
          called signatures, such as "serving_default"

Of TF1's graphs nothing is run: their variables are read from the files. TF2's loader
runs only what makes and fills variables, after the file was searched for operations
that could do harm.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints import graph as graph_lib
from rankckpt_jax.checkpoints import tensorflow_files as files
from rankckpt_jax.checkpoints.network import Function, Network, Shape
from rankckpt_jax.errors import InputError
from rankckpt_jax.lazy_tensorflow import tensorflow

SAVED_MODEL = "saved_model.pb"
"""The file that makes a directory a SavedModel or a module."""
HUB_MODULE = "tfhub_module.pb"
"""The file that makes it a TF-Hub module of TensorFlow 1."""

_log = logging.getLogger(__name__)

# Which signature is meant where none is named: that of VTAB, then those of TF-Hub.
_SIGNATURES = (
    "representation",
    "image_feature_vector",
    "feature_vector",
    "default",
    "serving_default",
)
_MOVING = re.compile(r"(.*/)?moving_(mean|variance)")
_FLOAT = 1
# What TensorFlow's loader raises besides its own errors on files that are cut short.
_LOAD_ERRORS = (ValueError, LookupError, AttributeError, TypeError)


def read(directory: epath.Path | str, signature: str | None = None) -> Network:
    """Reads a directory with a SavedModel or a module.

    Args:
      directory: With `saved_model.pb` in it.
      signature: Which of its functions; the object's call or the usual names if None.

    Raises:
      InputError: It is damaged, unsafe or has no function of images.
    """
    tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2

    place = epath.Path(directory)
    where = str(place)
    file = place / SAVED_MODEL
    if not file.exists():
        raise InputError(
            "A SavedModel or module lacks its main file",
            where=where,
            expected=SAVED_MODEL,
            found=files.some(sorted(path.name for path in place.iterdir())),
            mend="copy the whole directory, variables/ too",
        )
    _check_format(place)
    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString(file.read_bytes())
    except Exception as error:  # protobuf's DecodeError differs by implementation.
        raise InputError(
            "A SavedModel cannot be read",
            where=str(file),
            found=str(error),
            mend="copy it again; it may be truncated",
        ) from error
    if not message.meta_graphs:
        raise InputError("A SavedModel holds no graph", where=str(file))
    for meta_graph in message.meta_graphs:
        graph_lib.refuse_unsafe(meta_graph.graph_def, where)
    graphs = list(message.meta_graphs)
    if len(graphs) == 1 and graphs[0].HasField("object_graph_def"):
        return _read_objects(where, signature)
    return _read_graphs(where, graphs, signature)


def _check_format(place: epath.Path) -> None:
    """Refuses a module of another format than the one that was ever published."""
    marker = place / HUB_MODULE
    if marker.exists() and _fields(marker.read_bytes()).get(1) != 3:
        raise InputError(
            "A TF-Hub module of an unknown format",
            where=str(marker),
            expected="format 3",
            mend="copy it again; it may be damaged",
        )


# ---------------------------------------------------------------- TensorFlow 1


def _read_graphs(where: str, graphs: list[Any], signature: str | None) -> Network:
    evaluation, training = _by_tags(graphs, where)
    key = _signature(list(evaluation.signature_def), signature, where)
    prefix = f"{where}/variables/variables"
    found = files.shapes(prefix) if epath.Path(f"{prefix}.index").exists() else {}
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
                found=f"without {files.some(missing)}",
                mend="copy the directory variables/ again",
            )
        stored = files.read_any(prefix, [keys[name] for name in names])
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
        image_size=_size(functions[0].image_shape, where) or _attached_size(evaluation),
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


def _signature(names: list[str], wanted: str | None, where: str) -> str:
    names = [name for name in names if not name.startswith("__")]
    if wanted is not None and wanted in names:
        return wanted
    if wanted is None:
        for name in _SIGNATURES:
            if name in names:
                return name
        if len(names) == 1:
            return names[0]
    raise InputError(
        "It cannot be told which signature is meant"
        if wanted is None
        else f"There is no signature {wanted!r}",
        where=where,
        found=", ".join(sorted(names)) or "no signatures",
        mend="name one of them: signature=NAME",
    )


def _graph_function(meta_graph: Any, key: str, where: str) -> Function:
    signature = meta_graph.signature_def[key]
    inputs = {
        name: (info.name, _proto_shape(info.tensor_shape), info.dtype)
        for name, info in signature.inputs.items()
    }
    images, shape = _images(inputs, where)
    outputs = {name: info.name for name, info in sorted(signature.outputs.items())}
    flat = graph_lib.flatten(meta_graph.graph_def)
    update_ops = meta_graph.collection_def["update_ops"].node_list.value
    ends = [*outputs.values(), *update_ops]
    return Function(
        flat,
        images,
        shape,
        outputs,
        {name: _proto_shape(signature.outputs[name].tensor_shape) for name in outputs},
        tuple(graph_lib.assignments(flat, ends)),
    )


def _images(
    inputs: Mapping[str, tuple[str, Shape, int]], where: str
) -> tuple[str, Shape]:
    """The one input of a function, which must be images."""
    listed = ", ".join(f"{name} {shape}" for name, (_, shape, _) in inputs.items())
    if len(inputs) == 1:
        tensor, shape, dtype = next(iter(inputs.values()))
        fits = shape is None or (len(shape) == 4 and shape[3] in (3, None))
        if fits and dtype == _FLOAT:
            return tensor, shape
    raise InputError(
        "The function is not one of images",
        where=where,
        expected="one input, float32 [B, H, W, 3]",
        found=listed.replace("None", "?") or "no input",
        mend="name another signature, or export one that takes images only",
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
            found.add(graph_lib.node_name(variable.variable_name))
    known = found & names
    return frozenset(known or {name for name in names if not _MOVING.fullmatch(name)})


def _size(shape: Shape, where: str) -> int | None:
    if shape is None or shape[1] is None or shape[2] is None:
        return None
    if shape[1] != shape[2]:
        raise InputError(
            "The network takes images that are not square",
            where=where,
            found=f"{shape[1]} x {shape[2]}",
        )
    return shape[1]


def _attached_size(meta_graph: Any) -> int | None:
    """Side of the images by TF-Hub's attachment "image_module_info"."""
    collection = meta_graph.collection_def["hub_module_attachments"]
    for data in collection.bytes_list.value:
        attachment = _fields(data)
        if attachment.get(1) == b"image_module_info":
            size = _fields(_fields(attachment.get(2, b"")).get(1, b""))
            height, width = size.get(1), size.get(2)
            return height if height == width else None
    return None


def _fields(data: bytes) -> dict[int, Any]:
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


# ---------------------------------------------------------------- TensorFlow 2


def _read_objects(where: str, signature: str | None) -> Network:
    tf = tensorflow()
    try:
        loaded = tf.saved_model.load(where)
    except (tf.errors.OpError, OSError, RuntimeError, *_LOAD_ERRORS) as error:
        raise InputError(
            "A SavedModel cannot be loaded",
            where=where,
            found=str(error).strip().splitlines()[0] if str(error) else "",
            mend="copy the whole directory again; if it has operations of its own, "
            "export it without them",
        ) from error
    evaluation, training = None, None
    if signature is None:
        evaluation, training = _calls(loaded, where)
    if evaluation is None:
        key = _signature(list(loaded.signatures), signature, where)
        evaluation = loaded.signatures[key]
    listed = getattr(loaded, "trainable_variables", None)
    return from_functions(
        where,
        "SavedModel",
        evaluation,
        training,
        trainable=None if not listed else list(listed),
        keep=loaded,
    )


def _calls(loaded: Any, where: str) -> tuple[Any, Any]:
    """The concrete functions of `module(images, training=...)`: evaluation, training.

    Where there are several of a kind, the one for images of any size is taken.
    """
    tf = tensorflow()
    by_flag: dict[Any, Any] = {}
    switch = None
    call = getattr(loaded, "__call__", None)  # noqa: B004  Its functions are wanted.
    for function in getattr(call, "concrete_functions", ()):
        leaves = tf.nest.flatten(function.structured_input_signature)
        tensors = [leaf for leaf in leaves if isinstance(leaf, tf.TensorSpec)]
        flags = [leaf for leaf in leaves if isinstance(leaf, bool)]
        pictures = [t for t in tensors if t.shape.rank in (4, None)]
        if len(pictures) != 1 or pictures[0].dtype != tf.float32:
            continue
        if len(tensors) > 1:
            switch = next((t for t in tensors if t.dtype == tf.bool), switch)
            continue
        flag = flags[0] if flags else None
        if flag not in by_flag or None in tuple(pictures[0].shape or (None,))[1:3]:
            by_flag[flag] = function
    if not by_flag and switch is not None:
        raise InputError(
            f"The module waits for a switch, {switch.name!r}, to be told whether it is "
            "training",
            where=where,
            expected="`training` as a Python bool",
            found=f"a tensor {switch.name!r}",
            mend="export it again, called once with training=False and once with True",
        )
    if None in by_flag:
        return by_flag[None], by_flag.get(True)
    return by_flag.get(False), by_flag.get(True)


def from_functions(
    where: str,
    kind: str,
    evaluation: Any,
    training: Any,
    *,
    trainable: Iterable[Any] | None = None,
    named: Mapping[Any, str] | None = None,
    keep: Any = None,
    **hints: Any,
) -> Network:
    """Makes a `Network` of TensorFlow 2's concrete functions of images.

    Args:
      where: For messages.
      kind: Of file.
      evaluation: A concrete function.
      training: Another, or None.
      trainable: Variables that training moves; those that say so of themselves if None.
      named: Variables' names by their handles' references; their own names if None.
      keep: Owner of the variables, which would otherwise be deleted.
      **hints: Of `Network`: image_size, input_range, ...
    """
    variables: dict[str, Any] = {}
    names: dict[Any, str] = {}
    for function in filter(None, (evaluation, training)):
        for variable in function.variables:
            reference = variable.handle.ref()
            if reference in names:
                continue
            own = (named or {}).get(reference, graph_lib.node_name(variable.name))
            name, count = own, 1
            while name in variables:
                name, count = f"{own}_{count}", count + 1
            names[reference] = name
            variables[name] = variable
    if trainable is None:
        moved = {name for name, v in variables.items() if v.trainable}
    else:
        references = {v.handle.ref() for v in trainable}
        moved = {n for n, v in variables.items() if v.handle.ref() in references}

    def values(wanted: Iterable[str]) -> dict[str, np.ndarray]:
        assert keep is not None or not variables
        return {name: variables[name].numpy() for name in wanted}

    function = _concrete(evaluation, names, where)
    return Network(
        where=where,
        kind=kind,
        evaluation=function,
        training=_concrete(training, names, where) if training is not None else None,
        dtypes={name: v.dtype.as_datatype_enum for name, v in variables.items()},
        trainable=frozenset(moved),
        read=values,
        **{"image_size": _size(function.image_shape, where), **hints},
    )


def _concrete(function: Any, names: Mapping[Any, str], where: str) -> Function:
    tf = tensorflow()
    definition = function.graph.as_graph_def()
    count = len(function.inputs) - len(function.captured_inputs)
    captured = {}
    constants = {}
    for inner, outer in zip(
        function.inputs[count:], function.captured_inputs, strict=True
    ):
        if outer.dtype == tf.resource:
            if outer.ref() in names:
                captured[inner.op.name] = names[outer.ref()]
        else:
            constants[inner.op.name] = outer.numpy()
    for node in definition.node:
        if node.name in constants:
            kind = node.attr["dtype"].type
            node.ClearField("attr")
            node.op = "Const"
            node.attr["dtype"].type = kind
            tensor = tf.make_tensor_proto(constants[node.name])
            node.attr["value"].tensor.CopyFrom(tensor)
    flat = graph_lib.flatten(definition, captured)
    inputs = {
        tensor.op.name: (tensor.name, _static(tensor.shape), _enum(tensor.dtype))
        for tensor in function.inputs[:count]
    }
    images, shape = _images(inputs, where)
    outputs, shapes = _outputs(function)
    assigned = tuple(graph_lib.assignments(flat))
    return Function(flat, images, shape, outputs, shapes, assigned)


def _outputs(function: Any) -> tuple[dict[str, str], dict[str, Shape]]:
    tf = tensorflow()
    structure = function.structured_outputs
    if isinstance(structure, Mapping):
        names = sorted(structure)
        # TensorFlow flattens a mapping in the order of its sorted keys.
        if len(tf.nest.flatten(structure)) != len(names):
            names = [f"output_{i}" for i in range(len(function.outputs))]
    else:
        count = len(function.outputs)
        names = ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    pairs = list(zip(names, function.outputs, strict=True))
    return (
        {name: tensor.name for name, tensor in pairs},
        {name: _static(tensor.shape) for name, tensor in pairs},
    )


def _static(shape: Any) -> Shape:
    return None if shape.rank is None else tuple(shape.as_list())


def _enum(dtype: Any) -> int:
    return int(dtype.as_datatype_enum)
