"""TF-Slim checkpoints: NAME.index beside NAME.data-*.

They become Flax variables, and back, by the names of the variables. The Flax modules
are named after TF-Slim's scopes and keep TensorFlow's shapes, so one rule converts
every network:

    SCOPE/a/b/weights                           params/a/b/kernel
    SCOPE/a/b/{depthwise,pointwise}_weights     params/a/b/{depthwise,pointwise}_kernel
    SCOPE/a/b/biases                            params/a/b/bias
    SCOPE/a/BatchNorm/{gamma,beta}              params/a/BatchNorm/{scale,bias}
    SCOPE/a/BatchNorm/moving_{mean,variance}    batch_stats/a/BatchNorm/{mean,var}
    SCOPE/CLASSIFIER/{weights,biases}           params/logits/{kernel,bias}

Only the classifier is reshaped: TF-Slim stores most as 1x1 convolutions, [1, 1, D, C].
A variable that belongs neither to the network nor to its training (optimizer slots, the
step, moving averages of the weights, auxiliary heads) is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rankckpt_jax import models
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints import sources
from rankckpt_jax.checkpoints.sources import state_dict
from rankckpt_jax.checkpoints.tensorflow_files import checkpoint_files, table
from rankckpt_jax.errors import InputError, some
from rankckpt_jax.models import architecture as architecture_lib
from rankckpt_jax.models import layers

SHADOW = "/ExponentialMovingAverage"
"""Suffix of the moving average of a variable, which some trainers keep."""

_SLOTS = ("Momentum", "RMSProp", "RMSProp_1", "Adam", "Adam_1", "Adagrad", "Adadelta")
# Variables that trainers write, and that belong to no network.
_TRAINING = re.compile(
    r"(^|/)(global_step|beta[12]_power|learning_rate|save_counter"
    r"|_CHECKPOINTABLE_OBJECT_GRAPH)$"
    r"|/(" + "|".join(_SLOTS) + r")(/.*)?$"
    r"|/BatchNorm/moving_(mean|variance)/(biased|local_step).*$"
)
# Classifiers that Inception has for training only.
_AUXILIARY = re.compile(r"(^|/)AuxLogits/")

_LEAVES = {
    "kernel": "weights",
    "depthwise_kernel": "depthwise_weights",
    "pointwise_kernel": "pointwise_weights",
    "bias": "biases",
    "mean": "moving_mean",
    "var": "moving_variance",
}
_BATCH_NORM_LEAVES = {"scale": "gamma", "bias": "beta"}

# Image sizes that networks are trained at, apart from the multiples of 32.
_ODD_IMAGE_SIZES = (299, 331)


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """The network in a checkpoint, recognized by its variables.

    Attributes:
      architecture: A name for `models.create`.
      num_classes: Width of its classifier; 0 without one.
      image_size: Side of the images in pixels, from the name of the file or folder;
        None if neither has one.
    """

    architecture: str
    num_classes: int
    image_size: int | None


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable in both formats.

    Attributes:
      path: Its path in the Flax variables.
      shape: Its shape there.
      slim_shape: Its shape in a TF-Slim checkpoint.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    slim_shape: tuple[int, ...]


def matches(path: epath.Path) -> bool:
    """Return whether a path is a TF-Slim checkpoint's prefix, part or directory."""
    part = checkpoint_files.PART
    if path.is_dir():
        return any(part.fullmatch(str(child)) for child in path.iterdir())
    if part.fullmatch(str(path)):
        return True
    if ".ckpt" in path.name:
        # PyTorch Lightning uses the ending for its own files.
        return not state_dict.matches(path)
    if epath.Path(f"{path}.index").exists():
        return True
    # A checkpoint of format V1 is a single file of any name.
    return path.is_file() and table.is_table(path)


def load(path: epath.Path, options: sources.Options) -> backbone_lib.Backbone:
    """Load a TF-Slim checkpoint. TensorFlow is not imported.

    Args:
      path: The prefix "DIR/model.ckpt", its ".index" file, or a directory with one.
      options: `architecture` is recognized from the variables if empty. `image_size`
        defaults to the number in the folder's name ("mobilenet_v1_0.25_128"), else to
        the architecture's own size, `name` to the folder's name. `use_moving_averages`
        loads the moving averages of the weights, which trainers with
        `ExponentialMovingAverage` store, instead of the weights.

    Returns:
      The backbone, with the checkpoint's classifier if there is one.

    Raises:
      InputError: The file cannot be read, or its variables differ from those of the
        architecture; the message lists them.
    """
    architecture = options.architecture or recognize(path).architecture
    prefix = checkpoint_files.prefix_of(path)
    shapes = checkpoint_files.shapes(prefix)
    network = models.get(architecture)
    expected = variables_of(network, num_classes_of(network, shapes))
    _check_variables(prefix, network, expected, shapes)
    shadows = {slim: slim + SHADOW for slim in expected if slim + SHADOW in shapes}
    if options.use_moving_averages and not shadows:
        raise InputError(
            "The checkpoint has no moving averages of its weights",
            where=prefix,
            expected=f"variables named ...{SHADOW}",
            fix="load it without use_moving_averages",
        )
    stored = {slim: slim for slim in expected}
    if options.use_moving_averages:
        stored |= shadows
    values = _read_weights(prefix, list(stored.values()))
    flat = {
        variable.path: values[stored[slim]].reshape(variable.shape)
        for slim, variable in expected.items()
    }
    return backbone_lib.create(
        architecture,
        flax.traverse_util.unflatten_dict(flat),
        image_size=options.image_size,
        own_image_size=_size_in_name(prefix),
        input_range=options.input_range,
        input_mean=options.input_mean,
        own_transform=own_transform(architecture),
        name=options.name or epath.Path(prefix).parent.name or architecture,
        fingerprint=checkpoint_files.fingerprint(prefix),
        source=prefix,
    )


def own_transform(architecture: str) -> str:
    """Return the rule of `preprocess.resize` that TF-Slim evaluates a network with.

    Networks whose pixels have their mean subtracted use VGG's rule. All others, also
    ResNet v2, were trained with Inception's.
    """
    return "slim_vgg" if any(models.get(architecture).input_mean) else "slim_inception"


def save_slim(
    architecture: str, variables: backbone_lib.Variables, path: epath.Path | str
) -> None:
    """Write Flax variables as a TF-Slim checkpoint, the inverse of `load`.

    Args:
      architecture: A name for `models.create`.
      variables: {"params", "batch_stats"}, with or without `params["logits"]`.
      path: The prefix; its directory is created.

    Raises:
      InputError: The variables are not those of the architecture.
      StorageError: A file cannot be written.
    """
    _, head = backbone_lib.split_head(variables)
    num_classes = 0 if head is None else head["bias"].shape[-1]
    expected = variables_of(models.get(architecture), num_classes)
    flat = flax.traverse_util.flatten_dict(dict(variables))
    if {v.path: v.shape for v in expected.values()} != {
        path: value.shape for path, value in flat.items()
    }:
        raise InputError(f"These are not the variables of {architecture}")
    values = {
        slim: np.asarray(flat[variable.path], np.float32).reshape(variable.slim_shape)
        for slim, variable in expected.items()
    }
    checkpoint_files.write(path, values)


def recognize(path: epath.Path | str) -> CheckpointInfo:
    """Recognize the network of a checkpoint by its variables' names and shapes.

    Raises:
      InputError: The file cannot be read, or no known network has these variables.
    """
    prefix = checkpoint_files.prefix_of(path)
    shapes = checkpoint_files.shapes(prefix)
    nearest, nearest_share = None, 0.0
    for network in architecture_lib.candidates(shapes):
        if not any(name.startswith(network.scope + "/") for name in shapes):
            continue
        expected = variables_of(network)
        share = sum(
            shapes.get(slim) == variable.slim_shape
            for slim, variable in expected.items()
        ) / len(expected)
        if share == 1:
            classes = num_classes_of(network, shapes)
            return CheckpointInfo(network.name, classes, _size_in_name(prefix))
        if share > nearest_share:
            nearest, nearest_share = network, share
    if nearest is not None:
        _check_variables(prefix, nearest, variables_of(nearest), shapes)
    raise InputError(
        "No known network has this checkpoint's variables",
        where=prefix,
        expected="a TF-Slim checkpoint of " + ", ".join(models.names()),
        found=some(sorted(shapes)) or "no variables",
        fix="give the network's own checkpoint, or export it as a SavedModel",
    )


@functools.cache
def variables_of(
    network: architecture_lib.Architecture, num_classes: int = 0
) -> Mapping[str, Variable]:
    """Return the variables of a network by their names in TF-Slim."""
    module = network.build(num_classes=num_classes)
    size = network.minimum_image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    flat = flax.traverse_util.flatten_dict(shapes)
    normalized = {path[1:-1] for path in flat if path[0] == "batch_stats"}
    result = {}
    for path, leaf in flat.items():
        _, *scopes, name = path
        slim_shape = leaf.shape
        if scopes == [layers.HEAD]:
            scopes = [network.classifier]
            if name == "kernel" and not network.classifier_is_dense:
                slim_shape = (1, 1, *leaf.shape)
        if tuple(scopes) in normalized:
            name = _BATCH_NORM_LEAVES.get(name, name)
        slim = "/".join([network.scope, *scopes, _LEAVES.get(name, name)])
        result[slim] = Variable(path, leaf.shape, slim_shape)
    return result


def num_classes_of(
    network: architecture_lib.Architecture, shapes: architecture_lib.Shapes
) -> int:
    """Return the width of the classifier in a checkpoint's shapes; 0 without one."""
    shape = shapes.get(f"{network.scope}/{network.classifier}/weights")
    return shape[-1] if shape else 0


def _check_variables(
    prefix: str,
    network: architecture_lib.Architecture,
    expected: Mapping[str, Variable],
    shapes: architecture_lib.Shapes,
) -> None:
    """Raise if a variable is missing, unknown or of another shape."""
    unknown = [
        name
        for name in shapes.keys() - expected.keys()
        if not _TRAINING.search(name)
        and not _AUXILIARY.search(name)
        and name.removesuffix(SHADOW) not in expected
    ]
    misshapen = [
        f"{slim} {list(shapes[slim])} instead of {list(variable.slim_shape)}"
        for slim, variable in expected.items()
        if slim in shapes and shapes[slim] != variable.slim_shape
    ]
    problems = {
        "missing": expected.keys() - shapes.keys(),
        "unknown": unknown,
        "misshapen": misshapen,
    }
    if any(problems.values()):
        raise InputError(
            f"The variables are not those of {network.name}",
            where=prefix,
            expected=f"{len(expected)} variables below {network.scope}/",
            found="; ".join(
                f"{kind}: {some(sorted(names))}"
                for kind, names in problems.items()
                if names
            ),
            fix="give the right architecture; checkpoints.recognize(path) returns it",
        )


def _read_weights(prefix: str, names: list[str]) -> dict[str, np.ndarray]:
    """Read variables as float32.

    Raises:
      InputError: A variable has no floating-point numbers, or some are not finite.
    """
    values = checkpoint_files.read(prefix, names)
    for name, value in values.items():
        # NumPy's own hierarchy of types does not have bfloat16.
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise InputError(
                f"Variable {name!r} has the wrong type",
                where=prefix,
                expected="floating point",
                found=str(value.dtype),
                fix="give a checkpoint that a training run wrote",
            )
        value = value.astype(np.float32, copy=False)
        if not np.isfinite(value).all():
            raise InputError(
                f"Variable {name!r} has NaN or infinite values",
                where=prefix,
                expected="finite numbers",
                found=f"{(~np.isfinite(value)).sum()} of {value.size} are not finite",
                fix="take another step of the training run that wrote it",
            )
        values[name] = value
    return values


def _size_in_name(prefix: str) -> int | None:
    """Return the image size in the name of the file or folder, or None.

    "mobilenet_v1_0.25_128" gives 128. Names also end in steps, multipliers
    ("mobilenet_v2_140") and depths ("resnet_v1_50"), so only sizes that networks are
    trained at count: multiples of 32, and 299 and 331.
    """
    path = epath.Path(prefix)
    stem = re.sub(r"\.ckpt(-\d+)?$", "", path.name)
    for name in (stem, path.parent.name):
        match = re.search(r"[_-]([1-9]\d{1,3})$", name)
        size = int(match[1]) if match else 0
        if size in _ODD_IMAGE_SIZES or (size % 32 == 0 and 32 <= size <= 1024):
            return size
    return None
