"""Read SavedModels and TF-Hub modules as `Network`s.

    TF1   one graph per set of tags; see `tf1_modules`
    TF2   an object that is called as `module(images, training=...)`, or only functions
          named by signatures, such as "serving_default"

TensorFlow 2's loader runs the operations that create and fill variables. Therefore all
operations are checked against `tf_op_allowlist` first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints.graphs import flat_graph, signatures, tf1_modules
from rankckpt_jax.checkpoints.graphs.network import Function, Network, Shape
from rankckpt_jax.checkpoints.tensorflow_files import tensor_bundle, tf_op_allowlist
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError, some

SAVED_MODEL = "saved_model.pb"
"""Main file of a SavedModel or module."""

# Errors of TensorFlow's loader on truncated files, besides its own.
_LOAD_ERRORS = (ValueError, LookupError, AttributeError, TypeError)


def read(directory: epath.Path | str, signature: str | None = None) -> Network:
    """Read a SavedModel or a TF-Hub module.

    Args:
      directory: The directory with `saved_model.pb`.
      signature: Name of a function. None means the object's call, else the usual names.

    Raises:
      InputError: It is damaged, unsafe or has no function of images.
    """
    tensorflow()
    # Imported late, since it imports TensorFlow.
    from tensorflow.core.protobuf import saved_model_pb2

    place = epath.Path(directory)
    where = str(place)
    file = place / SAVED_MODEL
    if not file.exists():
        raise InputError(
            "The main file of a SavedModel or module is missing",
            where=where,
            expected=SAVED_MODEL,
            found=some(sorted(path.name for path in place.iterdir())),
            fix="copy the complete directory, with variables/",
        )
    tf1_modules.check_format(place)
    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString(file.read_bytes())
    except Exception as error:  # protobuf's DecodeError differs by implementation.
        raise InputError(
            "A SavedModel cannot be read",
            where=str(file),
            expected="a complete saved_model.pb",
            found=str(error),
            fix="copy it again; it may be truncated",
        ) from error
    if not message.meta_graphs:
        raise InputError("The SavedModel has no graph", where=str(file))
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
            expected="saved_model.pb and a complete variables/",
            found=(str(error).strip() or type(error).__name__).splitlines()[0],
            fix="copy the complete directory again; if it has custom operations, "
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
    """Return the concrete functions of `module(images, training=...)`.

    A function for images of any size is preferred.

    Returns:
      (function for evaluation, function for training), each None if there is none.
    """
    tf = tensorflow()
    by_flag: dict[Any, Any] = {}
    switch = None
    call = getattr(loaded, "__call__", None)  # noqa: B004  Its functions are read.
    for function in getattr(call, "concrete_functions", ()):
        leaves = tf.nest.flatten(function.structured_input_signature)
        tensors = [leaf for leaf in leaves if isinstance(leaf, tf.TensorSpec)]
        flags = [leaf for leaf in leaves if isinstance(leaf, bool)]
        image_specs = [t for t in tensors if t.shape.rank in (4, None)]
        if len(image_specs) != 1 or image_specs[0].dtype != tf.float32:
            continue
        if len(tensors) > 1:
            switch = next((t for t in tensors if t.dtype == tf.bool), switch)
            continue
        flag = flags[0] if flags else None
        if flag not in by_flag or None in tuple(image_specs[0].shape or (None,))[1:3]:
            by_flag[flag] = function
    if not by_flag and switch is not None:
        raise InputError(
            f"The module reads a tensor, {switch.name!r}, to switch training on or off",
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
    """Return a `Network` of concrete functions of TensorFlow 2.

    Args:
      where: The file, for messages.
      kind: `Network.kind`.
      evaluation: Concrete function of images.
      training: The same with batch statistics, or None.
      trainable: Variables that gradients update. None means those with the attribute
        `trainable`.
      named: Names of variables by the references of their handles. None means the
        variables' own names.
      keep: Object that owns the variables, kept alive so that they are not deleted.
      **hints: Further attributes of `Network`: image_size, input_range, ...
    """
    variables: dict[str, Any] = {}
    names: dict[Any, str] = {}
    for function in filter(None, (evaluation, training)):
        for variable in function.variables:
            reference = variable.handle.ref()
            if reference in names:
                continue
            own = (named or {}).get(reference, flat_graph.node_name(variable.name))
            name, count = own, 1
            while name in variables:
                name, count = f"{own}_{count}", count + 1
            names[reference] = name
            variables[name] = variable
    if trainable is None:
        trained = {name for name, v in variables.items() if v.trainable}
    else:
        references = {v.handle.ref() for v in trainable}
        trained = {n for n, v in variables.items() if v.handle.ref() in references}

    def values(requested: Iterable[str]) -> dict[str, np.ndarray]:
        assert keep is not None or not variables
        return {name: variables[name].numpy() for name in requested}

    function = _concrete(evaluation, names, where)
    return Network(
        where=where,
        kind=kind,
        evaluation=function,
        training=_concrete(training, names, where) if training is not None else None,
        dtypes={name: v.dtype.as_datatype_enum for name, v in variables.items()},
        trainable=frozenset(trained),
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
    flat = flat_graph.flatten(definition, captured)
    inputs = {
        tensor.op.name: (
            tensor.name,
            _static_shape(tensor.shape),
            int(tensor.dtype.as_datatype_enum),
        )
        for tensor in function.inputs[:count]
    }
    images, shape = signatures.images_of(inputs, where)
    outputs, shapes = _outputs(function)
    assigned = tuple(flat_graph.assignments(flat))
    return Function(flat, images, shape, outputs, shapes, assigned)


def _outputs(function: Any) -> tuple[dict[str, str], dict[str, Shape]]:
    tf = tensorflow()
    structure = function.structured_outputs
    if isinstance(structure, Mapping):
        names = sorted(structure)
        # TensorFlow flattens a mapping by its sorted keys.
        if len(tf.nest.flatten(structure)) != len(names):
            names = [f"output_{i}" for i in range(len(function.outputs))]
    else:
        count = len(function.outputs)
        names = ["output"] if count == 1 else [f"output_{i}" for i in range(count)]
    pairs = list(zip(names, function.outputs, strict=True))
    return (
        {name: tensor.name for name, tensor in pairs},
        {name: _static_shape(tensor.shape) for name, tensor in pairs},
    )


def _static_shape(shape: Any) -> Shape:
    return None if shape.rank is None else tuple(shape.as_list())
