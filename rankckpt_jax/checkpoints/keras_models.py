"""Keras models in memory become backbones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rankckpt_jax.checkpoints.backbone import Backbone, digest_weights
from rankckpt_jax.checkpoints.graphs import convert
from rankckpt_jax.checkpoints.graphs.graph_apply import GraphApply
from rankckpt_jax.checkpoints.sources import Options, keras
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files


def from_keras(
    model: Any,
    *,
    name: str = "",
    image_size: int = 0,
    preferred_image_size: int = 0,
    output: str = "",
    input_range: tuple[float, float] | None = None,
    input_mean: tuple[float, float, float] | None = None,
) -> Backbone:
    """Return the `Backbone` of a Keras model, as `load_hub` does for its file.

    Args:
      model: A `keras.Model` of Keras 3 with TensorFlow that takes images [B, H, W, 3].
      name: Name of its row; by default the model's name.
      image_size: Side of the images in pixels. By default the model's own, or 224.
      preferred_image_size: The same, but a model of a fixed size keeps its own.
      output: Name of the layer or output that holds the features. By default the
        pooled input of the classifier.
      input_range: Values that the pixels 0 and 255 become. By default it is read from
        the model's first layers, or is that of keras.applications, or [0, 1] with a
        warning.
      input_mean: Mean per channel that is subtracted afterwards.

    Returns:
      The backbone. It holds a copy of the weights. Its fingerprint changes with the
      weights and the layers.

    Raises:
      InputError: It is no such model, has no unambiguous features, or has an operation
        without a counterpart in JAX.
    """
    where = f"from_keras, {name or getattr(model, 'name', '')!r}"
    if not is_model(model):
        raise InputError(
            "Not a Keras model",
            where=where,
            expected="keras.Model of Keras 3",
            found=f"{type(model).__module__}.{type(model).__qualname__}",
            fix='save it with model.save("net.keras") and name the file',
        )
    keras.check_backend()
    size = image_size or preferred_image_size
    options = Options(
        handle=f"Keras model {model.name} in memory",
        name=name or model.name,
        image_size=size,
        is_size_preferred=not image_size and bool(size),
        input_range=input_range,
        input_mean=input_mean,
    )
    network = keras.read_model(model, where, output or None, size or None)
    identity = identify(model)
    backbone = convert.to_backbone(network, "", options)
    graph = backbone.architecture
    if isinstance(backbone.apply, GraphApply):
        graph = backbone.apply.graphs.evaluation.digest
    fingerprint = files.digest(identity or _digest_weights(model), output)
    if not identity:
        fingerprint = files.digest(fingerprint, graph)
    return dataclasses.replace(backbone, fingerprint=fingerprint)


def is_model(item: Any) -> bool:
    """Return whether an object is a `keras.Model` of Keras 3, without importing it."""
    return any(
        base.__module__.startswith("keras.") and base.__name__ == "Model"
        for base in type(item).__mro__
    )


def identify(model: Any) -> str:
    """Return a digest of a model's weights and layers.

    It is empty for a model with layers that are not Keras's own, because their code
    counts too. Then only the graph of the converted model shows whether it changed.
    """
    layers = model._flatten_layers(include_self=False)
    # A model that is a subclass has code too.
    own = {"Functional", "Sequential"}
    if type(model).__name__ not in own or not all(map(_is_own, layers)):
        return ""
    return files.digest(model.to_json(), _digest_weights(model))


def _is_own(layer: Any) -> bool:
    return type(layer).__module__.startswith("keras.")


def _digest_weights(model: Any) -> str:
    return digest_weights([{w.path: np.asarray(w)} for w in model.weights])
