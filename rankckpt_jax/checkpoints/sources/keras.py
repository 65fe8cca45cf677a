"""Keras models: .keras, .h5 and .hdf5 files.

`keras_allowlist` checks a file's contents before Keras reads it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.checkpoints.graphs import convert, saved_models
from rankckpt_jax.checkpoints.graphs.network import Network
from rankckpt_jax.checkpoints.pixels import Pixels
from rankckpt_jax.checkpoints.sources import (
    Options,
    fingerprint,
    keras_allowlist,
    keras_config,
    keras_weights,
)
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.errors import InputError, unknown_name

SUFFIXES = (".keras", ".h5", ".hdf5")
"""Endings of the files of Keras models."""

KEEP_CONVERSION = True

_DEFAULT_SIZE = 224
# Preprocessing in keras.applications, by the models' names. A model that scales pixels
# within the network is recognized by its graph.
_CAFFE = re.compile(r"resnet\d+|vgg\d+")
_TORCH = re.compile(r"densenet\d+|nasnet_torch")
_SYMMETRIC = re.compile(
    r"mobilenet.*|inception.*|xception|resnet\d+v2|nasnet.*", re.IGNORECASE
)
_CAFFE_PIXELS = Pixels(reverse=True, offset=(-103.939, -116.779, -123.68))
# (pixel - mean) / standard deviation, for pixels in [0, 1].
_TORCH_PIXELS = Pixels(
    scale=(1 / 0.229, 1 / 0.224, 1 / 0.225),
    offset=(-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
)


def matches(path: epath.Path) -> bool:
    """Return whether a path has the ending of a Keras model."""
    return path.name.endswith(SUFFIXES)


def load(path: epath.Path, options: Options) -> Backbone:
    """Convert a Keras model; see `checkpoints.load_hub`.

    Raises:
      InputError: It cannot be read, or contains code.
    """
    model = load_model(path)
    output, image_size = options.output or None, options.image_size or None
    network = read_model(model, str(path), output, image_size)
    # The chosen layer is the only output now.
    remaining = dataclasses.replace(options, output="")
    return convert.to_backbone(network, fingerprint(path, options), remaining)


def load_model(path: epath.Path) -> Any:
    """Return the `keras.Model` of a file of Keras 2 or 3, not compiled.

    Raises:
      InputError: It cannot be read, or contains code.
    """
    description = keras_allowlist.read(path)
    keras = import_keras()

    def hard_sigmoid(x: Any) -> Any:
        return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)

    own = {keras_config.HARD_SIGMOID["config"]: hard_sigmoid}
    try:
        with keras.saving.custom_object_scope(own):
            model = keras.saving.deserialize_keras_object(description, safe_mode=True)
        keras_weights.load(model, path)
    except Exception as error:  # Keras raises errors of many types.
        raise InputError(
            "A Keras model cannot be loaded",
            where=str(path),
            found=_reason(error),
            fix="export it as a SavedModel with model.export(DIR), or save it again "
            f"with the installed Keras, {keras.__version__}",
        ) from error
    return model


def import_keras() -> Any:
    """Return the module `keras`, with TensorFlow behind it.

    Raises:
      InputError: It uses another backend.
    """
    tensorflow()
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # Imported late, since it imports TensorFlow.
    import keras

    check_backend()
    return keras


def check_backend() -> None:
    """Raise `InputError` unless Keras uses TensorFlow, whose graphs are converted."""
    # Imported late, since it imports TensorFlow.
    import keras

    if keras.backend.backend() != "tensorflow":
        raise InputError(
            "Keras uses another backend than TensorFlow",
            where="KERAS_BACKEND",
            expected="tensorflow",
            found=keras.backend.backend(),
            fix="set KERAS_BACKEND=tensorflow",
        )


def _reason(error: Exception) -> str:
    """Return the innermost cause that a message of Keras names."""
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Exception encountered: ")]
    cause = (causes or lines or [type(error).__name__])[-1 if causes else 0]
    return cause.removeprefix("Exception encountered: ")


def read_model(
    model: Any, where: str, output: str | None = None, image_size: int | None = None
) -> Network:
    """Return a `Network` of a Keras model in memory.

    Args:
      model: The `keras.Model`.
      where: The file, for messages.
      output: Name of a layer whose output becomes the only one. None keeps the model's
        outputs.
      image_size: Side of the images; see `_resize`. None for the model's own.

    Raises:
      InputError: There is no such layer, or the model does not take images.
    """
    # Imported late, since it imports TensorFlow.
    import keras

    if output is not None:
        names = [layer.name for layer in model.layers]
        if output in names:
            model = keras.Model(model.input, model.get_layer(output).output)
        elif output not in getattr(model, "output_names", ()):
            raise unknown_name("layer", output, names, where)
    tf = tensorflow()
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] not in (3, None):
        raise InputError(
            "The model does not take images",
            where=where,
            expected="one input [B, H, W, 3]",
            found=str(shape),
        )
    if image_size and None not in shape[1:3] and shape[1:3] != (image_size, image_size):
        model = _resize(model, image_size)
        shape = model.input_shape
    spec = tf.TensorSpec((shape[0], *shape[1:3], 3), tf.float32)

    def concrete(training: bool) -> Any:
        def run(images: Any) -> Any:
            return _by_name(model, model(images, training=training))

        return tf.function(run, autograph=False).get_concrete_function(spec)

    network = saved_models.from_functions(
        where,
        "Keras model",
        concrete(False),
        concrete(True),
        trainable=[v.value for v in model.trainable_variables],
        named={v.value.handle.ref(): v.path for v in model.variables},
        keep=model,
        architecture=model.name,
        **_pixels(model),
    )
    if network.image_size is None:
        return dataclasses.replace(network, image_size=image_size or _DEFAULT_SIZE)
    return network


def _resize(model: Any, image_size: int) -> Any:
    """Return the model with the same weights for images of another size.

    A Keras file states one size even where its layers accept any: convolutions, pooling
    and what follows a global pool. If a layer needs the size, such as a dense layer
    after a flattened map, or weights would change their shapes, the model is returned
    as it is.

    Args:
      model: The `keras.Model`, with one fixed size.
      image_size: Side of the images.
    """
    # Imported late, since it imports TensorFlow.
    import keras

    height, width = model.input_shape[1:3]

    def replace(item: Any) -> Any:
        """Replace the shape of every input with the image's size."""
        if isinstance(item, list):
            return [replace(value) for value in item]
        if not isinstance(item, dict):
            return item
        if item.get("class_name") == "InputLayer":
            config = dict(item["config"])
            batch, *sides, channels = config["batch_shape"]
            if tuple(sides) == (height, width):
                config["batch_shape"] = [batch, image_size, image_size, channels]
            return {**item, "config": config}
        return {key: replace(value) for key, value in item.items()}

    try:
        description = keras.saving.serialize_keras_object(model)
        resized = keras.saving.deserialize_keras_object(replace(description))
        weights = model.get_weights()
        if [w.shape for w in resized.weights] != [w.shape for w in weights]:
            return model
        resized.set_weights(weights)
    except Exception:  # Keras raises errors of many types.
        return model
    return resized


def _by_name(model: Any, outputs: Any) -> dict[str, Any]:
    names = getattr(model, "output_names", None)
    flat = outputs if isinstance(outputs, list | tuple) else [outputs]
    if isinstance(outputs, dict):
        return outputs
    if not names or len(names) != len(flat):
        names = [f"output_{i}" for i in range(len(flat))]
    return dict(zip(names, flat, strict=True))


def _pixels(model: Any) -> dict[str, Any]:
    """Return the preprocessing of a model, if its name is of keras.applications.

    The name of a nested model counts too, with a remark.
    """
    for name in (model.name, *(layer.name for layer in _nested(model))):
        convention = _convention(name)
        if convention is None:
            continue
        if name != model.name:
            convention["range_source"] = (
                f"Input range unknown; assuming that of {name!r} in "
                "keras.applications. To set another, append #input_range=LOW:HIGH to "
                "the checkpoint's name"
            )
        return convention
    return {}


def _convention(name: str) -> dict[str, Any] | None:
    if _CAFFE.fullmatch(name):
        return {"input_range": (0.0, 255.0), "pixels": _CAFFE_PIXELS}
    if _TORCH.fullmatch(name):
        return {"input_range": (0.0, 1.0), "pixels": _TORCH_PIXELS}
    if _SYMMETRIC.fullmatch(name):
        return {"input_range": (-1.0, 1.0)}
    return None


def _nested(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield layer
            yield from _nested(layer)
