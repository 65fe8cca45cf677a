"""ResNet v1 (He et al. 2015, arXiv 1512.03385) and v2 (2016, 1603.05027) of TF-Slim.

TF-Slim differs from the papers: a block strides in the 3x3 convolution of its last unit
instead of its first, and strided convolutions pad both sides equally.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax

from rankckpt_jax.models import layers, ops
from rankckpt_jax.models.architecture import Architecture, register

# Units per block, by the number of layers.
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Inner channels of the units of each block. The output has `EXPANSION` times as many.
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4
BLOCKS = ("block2", "block3", "block4")
"""Names of the last blocks."""

# Subtracted from pixels in [0, 255] by networks with VGG's preprocessing.
_VGG_MEAN = (123.68, 116.78, 103.94)


class ResNet(layers.Network, kw_only=True):
    """A 7x7 convolution, a pool and four blocks of bottleneck units.

    Attributes:
      version: 1, or 2 for units that normalize before each convolution.
      units: Number of units of each block.
    """

    version: int
    units: tuple[int, ...]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> layers.Output:
        """Apply the network to float [B, H, W, 3] in its input range."""
        config = self.config(epsilon=1e-5)
        first = self.version == 1
        x = layers.Conv(
            config,
            64,
            (7, 7),
            stride=2,
            padding=ops.symmetric_padding(7),
            activation=nn.relu if first else None,
            normalize=first,
            name="conv1",
        )(images, train)
        x = ops.max_pool(x, 3, 2, "SAME")
        for i, (units, width) in enumerate(zip(self.units, WIDTHS, strict=True)):
            stride = 2 if i < len(self.units) - 1 else 1
            block = _Block(
                config, self.version, units, width, stride, name=f"block{i + 1}"
            )
            x = block(x, train)
        if not first:
            x = nn.relu(layers.BatchNorm(config, name="postnorm")(x, train))
        return self.pool_output(x, "global_pool")


class _Block(nn.Module):
    """Bottleneck units at one resolution; the last unit strides."""

    config: layers.NormConfig
    version: int
    units: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(1, self.units + 1):
            stride = self.stride if i == self.units else 1
            x = _Unit(self.config, self.version, self.width, stride, name=f"unit_{i}")(
                x, train
            )
        return layers.endpoint(self, x)


class _Unit(nn.Module):
    """TF-Slim's scope around a bottleneck."""

    config: layers.NormConfig
    version: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        name = f"bottleneck_v{self.version}"
        return Bottleneck(
            self.config, self.version, self.width, self.stride, name=name
        )(x, train)


class Bottleneck(nn.Module):
    """A shortcut beside three convolutions f.

    Version 1 is relu(shortcut(x) + f(x)), each convolution followed by batch norm.
    Version 2 is shortcut(x) + f(x), each convolution preceded by batch norm and ReLU.

    Attributes:
      config: The network's settings.
      version: 1 or 2.
      width: Inner channels; the output has four times as many.
      stride: Of the 3x3 convolution.
    """

    config: layers.NormConfig
    version: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, H', W', 4 * width]."""
        first, stride = self.version == 1, self.stride
        conv = functools.partial(layers.Conv, self.config)
        linear = functools.partial(
            conv, EXPANSION * self.width, activation=None, normalize=first
        )
        y = x
        if not first:
            y = nn.relu(layers.BatchNorm(self.config, name="preact")(x, train))
        if x.shape[-1] == EXPANSION * self.width:
            shortcut = x[:, ::stride, ::stride]
        else:
            shortcut = linear(stride=stride, name="shortcut")(y, train)
        y = conv(self.width, name="conv1")(y, train)
        padding: ops.Padding = "SAME" if stride == 1 else ops.symmetric_padding(3)
        y = conv(self.width, (3, 3), stride=stride, padding=padding, name="conv2")(
            y, train
        )
        y = shortcut + linear(name="conv3")(y, train)
        return layers.endpoint(self, nn.relu(y) if first else y)


def _architecture(version: int, depth: int) -> Architecture:
    name = f"resnet_v{version}_{depth}"
    first = version == 1
    return Architecture(
        name=name,
        build=functools.partial(ResNet, version=version, units=UNITS[depth]),
        feature_dim=EXPANSION * WIDTHS[-1],
        scope=name,
        classifier="logits",
        blocks=BLOCKS,
        # TF-Slim preprocesses images like VGG for v1, like Inception for v2.
        input_range=(0.0, 255.0) if first else (-1.0, 1.0),
        input_mean=_VGG_MEAN if first else (0.0, 0.0, 0.0),
    )


register(*(_architecture(version, depth) for version in (1, 2) for depth in UNITS))
