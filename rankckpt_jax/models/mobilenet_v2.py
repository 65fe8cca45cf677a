"""MobileNet v2 (Sandler et al. 2018, arXiv 1801.04381), as TF-Slim has it."""

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
from rankckpt_jax.models.expanded_conv import expanded_conv, round_to_eights

# Channels, number of blocks and the first one's stride (the paper's table 2).
_STAGES = (
    (16, 1, 1),
    (24, 2, 2),
    (32, 3, 2),
    (64, 4, 2),
    (96, 3, 1),
    (160, 3, 2),
    (320, 1, 1),
)
BLOCKS = [
    (features, stride if i == 0 else 1)
    for features, blocks, stride in _STAGES
    for i in range(blocks)
]
_LAST = 1280


class MobileNetV2(nn.Module):
    """A 3x3 convolution, 17 inverted residual blocks and a 1x1 convolution.

    Attributes:
      percent: Width multiplier in percent: 100, 140, 35, or any other.
      num_classes: Width of the logits; 0 for none.
      dtype: Of the convolutions.
      axis_name: Mapped axis over which batch moments are averaged.
      decay: Of batch norm's moving averages, per step.
    """

    percent: int = 100
    num_classes: int = 0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    decay: float = 0.997

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> layers.Output:
        """Applies the network to float [B, H, W, 3] in [-1, 1]."""
        style = layers.Style(self.decay, dtype=self.dtype, axis_name=self.axis_name)
        conv = functools.partial(layers.Conv, style, activation=nn.relu6)
        first = channels(32, self.percent)
        x = conv(first, (3, 3), stride=2, name="Conv")(images, train)
        layers.endpoint(self, x, "layer_1")
        for i, (features, stride) in enumerate(BLOCKS):
            x = expanded_conv(
                self,
                style,
                i,
                x,
                train,
                features=channels(features, self.percent),
                expansion=6 if i else 1,
                stride=stride,
            )
        x = conv(feature_dim(self.percent), name="Conv_1")(x, train)
        layers.endpoint(self, x, "layer_19")
        x = pooling.global_pool(x)
        layers.endpoint(self, x, "global_pool")
        return layers.output(self, x, self.num_classes)


def channels(full: int, percent: int) -> int:
    """Channels of a layer that has `full` at multiplier 1: a multiple of 8."""
    return round_to_eights(full * percent / 100)


def feature_dim(percent: int) -> int:
    """Width of the features: narrow networks keep that of the full one."""
    return max(channels(_LAST, percent), _LAST)


def name_of(percent: int) -> str:
    """The network's name at a width multiplier in percent: 35 -> mobilenet_v2_035."""
    return "mobilenet_v2" if percent == 100 else f"mobilenet_v2_{percent:03d}"


@functools.cache
def _architecture(percent: int) -> Architecture:
    return Architecture(
        name=name_of(percent),
        build=functools.partial(MobileNetV2, percent=percent),
        feature_dim=feature_dim(percent),
        scope="MobilenetV2",
        classifier="Logits/Conv2d_1c_1x1",
    )


def _resolve(name: str) -> Architecture | None:
    match = re.fullmatch(r"mobilenet_v2_(\d{3})", name)
    percent = int(match[1]) if match else 0
    return _architecture(percent) if percent else None


def _guess(shapes: Shapes) -> Architecture | None:
    # Widths are multiples of 8, so that several multipliers share all of them; the
    # roundest stands for these.
    widths = [
        shapes.get(f"MobilenetV2/expanded_conv_{i}/project/weights", (0,))[-1]
        for i in range(1, len(BLOCKS))
    ]
    same = [
        percent
        for percent in range(5, 400)
        if widths == [channels(features, percent) for features, _ in BLOCKS[1:]]
    ]
    roundest = min(same, key=lambda p: (p % 10 != 0, p % 5 != 0, p), default=0)
    return _architecture(roundest) if roundest else None


register(*(_architecture(percent) for percent in (100, 140, 35)))
register_family(Family(_resolve, _guess))
