"""MobileNet v2 (Sandler et al. 2018, arXiv 1801.04381), from TF-Slim."""

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
from rankckpt_jax.models.expanded_conv import (
    expanded_conv,
    layer_name,
    round_to_eights,
)

# Channels, number of blocks and stride of the first block (the paper's table 2).
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


class MobileNetV2(layers.Network, kw_only=True):
    """A 3x3 convolution, 17 inverted residual blocks and a 1x1 convolution.

    Attributes:
      percent: Width multiplier in percent, such as 100, 140 or 35.
    """

    percent: int = 100

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> layers.Output:
        """Apply the network to float [B, H, W, 3] in [-1, 1]."""
        config = self.config()
        conv = functools.partial(layers.Conv, config, activation=nn.relu6)
        first = channels(32, self.percent)
        x = conv(first, (3, 3), stride=2, name="Conv")(images, train)
        layers.endpoint(self, x, "layer_1")
        for i, (features, stride) in enumerate(BLOCKS):
            x = expanded_conv(
                self,
                config,
                i,
                x,
                train,
                features=channels(features, self.percent),
                expansion=6 if i else 1,
                stride=stride,
            )
        x = conv(feature_dim(self.percent), name="Conv_1")(x, train)
        layers.endpoint(self, x, "layer_19")
        return self.pool_output(x, "global_pool")


def channels(full: int, percent: int) -> int:
    """Return the channels of a layer with `full` channels at multiplier 1."""
    return round_to_eights(full * percent / 100)


def feature_dim(percent: int) -> int:
    """Return the width of the features; narrow networks keep the full width."""
    return max(channels(_LAST, percent), _LAST)


@functools.cache
def _architecture(percent: int) -> Architecture:
    suffix = "" if percent == 100 else f"_{percent:03d}"
    return Architecture(
        name=f"mobilenet_v2{suffix}",
        build=functools.partial(MobileNetV2, percent=percent),
        feature_dim=feature_dim(percent),
        scope="MobilenetV2",
        classifier="Logits/Conv2d_1c_1x1",
        blocks=last_of_stages(
            [layer_name(i) for i in range(len(BLOCKS))],
            [stride for _, stride in BLOCKS],
        ),
    )


def _resolve(name: str) -> Architecture | None:
    match = re.fullmatch(r"mobilenet_v2_(\d{3})", name)
    percent = int(match[1]) if match else 0
    return _architecture(percent) if percent else None


def _guess(shapes: Shapes) -> Architecture | None:
    # Widths are multiples of 8, so several multipliers may fit. Take the roundest.
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
register_family(_resolve, _guess)
