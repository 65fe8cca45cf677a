"""ResNet v1 (He et al. 2015, arXiv 1512.03385) and v2 (2016, 1603.05027) of TF-Slim.

TF-Slim's differ from the papers in that a block strides in its last unit instead of
its first, within the 3x3 convolution, and that strided convolutions pad both sides
alike whatever the image size.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rankckpt_jax.models import fusion, layers, pooling, windows
from rankckpt_jax.models.architecture import Architecture, register

# Units of the four blocks, by the number of layers.
_UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# Channels within the units of each block, a quarter of those between units.
_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4

# Subtracted from pixels in [0, 255] where a network was trained on them as VGG was.
_VGG_MEAN = (123.68, 116.78, 103.94)


class ResNet(nn.Module):
    """A 7x7 convolution, a pool and four blocks of bottleneck units.

    Attributes:
      version: 1, or 2 for units that normalize before each convolution.
      units: Of each block.
      num_classes: Width of the logits; 0 for none.
      dtype: Of the convolutions.
      axis_name: Mapped axis over which batch moments are averaged.
      decay: Of batch norm's moving averages, per step.
    """

    version: int
    units: tuple[int, ...]
    num_classes: int = 0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    decay: float = 0.997

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> layers.Output:
        """Applies the network to float [B, H, W, 3] in its input range."""
        style = layers.Style(
            self.decay, epsilon=1e-5, dtype=self.dtype, axis_name=self.axis_name
        )
        first = self.version == 1
        x = layers.Conv(
            style,
            64,
            (7, 7),
            stride=2,
            padding=_both_sides(7),
            activation=nn.relu if first else None,
            normalize=first,
            name="conv1",
        )(images, train)
        x = pooling.max_pool(x, 3, 2, "SAME")
        for i, (units, width) in enumerate(zip(self.units, _WIDTHS, strict=True)):
            stride = 2 if i < len(self.units) - 1 else 1
            block = _Block(
                style, self.version, units, width, stride, name=f"block{i + 1}"
            )
            x = block(x, train)
        if not first:
            x = nn.relu(layers.BatchNorm(style, name="postnorm")(x, train))
        x = pooling.global_pool(x)
        layers.endpoint(self, x, "global_pool")
        return layers.output(self, x, self.num_classes)


class _Block(nn.Module):
    """Bottleneck units at one resolution; the last one strides."""

    style: layers.Style
    version: int
    units: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(1, self.units + 1):
            stride = self.stride if i == self.units else 1
            x = _Unit(self.style, self.version, self.width, stride, name=f"unit_{i}")(
                x, train
            )
        return layers.endpoint(self, x)


class _Unit(nn.Module):
    """The scope that TF-Slim puts around a bottleneck."""

    style: layers.Style
    version: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        kind = BottleneckV1 if self.version == 1 else BottleneckV2
        name = f"bottleneck_v{self.version}"
        return kind(self.style, self.width, self.stride, name=name)(x, train)


class BottleneckV1(nn.Module):
    """relu(shortcut(x) + f(x)), each convolution of f followed by batch norm.

    Attributes:
      style: The network's.
      width: Channels within; the output has four times as many.
      stride: Of the 3x3 convolution.
    """

    style: layers.Style
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', 4 * width]."""
        conv = functools.partial(layers.Conv, self.style)
        linear = functools.partial(conv, _EXPANSION * self.width, activation=None)
        if x.shape[-1] == _EXPANSION * self.width:
            shortcut = x[:, :: self.stride, :: self.stride]
        else:
            shortcut = linear(stride=self.stride, name="shortcut")(x, train)
        y = conv(self.width, name="conv1")(x, train)
        y = _strided(self.style, self.width, self.stride)(y, train)
        y = linear(name="conv3")(y, train)
        return layers.endpoint(self, fusion.once(nn.relu(shortcut + y)))


class BottleneckV2(nn.Module):
    """shortcut(x) + f(x), each convolution of f preceded by batch norm and ReLU.

    Attributes:
      style: The network's.
      width: Channels within; the output has four times as many.
      stride: Of the 3x3 convolution.
    """

    style: layers.Style
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', 4 * width]."""
        linear = functools.partial(
            layers.Conv,
            self.style,
            _EXPANSION * self.width,
            activation=None,
            normalize=False,
        )
        active = nn.relu(layers.BatchNorm(self.style, name="preact")(x, train))
        if x.shape[-1] == _EXPANSION * self.width:
            shortcut = x[:, :: self.stride, :: self.stride]
        else:
            shortcut = linear(stride=self.stride, name="shortcut")(active, train)
        y = layers.Conv(self.style, self.width, name="conv1")(active, train)
        y = _strided(self.style, self.width, self.stride)(y, train)
        y = linear(name="conv3")(y, train)
        return layers.endpoint(self, fusion.once(shortcut + y))


def _strided(style: layers.Style, width: int, stride: int) -> layers.Conv:
    padding: windows.Padding = "SAME" if stride == 1 else _both_sides(3)
    return layers.Conv(
        style, width, (3, 3), stride=stride, padding=padding, name="conv2"
    )


def _both_sides(window: int) -> windows.Padding:
    """Pads of equal size, where "SAME" would put more below and to the right."""
    pad = ((window - 1) // 2, window // 2)
    return (pad, pad)


def _architecture(version: int, depth: int) -> Architecture:
    name = f"resnet_v{version}_{depth}"
    first = version == 1
    return Architecture(
        name=name,
        build=functools.partial(ResNet, version, _UNITS[depth]),
        feature_dim=_EXPANSION * _WIDTHS[-1],
        scope=name,
        classifier="logits",
        # TF-Slim prepares images for v1 as for VGG, for v2 as for Inception.
        input_range=(0.0, 255.0) if first else (-1.0, 1.0),
        input_mean=_VGG_MEAN if first else (0.0, 0.0, 0.0),
    )


register(*(_architecture(version, depth) for version in (1, 2) for depth in _UNITS))
