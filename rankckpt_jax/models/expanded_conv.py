"""The inverted residual block that MobileNet v2 and v3 are made of."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rankckpt_jax.models import fusion, layers, pooling


class ExpandedConv(nn.Module):
    """1x1 convolution to more channels, depthwise convolution, 1x1 back to few.

    The input is added to the output where they have the same shape. The first
    convolution is left out where it would not add channels.

    Attributes:
      style: The network's.
      features: Output channels.
      expansion: Channels within, as a multiple of the input's; rounded to eights.
      kernel_size: Side of the depthwise kernel.
      stride: Of the depthwise convolution.
      activation: After the first two convolutions; the third is linear.
      squeeze_excite: Whether channels are gated before the third.
    """

    style: layers.Style
    features: int
    expansion: float = 6
    kernel_size: int = 3
    stride: int = 1
    activation: layers.Activation = nn.relu6
    squeeze_excite: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Maps [B, H, W, C] to [B, H', W', features].

        Returns:
          The output, and what came before it by TF-Slim's names.
        """
        y, within = x, {}
        width = round_to_eights(x.shape[-1] * self.expansion)
        if width > x.shape[-1]:
            y = layers.Conv(
                self.style, width, activation=self.activation, name="expand"
            )(y, train)
            within["expansion_output"] = y
        y = layers.DepthwiseConv(
            self.style,
            (self.kernel_size, self.kernel_size),
            stride=self.stride,
            activation=self.activation,
            name="depthwise",
        )(y, train)
        within["depthwise_output"] = y
        if self.squeeze_excite:
            y = SqueezeExcite(self.style, name="squeeze_excite")(y, train)
        y = layers.Conv(self.style, self.features, activation=None, name="project")(
            y, train
        )
        return (fusion.once(y + x) if y.shape == x.shape else y), within


class SqueezeExcite(nn.Module):
    """Gates each channel by what all channels average to over the image.

    Attributes:
      style: The network's.
      factor: Channels of the input over those of the layer between.
    """

    style: layers.Style
    factor: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Scales [B, H, W, C] by a gate in [0, 1] per image and channel."""
        conv = functools.partial(layers.Conv, self.style, normalize=False)
        channels = x.shape[-1]
        gate = pooling.global_pool(x)[:, None, None]
        gate = conv(round_to_eights(channels / self.factor), name="Conv")(gate, train)
        gate = conv(channels, activation=_hard_sigmoid, name="Conv_1")(gate, train)
        return x * gate


def expanded_conv(
    network: nn.Module,
    style: layers.Style,
    index: int,
    x: jax.Array,
    train: bool,
    **settings: Any,
) -> jax.Array:
    """Applies block number `index`, from 0, of a network, within its `__call__`.

    The scope is "expanded_conv", then "expanded_conv_1" and so on. The endpoints are
    those of TF-Slim, where a convolution before the blocks is layer 1.
    """
    name = f"expanded_conv_{index}" if index else "expanded_conv"
    x, within = ExpandedConv(style, name=name, **settings)(x, train)
    layer = f"layer_{index + 2}"
    for part, value in {**within, "output": x}.items():
        layers.endpoint(network, value, f"{layer}/{part}")
    return layers.endpoint(network, x, layer)


def hard_swish(x: jax.Array) -> jax.Array:
    """X * relu6(x + 3) / 6."""
    return x * nn.relu6(x + 3) * jnp.asarray(1 / 6, x.dtype)


def round_to_eights(channels: float, least: int = 8) -> int:
    """Nearest multiple of 8, at least `least` and at least 0.9 of `channels`."""
    rounded = max(least, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _hard_sigmoid(x: jax.Array) -> jax.Array:
    # TF-Slim multiplies by this, not by a sixth.
    return nn.relu6(x + 3) * jnp.asarray(0.16667, x.dtype)
