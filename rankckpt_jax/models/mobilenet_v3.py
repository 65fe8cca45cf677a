"""MobileNet v3 (Howard et al. 2019, arXiv 1905.02244), as TF-Slim has it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rankckpt_jax.models import layers, pooling
from rankckpt_jax.models.architecture import Architecture, register
from rankckpt_jax.models.expanded_conv import expanded_conv, hard_swish


class _Block(NamedTuple):
    """A row of the paper's tables 1 and 2.

    `expansion` is that of `ExpandedConv`, `features` the output's channels.
    """

    expansion: float
    features: int
    kernel_size: int
    stride: int
    squeeze_excite: bool
    activation: layers.Activation


_LARGE = (
    _Block(1, 16, 3, 1, False, nn.relu),
    _Block(4, 24, 3, 2, False, nn.relu),
    _Block(3, 24, 3, 1, False, nn.relu),
    _Block(3, 40, 5, 2, True, nn.relu),
    _Block(3, 40, 5, 1, True, nn.relu),
    _Block(3, 40, 5, 1, True, nn.relu),
    _Block(6, 80, 3, 2, False, hard_swish),
    _Block(2.5, 80, 3, 1, False, hard_swish),
    _Block(184 / 80, 80, 3, 1, False, hard_swish),
    _Block(184 / 80, 80, 3, 1, False, hard_swish),
    _Block(6, 112, 3, 1, True, hard_swish),
    _Block(6, 112, 3, 1, True, hard_swish),
    _Block(6, 160, 5, 2, True, hard_swish),
    _Block(6, 160, 5, 1, True, hard_swish),
    _Block(6, 160, 5, 1, True, hard_swish),
)

_SMALL = (
    _Block(1, 16, 3, 2, True, nn.relu),
    _Block(72 / 16, 24, 3, 2, False, nn.relu),
    _Block(88 / 24, 24, 3, 1, False, nn.relu),
    _Block(4, 40, 5, 2, True, hard_swish),
    _Block(6, 40, 5, 1, True, hard_swish),
    _Block(6, 40, 5, 1, True, hard_swish),
    _Block(3, 48, 5, 1, True, hard_swish),
    _Block(3, 48, 5, 1, True, hard_swish),
    _Block(6, 96, 5, 2, True, hard_swish),
    _Block(6, 96, 5, 1, True, hard_swish),
    _Block(6, 96, 5, 1, True, hard_swish),
)


class MobileNetV3(nn.Module):
    """Inverted residual blocks, some gated, and a layer after the global pool.

    Attributes:
      blocks: The paper's table for this size.
      penultimate: Channels of the last convolution before the pool.
      last: Channels of the layer after the pool: the features.
      num_classes: Width of the logits; 0 for none.
      dtype: Of the convolutions.
      axis_name: Mapped axis over which batch moments are averaged.
      decay: Of batch norm's moving averages, per step.
    """

    blocks: tuple[_Block, ...]
    penultimate: int
    last: int
    num_classes: int = 0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    decay: float = 0.997

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> layers.Output:
        """Applies the network to float [B, H, W, 3] in [-1, 1]."""
        style = layers.Style(self.decay, dtype=self.dtype, axis_name=self.axis_name)
        conv = functools.partial(layers.Conv, activation=hard_swish)
        x = conv(style, 16, (3, 3), stride=2, name="Conv")(images, train)
        layers.endpoint(self, x, "layer_1")
        for i, block in enumerate(self.blocks):
            x = expanded_conv(self, style, i, x, train, **block._asdict())
        number = len(self.blocks) + 2
        x = conv(style, self.penultimate, name="Conv_1")(x, train)
        layers.endpoint(self, x, f"layer_{number}")
        x = pooling.global_pool(x)[:, None, None]
        layers.endpoint(self, x, f"layer_{number + 1}")
        # What follows the pool are the features, which are float32.
        exact = dataclasses.replace(style, dtype=jnp.float32)
        x = conv(exact, self.last, normalize=False, name="Conv_2")(x, train)
        layers.endpoint(self, x, f"layer_{number + 2}")
        layers.endpoint(self, x, "global_pool")
        return layers.output(self, x[:, 0, 0], self.num_classes)


def _architecture(size: str, table: Any, penultimate: int, last: int) -> Architecture:
    return Architecture(
        name=f"mobilenet_v3_{size}",
        build=functools.partial(MobileNetV3, table, penultimate, last),
        feature_dim=last,
        scope="MobilenetV3",
        classifier="Logits/Conv2d_1c_1x1",
    )


register(
    _architecture("large", _LARGE, 960, 1280),
    _architecture("small", _SMALL, 576, 1024),
)
