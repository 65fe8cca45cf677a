"""Rewrite the description of a Keras model so that Keras 3 can read it.

Files of Keras 2 (tf_keras, and TensorFlow up to 2.15) name classes, arguments and
modules that Keras 3 does not have. Nothing here runs anything of a file: it reads
plain JSON values and returns others. `keras_allowlist` checks the result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

_FUNCTIONAL = ("Functional", "Model")
_MODELS = (*_FUNCTIONAL, "Sequential")
_ALIASES = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
}
# Where Keras 3 has layers that are not in keras.layers.
_MODULES = {
    "CustomScaleLayer": "keras.src.applications.inception_resnet_v2",
    "LayerScale": "keras.src.applications.convnext",
}
# Random augmentation, which passes images through in evaluation. Its operations have no
# counterparts in JAX, and fine-tuning augments images itself.
_AUGMENTATION = (
    *("RandomApply", "RandomBrightness", "RandomContrast", "RandomFlip"),
    *("RandomHeight", "RandomRotation", "RandomTranslation", "RandomWidth"),
    "RandomZoom",
)
# Arguments that only decide how variables start and are penalized. The values are read
# from the file, and nothing penalizes them.
_INITIAL = ("_initializer", "_regularizer", "_constraint")
# Arguments of Keras 2 without influence on the result.
_DROPPED = (
    *("batch_input_shape", "rng_type", "force_generator", "ragged", "sparse"),
    *("optional", "renorm", "renorm_clipping", "renorm_momentum", "fused"),
    *("virtual_batch_size", "experimental_autocast", "input_dtype", "implementation"),
)
# Functions of TensorFlow that Keras 2 records in a model. Their arguments become those
# of an operation of Keras 3.
_ARITHMETIC = {
    "__operators__.add": "Add",
    "math.add": "Add",
    "nn.bias_add": "Add",
    "math.subtract": "Subtract",
    "math.multiply": "Multiply",
    "math.truediv": "TrueDivide",
    "math.divide": "TrueDivide",
    "math.maximum": "Maximum",
    "math.minimum": "Minimum",
}
_ACTIVATIONS = {
    "nn.relu": "relu",
    "nn.relu6": "relu6",
    "nn.silu": "silu",
    "nn.swish": "silu",
    "nn.elu": "elu",
    "nn.selu": "selu",
    "nn.gelu": "gelu",
    "nn.softmax": "softmax",
    "nn.softplus": "softplus",
    "nn.tanh": "tanh",
    "math.tanh": "tanh",
    "math.sigmoid": "sigmoid",
    "math.softplus": "softplus",
}

Json = dict[str, Any]

HARD_SIGMOID: Json = {
    "module": None,
    "class_name": "function",
    "config": "keras2_hard_sigmoid",
    "registered_name": "keras2_hard_sigmoid",
}
"""The hard sigmoid of Keras 2, by a name of ours; that of Keras 3 is less steep."""


def upgrade(description: Any, keras_version: str = "") -> Any:
    """Return a model's description in the form that Keras 3 reads.

    Layers compute in float32 whatever the file's dtype policy is, and augmentation
    becomes the identity. What is not known stays as it is.

    Args:
      description: The value of `config.json`, or of the attribute `model_config`.
      keras_version: Version of the Keras that wrote it; "" if it is unknown.
    """
    if not isinstance(description, dict):
        return description
    is_keras2 = not keras_version.startswith("3")
    return _object(
        _without_slashes(description) if is_keras2 else description, is_keras2
    )


def layer_name(name: str) -> str:
    """Return a layer's name without slashes, which Keras 3 does not accept."""
    return name.replace("/", "_")


def _without_slashes(value: Any, key: str = "") -> Any:
    """Return a description with other names of layers, and references to them."""
    if isinstance(value, dict):
        return {k: _without_slashes(v, k) for k, v in value.items()}
    if isinstance(value, list):
        if _is_tensor(value[:3]):
            return [layer_name(value[0]), *map(_without_slashes, value[1:])]
        return [_without_slashes(item) for item in value]
    return layer_name(value) if key == "name" and isinstance(value, str) else value


def _object(item: Any, is_keras2: bool) -> Any:
    """Return the description of a layer or model."""
    if not isinstance(item, dict) or "class_name" not in item:
        return item
    name, module = item["class_name"], item.get("module")
    if not isinstance(name, str):
        return item
    name = _ALIASES.get(name, name)
    config = item.get("config")
    result = {k: v for k, v in item.items() if k not in ("compile_config",)}
    if isinstance(module, str) and module.startswith("tf_keras"):
        module = module.removeprefix("tf_")
    if name in _MODELS and isinstance(config, dict | list):
        config = _model(name, config, is_keras2)
        name = "Functional" if name in _FUNCTIONAL else name
        module = "keras" if name == "Sequential" else "keras.src.models.functional"
    elif isinstance(config, dict) and (module is None or _is_layer_module(module)):
        name, config = _layer(name, config, is_keras2)
        if is_keras2 or not module:
            module = _MODULES.get(name, "keras.layers")
    result |= {"class_name": name, "config": config, "module": module}
    if is_keras2:
        result["registered_name"] = None
        result.pop("shared_object_id", None)
    return result


def _is_layer_module(module: Any) -> bool:
    return isinstance(module, str) and (
        module.startswith(
            ("keras.layers", "keras.src.layers", "keras.src.engine")
            + ("keras.src.applications",)
        )
    )


def _model(name: str, config: Any, is_keras2: bool) -> Json:
    if isinstance(config, list):
        # Sequential models of the first versions of Keras.
        config = {"name": name.lower(), "layers": config}
    layers = config.get("layers")
    if not isinstance(layers, list):
        return dict(config)
    result = {k: v for k, v in config.items() if k not in _DROPPED}
    result["layers"] = [_object(layer, is_keras2) for layer in layers]
    if name == "Sequential":
        if is_keras2:
            result.pop("build_input_shape", None)
        result["layers"] = _with_input(result["layers"], config)
        return result
    if is_keras2:
        classes = {
            layer.get("name"): layer.get("class_name")
            for layer in result["layers"]
            if isinstance(layer, dict)
        }
        sequential = {name for name, kind in classes.items() if kind == "Sequential"}
        models = {name for name, kind in classes.items() if kind in _MODELS}
        layers = [_with_calls(layer, models) for layer in result["layers"]]
        result["layers"] = [_graph_layer(layer) for layer in layers]
        # Keras 3 subtracts the own node of a functional model here itself.
        for key in ("input_layers", "output_layers"):
            ends = _without_own_node(config.get(key), sequential)
            one = isinstance(ends, list) and len(ends) == 1
            result[key] = ends[0] if one else ends
    return result


def _with_calls(layer: Any, models: Collection[Any]) -> Any:
    if not isinstance(layer, dict) or "inbound_nodes" not in layer:
        return layer
    nodes = _without_own_node(layer["inbound_nodes"], models)
    return {**layer, "inbound_nodes": nodes}


def _without_own_node(value: Any, models: Collection[Any]) -> Any:
    """Return references to tensors, [layer, node, index, ...], as Keras 3 counts nodes.

    In Keras 2, the first node of a model within a graph is its own.
    """
    if not isinstance(value, list):
        return value
    if _is_tensor(value[:3]):
        name, node, *rest = value
        rest = [
            {k: _without_own_node(v, models) for k, v in item.items()}
            if isinstance(item, dict)
            else item
            for item in rest
        ]
        return [name, node - 1 if name in models else node, *rest]
    return [_without_own_node(item, models) for item in value]


def _with_input(layers: list[Any], config: Json) -> list[Any]:
    """Return the layers of a sequential model, after an input layer if it is known."""
    shape = config.get("batch_input_shape") or _input_shape(config)
    first = layers[0] if layers else {}
    if not shape or not isinstance(first, dict) or first["class_name"] == "InputLayer":
        return layers
    given = {"batch_shape": shape, "dtype": "float32", "name": "images"}
    layer = {"class_name": "InputLayer", "config": given, "module": "keras.layers"}
    return [{**layer, "registered_name": None}, *layers]


def _input_shape(config: Any) -> Any:
    """Return the shape of a layer's or model's input, in its own description."""
    if isinstance(config, list):
        config = {"layers": config}
    if not isinstance(config, dict):
        return None
    shape = config.get("batch_input_shape") or config.get("batch_shape")
    layers = config.get("layers")
    if shape or not isinstance(layers, list):
        return shape
    first = next((layer for layer in layers if isinstance(layer, dict)), {})
    return _input_shape(first.get("config"))


def _layer(name: str, config: Json, is_keras2: bool) -> tuple[str, Json]:
    """Return (class, arguments) of a layer."""
    result = {
        key: _activation(value, is_keras2) if key.endswith("activation") else value
        for key, value in config.items()
        if key not in _DROPPED and not key.endswith(_INITIAL)
    }
    if name in _AUGMENTATION:
        kept = {k: v for k, v in result.items() if k in ("name", "trainable")}
        return "Identity", kept
    if "dtype" in result:
        result["dtype"] = _dtype(result["dtype"])
    if name == "InputLayer" and "batch_input_shape" in config:
        result.setdefault("batch_shape", config["batch_input_shape"])
    axis = result.get("axis")
    if isinstance(axis, list) and len(axis) == 1:
        result["axis"] = axis[0]
    if name == "LeakyReLU" and "alpha" in result:
        result["negative_slope"] = result.pop("alpha")
    if name in ("DepthwiseConv2D", "SeparableConv2D"):
        # Keras 2 ignores it too.
        result.pop("groups", None)
    return name, result


def _activation(value: Any, is_keras2: bool) -> Any:
    if value == "hard_sigmoid" and is_keras2:
        return HARD_SIGMOID
    return value


def _dtype(value: Any) -> Any:
    """Return float32 for a floating-point dtype or policy."""
    name = value
    if isinstance(value, dict) and isinstance(value.get("config"), dict):
        name = value["config"].get("name")
    floating = ("float", "mixed_", "bfloat", "uint8", "int32")
    is_quantized = isinstance(name, str) and name.startswith("float8")
    if isinstance(name, str) and name.startswith(floating) and not is_quantized:
        return "float32"
    return value


def _graph_layer(layer: Any) -> Any:
    """Return a layer of a graph; a recorded function becomes one of Keras 3."""
    if not isinstance(layer, dict) or not isinstance(layer.get("inbound_nodes"), list):
        return layer
    name = layer["class_name"]
    if name not in ("TFOpLambda", "SlicingOpLambda") or not layer["inbound_nodes"]:
        return layer
    upgraded = _function(layer) if name == "TFOpLambda" else _reversal(layer)
    function = layer["config"].get("function")
    # The name of the class is what the message of a refusal shows.
    return upgraded or {**layer, "class_name": f"{name}({function})"}


def _function(layer: Json) -> Json | None:
    """Return the operation of Keras 3 for a recorded function, or None."""
    config, nodes = layer["config"], layer["inbound_nodes"]
    function = config.get("function")
    if not isinstance(function, str) or len(nodes) != 1:
        return None
    first, keywords = _call(nodes[0])
    own = {"name": config.get("name")}
    if function in _ARITHMETIC:
        second = keywords.get("y", keywords.get("bias"))
        extra = {k for k, v in keywords.items() if v is not None}
        if second is None or extra - {"y", "bias", "data_format"}:
            return None
        name = _ARITHMETIC[function]
        return _operation(layer, "numpy", name, own, [first, second])
    if function in _ACTIVATIONS and set(keywords) <= {"name", "axis", "approximate"}:
        if keywords.get("axis") not in (None, -1) or keywords.get("approximate"):
            return None
        config = {**own, "activation": _ACTIVATIONS[function]}
        return _as_layer(layer, "Activation", config, first)
    return (
        _FUNCTIONS[function](layer, first, keywords) if function in _FUNCTIONS else None
    )


def _call(node: Any) -> tuple[Any, Json]:
    """Return (first argument, other arguments) of a call of a function."""
    while len(node) == 1 and isinstance(node[0], list):
        node = node[0]
    if isinstance(node[0], list):
        # Several tensors as one argument.
        keywords = node[0][3] if len(node[0]) > 3 else {}
        return [tensor[:3] for tensor in node], keywords
    keywords = node[3] if len(node) > 3 else {}
    first = node[2] if node[0] == "_CONSTANT_VALUE" else node[:3]
    return first, keywords


def _is_tensor(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and all(isinstance(index, int) for index in value[1:])
    )


def _tensor(value: Any) -> Any:
    """Return an argument: a tensor for [layer, node, index], else the value."""
    if isinstance(value, list) and all(isinstance(v, int | float) for v in value):
        array = {"value": value, "dtype": "float32"}
        return {"class_name": "__numpy__", "config": array}
    if not _is_tensor(value):
        return value
    history = {"shape": [None], "dtype": "float32", "keras_history": value}
    return {"class_name": "__keras_tensor__", "config": history}


def _operation(
    layer: Json, module: str, name: str, config: Json, arguments: list[Any]
) -> Json:
    node = {"args": [_tensor(value) for value in arguments], "kwargs": {}}
    return {
        "module": f"keras.src.ops.{module}",
        "class_name": name,
        "config": config,
        "registered_name": name,
        "name": layer.get("name"),
        "inbound_nodes": [node],
    }


def _as_layer(layer: Json, name: str, config: Json, tensor: Any) -> Json:
    result = _operation(layer, "", name, {**config, "dtype": "float32"}, [tensor])
    return {**result, "module": "keras.layers", "registered_name": None}


def _resize(layer: Json, first: Any, keywords: Json) -> Json | None:
    size, method = keywords.get("size"), keywords.get("method") or "bilinear"
    others = ("preserve_aspect_ratio", "antialias")
    if not isinstance(size, list) or any(keywords.get(key) for key in others):
        return None
    config = {"name": layer["config"].get("name"), "interpolation": method}
    config |= {"height": size[0], "width": size[1]}
    return _as_layer(layer, "Resizing", config, first)


def _mean(layer: Json, first: Any, keywords: Json) -> Json | None:
    if keywords.get("axis") not in ([1, 2], [2, 1]):
        return None
    config = {"name": layer["config"].get("name")}
    config["keepdims"] = bool(keywords.get("keepdims"))
    return _as_layer(layer, "GlobalAveragePooling2D", config, first)


def _concat(layer: Json, first: Any, keywords: Json) -> Json | None:
    config = {"name": layer["config"].get("name"), "axis": keywords.get("axis", -1)}
    tensors = [_tensor(value) for value in first]
    return _as_layer(layer, "Concatenate", config, tensors)


def _identity(layer: Json, first: Any, keywords: Json) -> Json | None:
    if keywords.get("dtype") not in (None, "float32", "float16", "bfloat16"):
        return None
    config = {"name": layer["config"].get("name")}
    return _as_layer(layer, "Identity", config, first)


_FUNCTIONS: Mapping[str, Callable[[Json, Any, Json], Json | None]] = {
    "image.resize": _resize,
    "math.reduce_mean": _mean,
    "concat": _concat,
    "cast": _identity,
    "identity": _identity,
}


def _reversal(layer: Json) -> Json | None:
    """Return the operation for `images[..., ::-1]`, or None for another slice."""
    first, keywords = _call(layer["inbound_nodes"][0])
    spec = keywords.get("slice_spec")
    backwards = {"start": None, "stop": None, "step": -1}
    if layer["config"].get("function") != "__operators__.getitem":
        return None
    if not isinstance(spec, list) or not spec or spec[-1] != backwards:
        return None
    whole = {"start": None, "stop": None, "step": None}
    is_ellipsis = len(spec) == 2 and isinstance(spec[0], dict)
    is_ellipsis = is_ellipsis and spec[0].get("class_name") == "__ellipsis__"
    if not is_ellipsis and spec[:-1] != [whole] * 3:
        return None
    config = {"name": layer["config"].get("name"), "axis": -1}
    return _operation(layer, "numpy", "Flip", config, [first])
