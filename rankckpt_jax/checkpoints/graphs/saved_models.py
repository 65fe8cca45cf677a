"""TF-Hub modules of TensorFlow 1 and SavedModels of TensorFlow 2 as `Network`s.

    TF1   tfhub_module.pb beside saved_model.pb; a graph for each set of tags, {} for
          evaluation and {train} for training, whose moving averages move by operations
          in the collection "update_ops"
    TF2   an object that is called as `module(images, training=...)`, or only functions
          called signatures, such as "serving_default"

Of TF1's graphs nothing is run: their variables are read from the files. TF2's loader
runs only what makes and fills variables, after every operation of the file was held
against those that only compute.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints.graphs import flat_graph as flat_lib
from rankckpt_jax.checkpoints.graphs import signatures, tf1_modules
from rankckpt_jax.checkpoints.graphs.network import Function, Network, Shape
from rankckpt_jax.checkpoints.tensorflow_files import tensor_bundle, tf_op_allowlist
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError, some

SAVED_MODEL = "saved_model.pb"
"""The file that makes a directory a SavedModel or a module."""
_log = logging.getLogger(__name__)

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
            found=some(sorted(path.name for path in place.iterdir())),
            fix="copy the whole directory, variables/ too",
        )
    tf1_modules.check_format(place)
    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString(file.read_bytes())
    except Exception as error:  # protobuf's DecodeError differs by implementation.
        raise InputError(
            "A SavedModel cannot be read",
            where=str(file),
            expected="a whole saved_model.pb",
            found=str(error),
            fix="copy it again; it may be truncated",
        ) from error
    if not message.meta_graphs:
        raise InputError("A SavedModel holds no graph", where=str(file))
    graphs = list(message.meta_graphs)
    tf_op_allowlist.check_operations(graphs, where)
    if len(graphs) == 1 and graphs[0].HasField("object_graph_def"):
        return _read_objects(where, signature)
    return tf1_modules.read(where, graphs, signature)


def _read_objects(where: str, signature: str | None) -> Network:
    tf = tensorflow()
    prefix = f"{where}/variables/variables"
    if epath.Path(f"{prefix}.index").exists():
        tensor_bundle.check(prefix)
    try:
        loaded = tf.saved_model.load(where)
    except (tf.errors.OpError, OSError, RuntimeError, *_LOAD_ERRORS) as error:
        raise InputError(
            "A SavedModel cannot be loaded",
            where=where,
            expected="saved_model.pb and the whole of variables/",
            found=str(error).strip().splitlines()[0]
            if str(error).strip()
            else type(error).__name__,
            fix="copy the whole directory again; if it has operations of its own, "
            "export it without them",
        ) from error
    evaluation, training = None, None
    if signature is None:
        evaluation, training = _calls(loaded, where)
    if evaluation is None:
        key = signatures.choose(list(loaded.signatures), signature, where)
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
            fix="export it again, called once with training=False and once with True",
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
            own = (named or {}).get(reference, flat_lib.node_name(variable.name))
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
        **{"image_size": signatures.size_of(function.image_shape, where), **hints},
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
    flat = flat_lib.flatten(definition, captured)
    inputs = {
        tensor.op.name: (tensor.name, _static(tensor.shape), _enum(tensor.dtype))
        for tensor in function.inputs[:count]
    }
    images, shape = signatures.images_of(inputs, where)
    outputs, shapes = _outputs(function)
    assigned = tuple(flat_lib.assignments(flat))
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
