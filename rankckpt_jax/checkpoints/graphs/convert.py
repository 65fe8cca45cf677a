"""Convert a network that was read from a file to a `Backbone`."""

from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints import sources
from rankckpt_jax.checkpoints.graphs import network as network_lib
from rankckpt_jax.checkpoints.graphs import recognize
from rankckpt_jax.checkpoints.graphs.graph_apply import GraphApply
from rankckpt_jax.errors import InputError

_log = logging.getLogger(__name__)

_DEFAULT_SIZE = 224


def to_backbone(
    network: network_lib.Network, fingerprint: str, options: sources.Options
) -> backbone_lib.Backbone:
    """Return the Flax network with the checkpoint's weights, or else its graph.

    Args:
      network: The contents of the checkpoint.
      fingerprint: Digest of the checkpoint's files and of the selected output.
      options: The user's choices.

    Raises:
      InputError: The features are ambiguous, the graph has no counterpart in JAX, or
        the image size does not fit.
    """
    handle = options.handle or network.where
    converted = network_lib.convert(network, options.output or None)
    size = _image_size(network, options.image_size, handle)
    if network.kind == "SavedModel" and options.input_range is None:
        _log.info(
            "%s: input range unknown; assuming [0, 1]. To set another, append "
            "#input_range=LOW:HIGH to the checkpoint's name",
            handle,
        )
    if converted.graphs.training is None:
        _log.warning(
            "%s: no graph for training; fine-tuning leaves its batch norm unchanged. "
            "To fine-tune it fully, export it again with a training graph",
            handle,
        )
    apply = GraphApply(converted.graphs)
    variables = converted.variables
    feature_dim = _feature_dim(apply, variables, size, handle)
    headless, head = backbone_lib.split_head(variables)
    graph_backbone = backbone_lib.Backbone(
        name=options.name,
        architecture=network.architecture
        or f"graph_{converted.graphs.evaluation.digest[:8]}",
        variables=variables,
        apply=apply,
        image_size=size,
        input_range=options.input_range or network.input_range,
        input_mean=options.input_mean or network.input_mean,
        feature_dim=feature_dim,
        num_source_classes=0 if head is None else head["bias"].shape[-1],
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(headless["params"])),
        fingerprint=fingerprint,
        source=options.handle,
    )
    known = recognize.recognize(converted.values, head)
    agreed = recognize.backbone(known, graph_backbone) if known is not None else None
    if agreed is None:
        return graph_backbone
    flax_backbone, difference = agreed
    _log.info(
        "%s: recognized as %s (largest difference from its graph %.1g)",
        handle,
        flax_backbone.architecture,
        difference,
    )
    return flax_backbone


def _image_size(network: network_lib.Network, given: int, handle: str) -> int:
    shape = network.evaluation.image_shape
    is_fixed = shape is not None and None not in shape[1:3]
    if is_fixed and given and given != network.image_size:
        raise InputError(
            f"The network takes images of {network.image_size} x {network.image_size} "
            "pixels only",
            where=handle,
            found=f"{given} x {given}",
            fix="leave config.image_size at 0 for this checkpoint",
        )
    if given or network.image_size:
        return given or network.image_size or 0
    _log.warning(
        "%s: image size unknown; assuming %d. To set another, append "
        "#image_size=PIXELS to the checkpoint's name",
        handle,
        _DEFAULT_SIZE,
    )
    return _DEFAULT_SIZE


def _feature_dim(apply: GraphApply, variables: Any, size: int, handle: str) -> int:
    """Return the features' width. Trace both modes, so that errors appear here."""
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    try:
        output = jax.eval_shape(apply, variables, images)
        if not apply.graphs.batch_size:
            jax.eval_shape(
                lambda variables, images: apply(variables, images, train=True),
                variables,
                images,
            )
    except InputError:
        raise
    except Exception as error:  # tf2jax and JAX raise errors of many types.
        lines = str(error).strip().splitlines()
        raise InputError(
            "The graph cannot be computed in JAX",
            where=handle,
            found=f"{type(error).__name__}: {lines[0] if lines else ''}",
            fix="name an earlier output, or another image size",
        ) from error
    shape = output.features.shape
    if len(shape) != 2:
        raise InputError(
            "The output cannot be used as features",
            where=handle,
            expected="[B, D] or [B, h, w, D]",
            found=str(list(shape)),
            fix="name another one: output=NAME",
        )
    return int(shape[1])
