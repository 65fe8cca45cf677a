"""MobileNet v1 (Howard et al. 2017, arXiv 1704.04861), from TF-Slim."""

from __future__ import annotations

import functools
import re

import flax.linen as nn
import jax

from rankckpt_jax.models import layers
from rankckpt_jax.models.architecture import (
    Architecture,
    Shapes,
    last_of_stages,
    register,
    register_family,
)

# Channels and strides of the 13 separable layers at multiplier 1 (table 1).
LAYERS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(layers.Network, kw_only=True):
    """A 3x3 convolution, then 13 pairs of depthwise and pointwise convolutions.

    Attributes:
      percent: Width multiplier in percent, such as 100, 75, 50 or 25.
    """

    percent: int = 100
    momentum: float = 0.9997

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> layers.Output:
        """Apply the network to float [B, H, W, 3] in [-1, 1]."""
        config = self.config()
        conv = functools.partial(layers.Conv, config, activation=nn.relu6)
        depthwise = functools.partial(layers.DepthwiseConv, config, activation=nn.relu6)
        width = functools.partial(channels, percent=self.percent)

        x = conv(width(32), (3, 3), stride=2, name="Conv2d_0")(images, train)
        for i, (features, stride) in enumerate(LAYERS, start=1):
            x = depthwise(stride=stride, name=f"Conv2d_{i}_depthwise")(x, train)
            x = conv(width(features), name=f"Conv2d_{i}_pointwise")(x, train)
        return self.pool_output(x, "AvgPool_1a")


def channels(full: int, percent: int) -> int:
    """Return the channels of a layer with `full` channels at multiplier 1."""
    return max(full * percent // 100, 8)


@functools.cache
def _architecture(percent: int) -> Architecture:
    suffix = "" if percent == 100 else f"_{percent:03d}"
    return Architecture(
        name=f"mobilenet_v1{suffix}",
        build=functools.partial(MobileNetV1, percent=percent),
        feature_dim=channels(1024, percent),
        scope="MobilenetV1",
        classifier="Logits/Conv2d_1c_1x1",
        blocks=last_of_stages(
            [f"Conv2d_{i}_pointwise" for i in range(1, len(LAYERS) + 1)],
            [stride for _, stride in LAYERS],
        ),
    )


def _resolve(name: str) -> Architecture | None:
    match = re.fullmatch(r"mobilenet_v1_(\d{3})", name)
    percent = int(match[1]) if match else 0
    return _architecture(percent) if percent else None


def _guess(shapes: Shapes) -> Architecture | None:
    shape = shapes.get("MobilenetV1/Conv2d_13_pointwise/weights")
    # One percent is ten channels of the last layer, so its width gives the multiplier.
    percent = -(-shape[-1] * 100 // 1024) if shape else 0
    return _architecture(percent) if percent else None


register(*(_architecture(percent) for percent in (100, 75, 50, 25)))
register_family(_resolve, _guess)
