"""Recognizes, in a converted module, a network that `models` has.

Such a module is better off as the Flax network: it is applied without TensorFlow, is
compiled once with TF-Slim's checkpoints of the same architecture, and counts its batch
moments over all devices. That the two are the same is not believed but computed: the
module's graph and the Flax network have to agree on images.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax import models
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.sources import slim
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.models import architecture as architecture_lib
from rankckpt_jax.models import layers

TOLERANCE = 1e-4
"""Largest difference of two features that counts as rounding, of the largest one."""

_log = logging.getLogger(__name__)

_VTAB = tuple(f"vtab_resnet_v2_{depth}" for depth in (50, 101, 152))
_VTAB_LEAVES = {
    ("batch_stats", "mean"): "moving_mean",
    ("batch_stats", "var"): "moving_variance",
    ("params", "scale"): "gamma",
}


@dataclasses.dataclass(frozen=True)
class Native:
    """A known network with a module's weights.

    Attributes:
      architecture: Its name.
      variables: Its Flax variables.
    """

    architecture: str
    variables: dict[str, Any]


def recognize(values: Mapping[str, np.ndarray], head: Any = None) -> Native | None:
    """Returns the network whose variables these are, exactly, or None.

    Args:
      values: By TensorFlow's names.
      head: The classifier {"kernel", "bias"} that the module's graph has, or None.
    """
    stripped = {name.removeprefix("module/"): value for name, value in values.items()}
    found = {name: value.shape for name, value in stripped.items()}
    for network in architecture_lib.candidates(found):
        shape = found.get(f"{network.scope}/{network.classifier}/weights")
        wanted = slim.variables_of(network, shape[-1] if shape else 0)
        if {name: v.slim_shape for name, v in wanted.items()} == found:
            flat = {
                v.path: stripped[name].reshape(v.shape) for name, v in wanted.items()
            }
            return Native(network.name, _nested(flat))
    return _recognize_vtab(values, head)


def _recognize_vtab(values: Mapping[str, np.ndarray], head: Any) -> Native | None:
    """VTAB's network, by the numbers of its layers, in whatever scope they stand."""
    by_layer = {"/".join(name.split("/")[-2:]): value for name, value in values.items()}
    if len(by_layer) != len(values):
        return None
    for architecture in _VTAB:
        wanted = _vtab_variables(architecture)
        rest = by_layer.keys() - wanted.keys()
        # Beyond the network, the classifier alone.
        if len(rest) > (0 if head is None else 2):
            continue
        if any(
            name not in by_layer or by_layer[name].shape != shape
            for name, (_, shape) in wanted.items()
        ):
            continue
        flat = {path: by_layer[name] for name, (path, _) in wanted.items()}
        if head is not None:
            flat |= {("params", layers.HEAD, leaf): head[leaf] for leaf in head}
        return Native(architecture, _nested(flat))
    return None


@functools.cache
def _vtab_variables(
    architecture: str,
) -> Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Path and shape of each variable, by its name in TensorFlow."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    module = models.create(architecture)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    variables = {}
    for path, leaf in flax.traverse_util.flatten_dict(shapes).items():
        collection, layer, name = path
        if layer.startswith("batch_normalization") and name == "bias":
            name = "beta"
        name = _VTAB_LEAVES.get((collection, name), name)
        variables[f"{layer}/{name}"] = (path, leaf.shape)
    return variables


def _nested(flat: Mapping[tuple[str, ...], np.ndarray]) -> dict[str, Any]:
    values = {path: np.asarray(value, np.float32) for path, value in flat.items()}
    return flax.traverse_util.unflatten_dict(values)


def backbone(
    native: Native, original: backbone_lib.Backbone
) -> tuple[backbone_lib.Backbone, float] | None:
    """Makes the Flax network's backbone, if it computes what the module's graph does.

    A module may scale pixels within its graph, where the Flax network does not: of the
    usual ranges the one is taken with which the two agree.

    Args:
      native: The network.
      original: The module's backbone on its graph.

    Returns:
      (the backbone, the largest difference of its features from the original's, as a
      share of the largest feature); None where none agrees to `TOLERANCE`.
    """
    size = original.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3))
    images = pixels.astype(np.float32)

    def features(of: backbone_lib.Backbone, scaling: Any) -> np.ndarray:
        variables, _ = backbone_lib.split_head(of.variables)
        with jax.default_matmul_precision("highest"):
            scaled = preprocess_lib.to_input_range(jnp.asarray(images), *scaling)
            return np.asarray(jax.jit(of.apply)(variables, scaled).features)

    scaling = preprocess_lib.scaling(original.input_range, original.input_mean)
    expected = features(original, scaling)
    largest = np.abs(expected).max()
    nearest = float("inf")
    for input_range, input_mean in _ranges(native.architecture, original):
        candidate = backbone_lib.create(
            native.architecture,
            native.variables,
            name=original.name,
            fingerprint=original.fingerprint,
            source=original.source,
            image_size=size,
            input_range=input_range,
            input_mean=input_mean,
        )
        scaling = preprocess_lib.scaling(input_range, input_mean)
        difference = np.abs(features(candidate, scaling) - expected).max() / largest
        nearest = min(nearest, float(difference))
        if difference <= TOLERANCE:
            return candidate, float(difference)
    _log.warning(
        "%s has the variables of %s, but its graph computes something else (features "
        "differ by %.1g of the largest): the graph is used",
        original.source,
        native.architecture,
        nearest,
    )
    return None


def _ranges(
    architecture: str, original: backbone_lib.Backbone
) -> Iterator[tuple[tuple[float, float], tuple[float, float, float]]]:
    known = models.get(architecture)
    tried = []
    for choice in (
        (known.input_range, known.input_mean),
        (original.input_range, original.input_mean),
        ((-1.0, 1.0), (0.0, 0.0, 0.0)),
        ((0.0, 1.0), (0.0, 0.0, 0.0)),
        ((0.0, 255.0), (0.0, 0.0, 0.0)),
        ((0.0, 255.0), models.get("resnet_v1_50").input_mean),
    ):
        if choice not in tried:
            tried.append(choice)
            yield choice
