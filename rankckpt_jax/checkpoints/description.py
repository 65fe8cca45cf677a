"""The `Description`: what a run must know about a checkpoint besides its weights.

It is stored, so that a checkpoint whose results are all cached is not loaded again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from rankckpt_jax import models
from rankckpt_jax.checkpoints.backbone import Apply, Backbone


@dataclasses.dataclass(frozen=True)
class Description:
    """Facts about a checkpoint.

    Attributes:
      architecture: See `Backbone`, as for the other fields.
      multiply_adds: Multiplications of one image; None for a converted graph.
      has_folded_batch_norm: See `has_folded_batch_norm`.
    """

    architecture: str
    image_size: int
    own_image_size: int | None
    own_preprocess: str
    input_range: tuple[float, float]
    input_mean: tuple[float, float, float]
    feature_dim: int
    num_parameters: int
    multiply_adds: int | None
    fingerprint: str
    feature_tensor: str
    has_folded_batch_norm: bool
    warnings: Mapping[str, str]
    engine: str = ""


def describe(backbone: Backbone) -> Description:
    """Return the description of a loaded checkpoint."""
    derived: dict[str, Any] = {
        # PyTorch's libraries have networks of the same names.
        "multiply_adds": None
        if backbone.engine
        else _multiply_adds(backbone.architecture, backbone.image_size),
        "has_folded_batch_norm": has_folded_batch_norm(backbone),
    }
    names = [field.name for field in dataclasses.fields(Description)]
    copied = {name: getattr(backbone, name) for name in names if name not in derived}
    return Description(**copied, **derived)


def has_folded_batch_norm(backbone: Backbone) -> bool:
    """Return whether all moving averages have their initial values.

    A network that was never trained does not count. It has offsets of zero.
    """
    if not isinstance(backbone.apply, Apply):
        return False
    stats = flax.traverse_util.flatten_dict(backbone.variables["batch_stats"])
    params = flax.traverse_util.flatten_dict(backbone.variables["params"])
    means = [value for path, value in stats.items() if path[-1] == "mean"]
    variances = [value for path, value in stats.items() if path[-1] == "var"]
    norms = {path[:-1] for path in stats}
    if not norms or any((*norm, "scale") not in params for norm in norms):
        return False
    return (
        not any(np.any(mean) for mean in means)
        and all(np.ptp(variance) == 0 for variance in variances)
        and any(np.any(params[*norm, "bias"]) for norm in norms)
    )


@functools.cache
def _multiply_adds(architecture: str, image_size: int) -> int | None:
    """Return the cost of one image, or None for a converted graph."""
    if architecture not in models.names():
        return None
    return models.multiply_adds(architecture, image_size)
