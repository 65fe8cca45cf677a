"""The inverted residual block of MobileNet v2 and v3."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rankckpt_jax.models import layers, ops


class ExpandedConv(nn.Module):
    """1x1 convolution to more channels, depthwise convolution, 1x1 to fewer channels.

    The input is added to the output if they have the same shape. The first convolution
    is omitted if it would not add channels.

    Attributes:
      config: The network's settings.
      features: Output channels.
      expansion: Inner channels over input channels; rounded to multiples of 8.
      kernel_size: Side of the depthwise kernel.
      stride: Of the depthwise convolution.
      activation: After the first two convolutions; the third is linear.
      squeeze_excite: Whether to gate the channels before the third convolution.
    """

    config: layers.NormConfig
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
        """Map [B, H, W, C] to [B, H', W', features].

        Returns:
          The output, and the inner activations by their TF-Slim names.
        """
        y, inner = x, {}
        width = round_to_eights(x.shape[-1] * self.expansion)
        if width > x.shape[-1]:
            y = layers.Conv(
                self.config, width, activation=self.activation, name="expand"
            )(y, train)
            inner["expansion_output"] = y
        y = layers.DepthwiseConv(
            self.config,
            (self.kernel_size, self.kernel_size),
            stride=self.stride,
            activation=self.activation,
            name="depthwise",
        )(y, train)
        inner["depthwise_output"] = y
        if self.squeeze_excite:
            y = SqueezeExcite(self.config, name="squeeze_excite")(y, train)
        y = layers.Conv(self.config, self.features, activation=None, name="project")(
            y, train
        )
        return (y + x if y.shape == x.shape else y), inner


class SqueezeExcite(nn.Module):
    """Gate of each channel, computed from the spatial averages of all channels.

    A quarter of the channels, rounded, lie between the two convolutions.

    Attributes:
      config: The network's settings.
    """

    config: layers.NormConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Scale [B, H, W, C] by a gate in [0, 1] per image and channel."""
        conv = functools.partial(layers.Conv, self.config, normalize=False)
        channels = x.shape[-1]
        gate = ops.global_pool(x)[:, None, None]
        gate = conv(round_to_eights(channels / 4), name="Conv")(gate, train)
        gate = conv(channels, activation=_hard_sigmoid, name="Conv_1")(gate, train)
        return x * gate


def expanded_conv(
    network: nn.Module,
    config: layers.NormConfig,
    index: int,
    x: jax.Array,
    train: bool,
    **settings: Any,
) -> jax.Array:
    """Apply block number `index`, from 0, of a network; call it in `__call__`.

    The scopes are "expanded_conv", "expanded_conv_1" and so on. The endpoints have
    TF-Slim's names; the convolution before the blocks is layer 1.
    """
    name = f"expanded_conv_{index}" if index else "expanded_conv"
    x, inner = ExpandedConv(config, name=name, **settings)(x, train)
    layer = layer_name(index)
    for part, value in {**inner, "output": x}.items():
        layers.endpoint(network, value, f"{layer}/{part}")
    return layers.endpoint(network, x, layer)


def layer_name(index: int) -> str:
    """Return TF-Slim's endpoint name of the output of block number `index`."""
    return f"layer_{index + 2}"


def hard_swish(x: jax.Array) -> jax.Array:
    """Return x * relu6(x + 3) / 6."""
    return x * nn.relu6(x + 3) * jnp.asarray(1 / 6, x.dtype)


def round_to_eights(channels: float) -> int:
    """Round to a multiple of 8 that is at least 8 and 0.9 * `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _hard_sigmoid(x: jax.Array) -> jax.Array:
    # TF-Slim multiplies by this factor instead of 1 / 6.
    return nn.relu6(x + 3) * jnp.asarray(0.16667, x.dtype)
