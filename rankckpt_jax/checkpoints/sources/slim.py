"""TF-Slim checkpoints to Flax variables and back, by the variables' own names.

The Flax modules carry TF-Slim's scopes as names and TensorFlow's shapes, so one rule
converts every network:

    SCOPE/a/b/weights                           params/a/b/kernel
    SCOPE/a/b/{depthwise,pointwise}_weights     params/a/b/{depthwise,pointwise}_kernel
    SCOPE/a/b/biases                            params/a/b/bias
    SCOPE/a/BatchNorm/{gamma,beta}              params/a/BatchNorm/{scale,bias}
    SCOPE/a/BatchNorm/moving_{mean,variance}    batch_stats/a/BatchNorm/{mean,var}
    SCOPE/CLASSIFIER/{weights,biases}           params/logits/{kernel,bias}

Only the classifier changes its shape: TF-Slim has most as 1x1 convolutions,
[1, 1, D, C]. Every variable of a checkpoint is accounted for: what is neither the
network's nor known to belong to its training (optimizer slots, the step, moving-average
shadows, auxiliary heads) is an error.
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
from rankckpt_jax.checkpoints.tensorflow_files import checkpoint_files as files
from rankckpt_jax.errors import InputError, some
from rankckpt_jax.models import architecture as architecture_lib
from rankckpt_jax.models import layers

SHADOW = "/ExponentialMovingAverage"
"""Suffix of a variable's moving average, where training kept one."""

_SLOTS = ("Momentum", "RMSProp", "RMSProp_1", "Adam", "Adam_1", "Adagrad", "Adadelta")
# Variables of training that no network has; TF-Slim's trainers write them.
_TRAINING = re.compile(
    r"(^|/)(global_step|beta[12]_power|learning_rate|save_counter"
    r"|_CHECKPOINTABLE_OBJECT_GRAPH)$"
    r"|/(" + "|".join(_SLOTS) + r")(/.*)?$"
    r"|/BatchNorm/moving_(mean|variance)/(biased|local_step).*$"
)
# Heads that only help Inception to train.
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

# Sizes that networks are trained at besides the multiples of 32.
_ODD_IMAGE_SIZES = (299, 331)


@dataclasses.dataclass(frozen=True)
class Recognized:
    """What a checkpoint's own variables say about it.

    Attributes:
      architecture: A name that `models.create` knows.
      num_classes: Width of its classifier; 0 without one.
      image_size: From its own or its folder's name; None where they do not say.
    """

    architecture: str
    num_classes: int
    image_size: int | None


@dataclasses.dataclass(frozen=True)
class Variable:
    """Where a TF-Slim variable belongs: path in the Flax variables, both shapes."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    slim_shape: tuple[int, ...]


def load_slim(
    architecture: str,
    path: epath.Path | str,
    image_size: int | None = None,
    name: str | None = None,
    *,
    use_moving_averages: bool = False,
    input_range: tuple[float, float] | None = None,
    input_mean: tuple[float, float, float] | None = None,
) -> backbone_lib.Backbone:
    """Converts a TF-Slim checkpoint in TensorFlow's V2 format.

    Args:
      architecture: A name that `models.create` knows.
      path: The prefix "DIR/model.ckpt", its ".index" file, or a directory with one.
      image_size: Side of the images in pixels; by default what the folder's name
        says ("mobilenet_v1_0.25_128"), else the architecture's own.
      name: Unique in its pool; by default the folder's name.
      use_moving_averages: Take the shadows that training with
        `ExponentialMovingAverage` left, where a variable has one, instead of the
        plain weights.
      input_range: Values that 0 and 255 become; by default the architecture's.
      input_mean: Subtracted afterwards, per channel; by default the architecture's.

    Returns:
      The backbone, with the checkpoint's classifier where it has one.

    Raises:
      InputError: The file cannot be read, or its variables are not exactly those of
        the architecture; the message lists the names.
    """
    prefix = files.prefix_of(path)
    found = files.shapes(prefix)
    network = models.get(architecture)
    wanted = variables_of(network, _num_classes(network, found))
    _account_for(prefix, network, wanted, found)
    shadows = {slim for slim in wanted if slim + SHADOW in found}
    if use_moving_averages and not shadows:
        raise InputError(
            "The checkpoint has no moving averages of its weights",
            where=prefix,
            expected=f"variables named ...{SHADOW}",
            fix="load it without use_moving_averages",
        )
    stored = {
        slim: slim + SHADOW if use_moving_averages and slim in shadows else slim
        for slim in wanted
    }
    values = files.read(prefix, stored.values())
    flat = {
        variable.path: values[stored[slim]].reshape(variable.shape)
        for slim, variable in wanted.items()
    }
    return backbone_lib.create(
        architecture,
        flax.traverse_util.unflatten_dict(flat),
        image_size=image_size or _size_in(prefix),
        input_range=input_range,
        input_mean=input_mean,
        name=name or epath.Path(prefix).parent.name or architecture,
        fingerprint=files.fingerprint(prefix),
        source=prefix,
    )


def save_slim(
    architecture: str, variables: backbone_lib.Variables, path: epath.Path | str
) -> None:
    """Writes Flax variables as a TF-Slim checkpoint: the inverse of `load_slim`.

    Args:
      architecture: Whose variables they are.
      variables: {"params", "batch_stats"}, with or without `params["logits"]`.
      path: The prefix; its directory is made.

    Raises:
      InputError: They are not the architecture's variables.
    """
    _, head = backbone_lib.split_head(variables)
    num_classes = 0 if head is None else head["bias"].shape[-1]
    wanted = variables_of(models.get(architecture), num_classes)
    flat = flax.traverse_util.flatten_dict(dict(variables))
    if {v.path: v.shape for v in wanted.values()} != {
        path: value.shape for path, value in flat.items()
    }:
        raise InputError(f"These are not the variables of {architecture}")
    files.write(
        path,
        {
            slim: np.asarray(flat[variable.path], np.float32).reshape(
                variable.slim_shape
            )
            for slim, variable in wanted.items()
        },
    )


def recognize(path: epath.Path | str) -> Recognized:
    """Tells a checkpoint's architecture, width and classifier from its variables.

    Raises:
      InputError: The file cannot be read, or no known network has its variables.
    """
    prefix = files.prefix_of(path)
    found = files.shapes(prefix)
    nearest, nearest_share = None, 0.0
    for network in architecture_lib.candidates(found):
        if not any(name.startswith(network.scope + "/") for name in found):
            continue
        wanted = variables_of(network)
        share = sum(
            found.get(slim) == variable.slim_shape for slim, variable in wanted.items()
        ) / len(wanted)
        if share == 1:
            classes = _num_classes(network, found)
            return Recognized(network.name, classes, _size_in(prefix))
        if share > nearest_share:
            nearest, nearest_share = network, share
    if nearest is not None:
        _account_for(prefix, nearest, variables_of(nearest), found)
    raise InputError(
        "No known network has this checkpoint's variables",
        where=prefix,
        expected="a TF-Slim checkpoint of " + ", ".join(models.names()),
        found=some(sorted(found)) or "no variables",
        fix="give the network's own checkpoint, or export it as a SavedModel",
    )


@functools.cache
def variables_of(
    network: architecture_lib.Architecture, num_classes: int = 0
) -> Mapping[str, Variable]:
    """The variables that TF-Slim has for a network, by their names there."""
    module = network.build(num_classes=num_classes)
    size = network.minimum_image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    flat = flax.traverse_util.flatten_dict(shapes)
    normalized = {path[1:-1] for path in flat if path[0] == "batch_stats"}
    wanted = {}
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
        wanted[slim] = Variable(path, leaf.shape, slim_shape)
    return wanted


def _num_classes(
    network: architecture_lib.Architecture, found: architecture_lib.Shapes
) -> int:
    shape = found.get(f"{network.scope}/{network.classifier}/weights")
    return shape[-1] if shape else 0


def _account_for(
    prefix: str,
    network: architecture_lib.Architecture,
    wanted: Mapping[str, Variable],
    found: architecture_lib.Shapes,
) -> None:
    """Raises where a variable is missing, unknown or of another shape."""
    missing = sorted(wanted.keys() - found.keys())
    unknown = sorted(
        name
        for name in found.keys() - wanted.keys()
        if not _TRAINING.search(name)
        and not _AUXILIARY.search(name)
        and name.removesuffix(SHADOW) not in wanted
    )
    misshapen = sorted(
        f"{slim} {list(found[slim])} instead of {list(variable.slim_shape)}"
        for slim, variable in wanted.items()
        if slim in found and found[slim] != variable.slim_shape
    )
    problems = (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
    if missing or unknown or misshapen:
        raise InputError(
            f"The variables are not those of {network.name}",
            where=prefix,
            expected=f"{len(wanted)} variables below {network.scope}/",
            found="; ".join(
                f"{kind}: {some(names)}" for kind, names in problems if names
            ),
            fix="give the right architecture; checkpoints.recognize(path) tells it",
        )


def _size_in(prefix: str) -> int | None:
    """Image size in the file's or folder's name: "mobilenet_v1_0.25_128" -> 128.

    Other numbers stand there too: steps, multipliers ("mobilenet_v2_140"), depths
    ("resnet_v1_50"). A size is told from them by being one that networks are trained
    at: a multiple of 32, or 299.
    """
    path = epath.Path(prefix)
    stem = re.sub(r"\.ckpt(-\d+)?$", "", path.name)
    for name in (stem, path.parent.name):
        match = re.search(r"[_-]([1-9]\d{1,3})$", name)
        size = int(match[1]) if match else 0
        if size in _ODD_IMAGE_SIZES or (size % 32 == 0 and 32 <= size <= 1024):
            return size
    return None
