"""The ResNet-50 v2 of VTAB's self-supervised and supervised modules.

From Kolesnikov, Zhai and Beyer, "Revisiting Self-Supervised Visual Representation
Learning" (2019, arXiv 1901.09005). It differs from TF-Slim's in that a block strides in
its first unit, that no convolution has a bias, that pools pad with zeros, and in batch
norm's constants. Its layers were never named: TensorFlow numbered them in the order in
which they were made (`conv2d`, `conv2d_1`, ...), and so do the modules here.

Named "vtab_resnet_v2_50"; not listed among TF-Slim's networks.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rankckpt_jax.models import convolution, fusion, layers, pooling
from rankckpt_jax.models.architecture import Architecture, Family, register_family

_UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_EXPANSION = 4
_WIDTHS = (64, 128, 256, 512)


class VTABResNet(nn.Module):
    """A 7x7 convolution, a pool and four blocks of units that normalize first.

    Attributes:
      units: Of each block.
      num_classes: Width of the logits; 0 for none.
      dtype: Of the convolutions.
      axis_name: Mapped axis over which batch moments are averaged.
      decay: Of batch norm's moving averages, per step.
    """

    units: tuple[int, ...]
    num_classes: int = 0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    decay: float = 0.99

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> layers.Output:
        """Applies the network to float [B, H, W, 3] in its input range."""
        style = layers.Style(
            self.decay, epsilon=1e-3, dtype=self.dtype, axis_name=self.axis_name
        )
        convs, norms = _Numbered("conv2d"), _Numbered("batch_normalization")

        def convolve(x: jax.Array, features: int, kernel: int, stride: int) -> Any:
            return Convolution(style, features, kernel, stride, name=convs())(x)

        def activate(x: jax.Array) -> jax.Array:
            return nn.relu(layers.BatchNorm(style, name=norms())(x, train))

        x = convolve(images, 64, 7, 2)
        x = pooling.max_pool(_padded(x, 3), 3, 2, "VALID")
        for block, (units, width) in enumerate(zip(self.units, _WIDTHS, strict=True)):
            for unit in range(units):
                stride = 2 if block and not unit else 1
                active = activate(x)
                if stride > 1 or x.shape[-1] != _EXPANSION * width:
                    x = convolve(active, _EXPANSION * width, 1, stride)
                y = convolve(active, width, 1, 1)
                y = convolve(activate(y), width, 3, stride)
                y = convolve(activate(y), _EXPANSION * width, 1, 1)
                x = fusion.once(x + y)
        x = pooling.global_pool(activate(x))
        return layers.output(self, x, self.num_classes)


class _Numbered:
    """Names as TensorFlow gives them: "conv2d", "conv2d_1", "conv2d_2"."""

    def __init__(self, name: str):
        self._name, self._count = name, 0

    def __call__(self) -> str:
        count, self._count = self._count, self._count + 1
        return f"{self._name}_{count}" if count else self._name


class Convolution(nn.Module):
    """A convolution without bias that pads both sides alike.

    Attributes:
      style: The network's.
      features: Output channels.
      kernel_size: Height and width.
      stride: In both directions.
    """

    style: layers.Style
    features: int
    kernel_size: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features]."""
        size = self.kernel_size
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        if size == 1:
            x = x[:, :: self.stride, :: self.stride]
            return convolution.conv(x, kernel, 1, "VALID", self.style.dtype)
        pad = ((size - 1) // 2, size // 2)
        return convolution.conv(x, kernel, self.stride, (pad, pad), self.style.dtype)


def _padded(x: jax.Array, window: int) -> jax.Array:
    pad = ((window - 1) // 2, window // 2)
    return jnp.pad(x, ((0, 0), pad, pad, (0, 0)))


def _resolve(name: str) -> Architecture | None:
    match = re.fullmatch(r"vtab_resnet_v2_(\d+)", name)
    depth = int(match[1]) if match else 0
    if depth not in _UNITS:
        return None
    return Architecture(
        name=name,
        build=functools.partial(VTABResNet, _UNITS[depth]),
        feature_dim=_EXPANSION * _WIDTHS[-1],
        scope="",
        classifier=layers.HEAD,
        input_range=(0.0, 1.0),
    )


# TF-Slim's variables are never those of this network; `checkpoints.native` knows them.
register_family(Family(_resolve, lambda shapes: None))
