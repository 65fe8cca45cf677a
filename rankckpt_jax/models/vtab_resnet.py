"""The ResNet-50 v2 of VTAB's self-supervised and supervised modules.

From Kolesnikov, Zhai and Beyer, "Revisiting Self-Supervised Visual Representation
Learning" (2019, arXiv 1901.09005). Unlike TF-Slim's ResNet, a block strides in its
first unit, no convolution has a bias, the first pool pads with zeros, and batch norm
has other constants. TensorFlow numbered its layers in the order of their creation
(`conv2d`, `conv2d_1`, ...), and so do the modules here.

Its name is "vtab_resnet_v2_50"; `names()` lists TF-Slim's networks only.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from rankckpt_jax.models import layers, ops
from rankckpt_jax.models.architecture import Architecture, register_family
from rankckpt_jax.models.resnet import BLOCKS, EXPANSION, UNITS, WIDTHS


class VTABResNet(layers.Network, kw_only=True):
    """A 7x7 convolution, a pool and four blocks of units that normalize first.

    Attributes:
      units: Number of units of each block.
    """

    units: tuple[int, ...]
    momentum: float = 0.99

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> layers.Output:
        """Apply the network to float [B, H, W, 3] in its input range."""
        config = self.config()
        convs, norms = _numbered("conv2d"), _numbered("batch_normalization")

        def convolve(x: jax.Array, features: int, size: int, stride: int) -> jax.Array:
            padding = ops.symmetric_padding(size)
            return layers.Conv(
                config,
                features,
                (size, size),
                stride=stride,
                padding=padding,
                activation=None,
                normalize=False,
                use_bias=False,
                name=next(convs),
            )(x, train)

        def activate(x: jax.Array) -> jax.Array:
            return nn.relu(layers.BatchNorm(config, name=next(norms))(x, train))

        x = convolve(images, 64, 7, 2)
        # Pads with zeros, where a padded max pool would ignore the padding.
        x = jnp.pad(x, ((0, 0), *ops.symmetric_padding(3), (0, 0)))
        x = ops.max_pool(x, 3, 2, "VALID")
        for block, (units, width) in enumerate(zip(self.units, WIDTHS, strict=True)):
            for unit in range(units):
                stride = 2 if block and not unit else 1
                active = activate(x)
                if stride > 1 or x.shape[-1] != EXPANSION * width:
                    x = convolve(active, EXPANSION * width, 1, stride)
                y = convolve(active, width, 1, 1)
                y = convolve(activate(y), width, 3, stride)
                y = convolve(activate(y), EXPANSION * width, 1, 1)
                x = x + y
            layers.endpoint(self, x, f"block{block + 1}")
        return self.pool_output(activate(x), "global_pool")


def _numbered(name: str) -> Iterator[str]:
    """Yield names as TensorFlow numbers them: "conv2d", "conv2d_1", "conv2d_2"."""
    yield name
    yield from (f"{name}_{i}" for i in itertools.count(1))


def _resolve(name: str) -> Architecture | None:
    match = re.fullmatch(r"vtab_resnet_v2_(\d+)", name)
    depth = int(match[1]) if match else 0
    if depth not in UNITS:
        return None
    return Architecture(
        name=name,
        build=functools.partial(VTABResNet, units=UNITS[depth]),
        feature_dim=EXPANSION * WIDTHS[-1],
        scope="",
        classifier=layers.HEAD,
        input_range=(0.0, 1.0),
        blocks=BLOCKS,
    )


# No TF-Slim checkpoint holds this network; `checkpoints.graphs.recognize` finds it.
register_family(_resolve)
