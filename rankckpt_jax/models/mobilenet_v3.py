"""MobileNet v3 (Howard et al. 2019, arXiv 1905.02244), from TF-Slim."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rankckpt_jax.models import layers, ops
from rankckpt_jax.models.architecture import Architecture, last_of_stages, register
from rankckpt_jax.models.expanded_conv import expanded_conv, hard_swish, layer_name


class _Block(NamedTuple):
    """A row of the paper's tables 1 and 2.

    The fields are those of `ExpandedConv`.
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


class MobileNetV3(layers.Network, kw_only=True):
    """Inverted residual blocks, some gated, and a layer after the global pool.

    Attributes:
      blocks: The paper's table for this size.
      penultimate: Channels of the last convolution before the pool.
      last: Channels of the layer after the pool, which are the features.
    """

    blocks: tuple[_Block, ...]
    penultimate: int
    last: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> layers.Output:
        """Apply the network to float [B, H, W, 3] in [-1, 1]."""
        config = self.config()
        conv = functools.partial(layers.Conv, activation=hard_swish)
        x = conv(config, 16, (3, 3), stride=2, name="Conv")(images, train)
        layers.endpoint(self, x, "layer_1")
        for i, block in enumerate(self.blocks):
            x = expanded_conv(self, config, i, x, train, **block._asdict())
        number = len(self.blocks) + 2
        x = conv(config, self.penultimate, name="Conv_1")(x, train)
        layers.endpoint(self, x, f"layer_{number}")
        x = ops.global_pool(x)[:, None, None]
        layers.endpoint(self, x, f"layer_{number + 1}")
        # The features after the pool are float32.
        exact = dataclasses.replace(config, dtype=jnp.float32)
        x = conv(exact, self.last, normalize=False, name="Conv_2")(x, train)
        layers.endpoint(self, x, f"layer_{number + 2}")
        layers.endpoint(self, x, "global_pool")
        return self.output(x[:, 0, 0])


def _architecture(size: str, table: Any, penultimate: int, last: int) -> Architecture:
    return Architecture(
        name=f"mobilenet_v3_{size}",
        build=functools.partial(
            MobileNetV3, blocks=table, penultimate=penultimate, last=last
        ),
        feature_dim=last,
        scope="MobilenetV3",
        classifier="Logits/Conv2d_1c_1x1",
        blocks=last_of_stages(
            [layer_name(i) for i in range(len(table))],
            [block.stride for block in table],
        ),
    )


register(
    _architecture("large", _LARGE, 960, 1280),
    _architecture("small", _SMALL, 576, 1024),
)
