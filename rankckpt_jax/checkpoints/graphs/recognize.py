"""Recognize a network of `models` in a converted checkpoint.

The Flax network is preferable to the graph: it needs no TensorFlow, it shares compiled
code with TF-Slim checkpoints of the same architecture, and its batch moments cover all
devices. It is used only if it computes the same features as the graph.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax import models
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.checkpoints.sources import slim
from rankckpt_jax.data import preprocess
from rankckpt_jax.models import architecture as architecture_lib
from rankckpt_jax.models import layers

TOLERANCE = 1e-4
"""Largest difference of two features, relative to the largest feature, that counts as
rounding."""

_log = logging.getLogger(__name__)

_VTAB = tuple(f"vtab_resnet_v2_{depth}" for depth in (50, 101, 152))

Match = tuple[str, dict[str, Any]]
"""Name of a network of `models`, and its Flax variables with a checkpoint's weights."""


def match_variables(values: Mapping[str, np.ndarray], head: Any = None) -> Match | None:
    """Return the network with exactly these variables, or None.

    Args:
      values: Variables by TensorFlow's names.
      head: The classifier {"kernel", "bias"}, or None.
    """
    stripped = {name.removeprefix("module/"): value for name, value in values.items()}
    shapes = {name: value.shape for name, value in stripped.items()}
    for network in architecture_lib.candidates(shapes):
        expected = slim.variables_of(network, slim.num_classes_of(network, shapes))
        if {name: v.slim_shape for name, v in expected.items()} == shapes:
            flat = {
                v.path: stripped[name].reshape(v.shape) for name, v in expected.items()
            }
            return network.name, _unflatten(flat)
    return _match_vtab(values, head)


def _match_vtab(values: Mapping[str, np.ndarray], head: Any) -> Match | None:
    """Match VTAB's network by the numbers of its layers, in any scope."""
    by_layer = {"/".join(name.split("/")[-2:]): value for name, value in values.items()}
    if len(by_layer) != len(values):
        return None
    for architecture in _VTAB:
        expected = _vtab_variables(architecture)
        # The kernel and the bias of the classifier.
        num_allowed = 0 if head is None else 2
        if len(by_layer.keys() - expected.keys()) > num_allowed:
            continue
        if any(
            name not in by_layer or by_layer[name].shape != variable.shape
            for name, variable in expected.items()
        ):
            continue
        flat = {v.path: by_layer[name] for name, v in expected.items()}
        if head is not None:
            flat |= {("params", layers.HEAD, leaf): head[leaf] for leaf in head}
        return architecture, _unflatten(flat)
    return None


def _vtab_variables(architecture: str) -> Mapping[str, slim.Variable]:
    """Return the variables of a network by their names in TensorFlow's own layers."""
    variables = slim.variables_of(models.get(architecture)).items()
    return {
        name.removeprefix("/").replace("/weights", "/kernel"): variable
        for name, variable in variables
    }


def _unflatten(flat: Mapping[tuple[str, ...], np.ndarray]) -> dict[str, Any]:
    values = {path: np.asarray(value, np.float32) for path, value in flat.items()}
    return flax.traverse_util.unflatten_dict(values)


def to_flax(match: Match, graph_backbone: Backbone) -> Backbone:
    """Return the Flax network's backbone if it computes what the graph computes.

    A graph may scale pixels, where the Flax network does not. Each usual input range is
    tried until the features agree to `TOLERANCE`.

    Args:
      match: The Flax network.
      graph_backbone: The checkpoint's backbone on its graph, returned if none agrees.
    """
    architecture, variables = match
    size = graph_backbone.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3))
    images = pixels.astype(np.float32)

    def features(forward: Any, backbone: Backbone) -> np.ndarray:
        headless, _ = backbone_lib.split_head(backbone.variables)
        scaling: Any = preprocess.scaling(backbone.input_range, backbone.input_mean)
        with jax.default_matmul_precision("highest"):
            scaled = preprocess.to_input_range(jnp.asarray(images), *scaling)
            return np.asarray(forward(headless, scaled).features)

    expected = features(jax.jit(graph_backbone.apply), graph_backbone)
    forward = jax.jit(backbone_lib.Apply(architecture))
    smallest = float("inf")
    for input_range, input_mean in _input_ranges(architecture, graph_backbone):
        candidate = backbone_lib.create(
            architecture,
            variables,
            name=graph_backbone.name,
            fingerprint=graph_backbone.fingerprint,
            source=graph_backbone.source,
            image_size=size,
            own_image_size=graph_backbone.own_image_size,
            input_range=input_range,
            input_mean=input_mean,
        )
        largest = np.abs(features(forward, candidate) - expected).max()
        difference = float(largest / np.abs(expected).max())
        smallest = min(smallest, difference)
        if difference <= TOLERANCE:
            _log.info(
                "%s: recognized as %s (largest difference from its graph %.1g)",
                graph_backbone.source,
                architecture,
                difference,
            )
            return dataclasses.replace(
                candidate,
                feature_tensor=graph_backbone.feature_tensor,
                warnings=graph_backbone.warnings,
            )
    _log.warning(
        "%s: the variables are those of %s, but the graph computes other features "
        "(relative difference %.1g); using the graph. Check that the checkpoint is "
        "what its publisher describes",
        graph_backbone.source,
        architecture,
        smallest,
    )
    return graph_backbone


def _input_ranges(
    architecture: str, graph_backbone: Backbone
) -> Iterator[tuple[tuple[float, float], tuple[float, float, float]]]:
    known = models.get(architecture)
    zero = (0.0, 0.0, 0.0)
    choices = [
        (known.input_range, known.input_mean),
        (graph_backbone.input_range, graph_backbone.input_mean),
        ((-1.0, 1.0), zero),
        ((0.0, 1.0), zero),
        ((0.0, 255.0), zero),
        ((0.0, 255.0), models.get("resnet_v1_50").input_mean),
    ]
    yield from dict.fromkeys(choices)
