"""What the Inception networks of TF-Slim are tables of.

A network is a sequence of steps; a `Mixed` step runs several sequences side by side on
the same input and joins their channels.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rankckpt_jax.models import fusion, layers, pooling


@dataclasses.dataclass(frozen=True)
class Conv:
    """Convolution, batch norm, ReLU.

    Attributes:
      name: TF-Slim's scope; it ends in the kernel's size ("Conv2d_0b_1x7"), except
        where `kernel_size` says otherwise.
      features: Output channels.
      stride: In both directions.
      padding: "SAME" or "VALID".
      kernel_size: (height, width), where it is not what the name says.
    """

    name: str
    features: int
    stride: int = 1
    padding: str = "SAME"
    kernel_size: tuple[int, int] | None = None

    @property
    def window(self) -> tuple[int, int]:
        """(height, width) of the kernel."""
        if self.kernel_size is not None:
            return self.kernel_size
        match = re.search(r"_(\d)x(\d)$", self.name)
        if match is None:
            raise ValueError(f"{self.name!r} does not tell the kernel's size")
        return int(match[1]), int(match[2])


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """Largest of each window of side `window`."""

    name: str
    stride: int = 1
    padding: str = "SAME"
    window: int = 3


@dataclasses.dataclass(frozen=True)
class AvgPool:
    """Mean of each 3x3 window, at every pixel."""

    name: str = "AvgPool_0a_3x3"


@dataclasses.dataclass(frozen=True)
class Fork:
    """Convolutions side by side, within the scope they stand in."""

    convs: tuple[Conv, ...]


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Branches side by side, in scopes "Branch_0", "Branch_1" and so on."""

    name: str
    branches: tuple[tuple[Step, ...], ...]


@dataclasses.dataclass(frozen=True)
class Residual:
    """x + scale * linear(branches(x)), and ReLU where `activate`."""

    name: str
    branches: tuple[tuple[Step, ...], ...]
    scale: float
    activate: bool = True


@dataclasses.dataclass(frozen=True)
class Repeat:
    """The same residual block several times.

    Attributes:
      name: TF-Slim's scope around the blocks.
      count: Number of blocks.
      block: The block; "{}" in its name stands for its number, from 1.
      endpoint: TF-Slim's name of the last one's output among the endpoints.
    """

    name: str
    count: int
    block: Residual
    endpoint: str = ""


@dataclasses.dataclass(frozen=True)
class Separable:
    """A 7x7 convolution that is the product of a depthwise and a pointwise one.

    TF-Slim's defaults do not reach it: it has a bias in place of batch norm.

    Attributes:
      name: TF-Slim's scope.
      features: Output channels.
      multiplier: Filters per input channel of the depthwise part.
      stride: In both directions.
    """

    name: str
    features: int
    multiplier: int
    stride: int


Step = Conv | Separable | MaxPool | AvgPool | Fork | Mixed | Residual | Repeat


class Inception(nn.Module):
    """The network of a table.

    Attributes:
      steps: From the images to the last feature map.
      pool_name: TF-Slim's name of the pooled features among the endpoints.
      num_classes: Width of the logits; 0 for none.
      dtype: Of the convolutions.
      axis_name: Mapped axis over which batch moments are averaged.
      decay: Of batch norm's moving averages, per step.
    """

    steps: tuple[Step, ...]
    pool_name: str = "global_pool"
    num_classes: int = 0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    decay: float = 0.9997

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> layers.Output:
        """Applies the network to float [B, H, W, 3] in [-1, 1]."""
        x = run(self, self.style, self.steps, images, train)
        x = pooling.global_pool(x)
        layers.endpoint(self, x, self.pool_name)
        return layers.output(self, x, self.num_classes)

    @property
    def style(self) -> layers.Style:
        """What the layers have in common: batch norm without a scale."""
        return layers.Style(
            self.decay, use_scale=False, dtype=self.dtype, axis_name=self.axis_name
        )


def run(
    module: nn.Module,
    style: layers.Style,
    steps: Sequence[Step],
    x: jax.Array,
    train: bool,
) -> jax.Array:
    """Applies steps one after another, within the `__call__` of `module`."""
    for step in steps:
        if isinstance(step, Conv):
            x = layers.Conv(
                style,
                step.features,
                step.window,
                stride=step.stride,
                padding=step.padding,
                name=step.name,
            )(x, train)
        elif isinstance(step, MaxPool):
            x = pooling.max_pool(x, step.window, step.stride, step.padding)
            layers.endpoint(module, x, step.name)
        elif isinstance(step, AvgPool):
            x = pooling.avg_pool(x, 3, 1, "SAME")
        elif isinstance(step, Fork):
            sides = [run(module, style, (conv,), x, train) for conv in step.convs]
            x = jnp.concatenate(sides, axis=-1)
        elif isinstance(step, Mixed):
            x = _Branches(style, step.branches, name=step.name)(x, train)
        elif isinstance(step, Residual):
            x = _Residual(style, step, name=step.name)(x, train)
        elif isinstance(step, Repeat):
            x = _Repeat(style, step, name=step.name)(x, train)
            if step.endpoint:
                layers.endpoint(module, x, step.endpoint)
        else:
            x = layers.SeparableConv(
                style,
                step.features,
                (7, 7),
                multiplier=step.multiplier,
                stride=step.stride,
                name=step.name,
            )(x, train)
    return x


class _Steps(nn.Module):
    """Steps in a scope of their own."""

    style: layers.Style
    steps: tuple[Step, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return run(self, self.style, self.steps, x, train)


class _Branches(nn.Module):
    """Sequences of steps side by side, their channels joined."""

    style: layers.Style
    branches: tuple[tuple[Step, ...], ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return layers.endpoint(self, join(self.style, self.branches, x, train))


class _Repeat(nn.Module):
    """Residual blocks in a scope of their own."""

    style: layers.Style
    step: Repeat

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(1, self.step.count + 1):
            name = self.step.block.name.format(i)
            x = _Residual(self.style, self.step.block, name=name)(x, train)
        return x


class _Residual(nn.Module):
    """Adds the branches to their input."""

    style: layers.Style
    step: Residual

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = join(self.style, self.step.branches, x, train)
        y = layers.Conv(
            self.style,
            x.shape[-1],
            activation=None,
            normalize=False,
            name="Conv2d_1x1",
        )(y, train)
        x = x + jnp.asarray(self.step.scale, y.dtype) * y
        return fusion.once(nn.relu(x) if self.step.activate else x)


def join(
    style: layers.Style,
    branches: Sequence[tuple[Step, ...]],
    x: jax.Array,
    train: bool,
) -> jax.Array:
    """Runs branches side by side, within a module's `__call__`: [B, H', W', sum]."""
    return jnp.concatenate(
        [
            _Steps(style, steps, name=f"Branch_{i}")(x, train)
            for i, steps in enumerate(branches)
        ],
        axis=-1,
    )
