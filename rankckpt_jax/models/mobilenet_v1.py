"""MobileNet v1 (Howard et al. 2017, arXiv 1704.04861), as TF-Slim has it."""

from __future__ import annotations

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rankckpt_jax.models import layers, pooling
from rankckpt_jax.models.architecture import (
    Architecture,
    Family,
    Shapes,
    register,
    register_family,
)

# Channels and stride of the 13 separable layers at multiplier 1 (the paper's table 1).
LAYERS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(nn.Module):
    """A 3x3 convolution, then 13 pairs of a depthwise and a pointwise one.

    Attributes:
      percent: Width multiplier in percent: 100, 75, 50, 25, or any other.
      num_classes: Width of the logits; 0 for none.
      dtype: Of the convolutions.
      axis_name: Mapped axis over which batch moments are averaged.
      decay: Of batch norm's moving averages, per step.
    """

    percent: int = 100
    num_classes: int = 0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    decay: float = 0.9997

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> layers.Output:
        """Applies the network to float [B, H, W, 3] in [-1, 1]."""
        style = layers.Style(self.decay, dtype=self.dtype, axis_name=self.axis_name)
        conv = functools.partial(layers.Conv, style, activation=nn.relu6)
        depthwise = functools.partial(layers.DepthwiseConv, style, activation=nn.relu6)
        width = functools.partial(channels, percent=self.percent)

        x = conv(width(32), (3, 3), stride=2, name="Conv2d_0")(images, train)
        for i, (features, stride) in enumerate(LAYERS, start=1):
            x = depthwise(stride=stride, name=f"Conv2d_{i}_depthwise")(x, train)
            x = conv(width(features), name=f"Conv2d_{i}_pointwise")(x, train)
        x = pooling.global_pool(x)
        layers.endpoint(self, x, "AvgPool_1a")
        return layers.output(self, x, self.num_classes)


def channels(full: int, percent: int) -> int:
    """Channels of a layer that has `full` at multiplier 1; never below 8."""
    return max(full * percent // 100, 8)


def name_of(percent: int) -> str:
    """The network's name at a width multiplier in percent: 25 -> mobilenet_v1_025."""
    return "mobilenet_v1" if percent == 100 else f"mobilenet_v1_{percent:03d}"


@functools.cache
def _architecture(percent: int) -> Architecture:
    return Architecture(
        name=name_of(percent),
        build=functools.partial(MobileNetV1, percent=percent),
        feature_dim=channels(1024, percent),
        scope="MobilenetV1",
        classifier="Logits/Conv2d_1c_1x1",
    )


def _resolve(name: str) -> Architecture | None:
    match = re.fullmatch(r"mobilenet_v1_(\d{3})", name)
    percent = int(match[1]) if match else 0
    return _architecture(percent) if percent else None


def _guess(shapes: Shapes) -> Architecture | None:
    shape = shapes.get("MobilenetV1/Conv2d_13_pointwise/weights")
    # One percent is ten channels of the last layer: it tells the multiplier.
    percent = -(-shape[-1] * 100 // 1024) if shape else 0
    return _architecture(percent) if percent else None


register(*(_architecture(percent) for percent in (100, 75, 50, 25)))
register_family(Family(_resolve, _guess))
