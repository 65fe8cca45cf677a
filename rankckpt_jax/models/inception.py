"""Steps of TF-Slim's Inception networks, which are tables of them.

A network is a sequence of steps; a `Mixed` step runs several sequences side by side on
the same input and concatenates their channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from rankckpt_jax.models import layers, ops


@dataclasses.dataclass(frozen=True)
class Conv:
    """Convolution, batch norm, ReLU.

    Attributes:
      name: TF-Slim's scope; it ends in the kernel's size ("Conv2d_0b_1x7") unless
        `kernel_size` is given.
      features: Output channels.
      stride: In both directions.
      padding: "SAME" or "VALID".
      kernel_size: (height, width), if it differs from the name's.
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
        height, width = self.name[-3:].split("x")
        return int(height), int(width)


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """Max pooling with windows of side `window`."""

    name: str
    stride: int = 1
    padding: str = "SAME"
    window: int = 3


@dataclasses.dataclass(frozen=True)
class AvgPool:
    """Average pooling with 3x3 windows at stride 1."""


@dataclasses.dataclass(frozen=True)
class Fork:
    """Convolutions side by side in the enclosing scope."""

    convs: tuple[Conv, ...]


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Branches side by side, in scopes "Branch_0", "Branch_1" and so on."""

    name: str
    branches: tuple[tuple[Step, ...], ...]


@dataclasses.dataclass(frozen=True)
class Residual:
    """x + scale * linear(branches(x)), then ReLU if `activate`."""

    name: str
    branches: tuple[tuple[Step, ...], ...]
    scale: float
    activate: bool = True


@dataclasses.dataclass(frozen=True)
class Scope:
    """Steps in a scope of their own, such as repeated residual blocks.

    Attributes:
      name: TF-Slim's scope.
      steps: The steps.
      endpoint: TF-Slim's endpoint name of the output; empty for none.
    """

    name: str
    steps: tuple[Step, ...]
    endpoint: str = ""


@dataclasses.dataclass(frozen=True)
class Separable:
    """A 7x7 separable convolution with a bias instead of batch norm.

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


Step = Conv | Separable | MaxPool | AvgPool | Fork | Mixed | Residual | Scope


class Inception(layers.Network, kw_only=True):
    """A network defined by its steps.

    Attributes:
      steps: From the images to the last feature map.
      pool_name: TF-Slim's endpoint name of the pooled features.
    """

    steps: tuple[Step, ...]
    pool_name: str = "global_pool"
    momentum: float = 0.9997

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> layers.Output:
        """Apply the network to float [B, H, W, 3] in [-1, 1]."""
        config = self.config(use_scale=False)
        x = run(self, config, self.steps, images, train)
        return self.pool_output(x, self.pool_name)


def run(
    module: nn.Module,
    config: layers.NormConfig,
    steps: Sequence[Step],
    x: jax.Array,
    train: bool,
) -> jax.Array:
    """Apply steps in order; call it in the `__call__` of `module`."""
    for step in steps:
        if isinstance(step, Conv):
            x = layers.Conv(
                config,
                step.features,
                step.window,
                stride=step.stride,
                padding=step.padding,
                name=step.name,
            )(x, train)
        elif isinstance(step, MaxPool):
            x = ops.max_pool(x, step.window, step.stride, step.padding)
            layers.endpoint(module, x, step.name)
        elif isinstance(step, AvgPool):
            x = ops.avg_pool(x, 3, 1, "SAME")
        elif isinstance(step, Fork):
            sides = [run(module, config, (conv,), x, train) for conv in step.convs]
            x = jnp.concatenate(sides, axis=-1)
        elif isinstance(step, Mixed):
            x = _Branches(config, step.branches, name=step.name)(x, train)
        elif isinstance(step, Residual):
            x = _Residual(config, step, name=step.name)(x, train)
        elif isinstance(step, Scope):
            x = _Steps(config, step.steps, name=step.name)(x, train)
            if step.endpoint:
                layers.endpoint(module, x, step.endpoint)
        else:
            x = layers.SeparableConv(
                config,
                step.features,
                (7, 7),
                multiplier=step.multiplier,
                stride=step.stride,
                name=step.name,
            )(x, train)
    return x


class _Steps(nn.Module):
    """Steps in their own scope."""

    config: layers.NormConfig
    steps: tuple[Step, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return run(self, self.config, self.steps, x, train)


class _Branches(nn.Module):
    """Sequences of steps side by side, their channels concatenated."""

    config: layers.NormConfig
    branches: tuple[tuple[Step, ...], ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return layers.endpoint(self, concatenate(self.config, self.branches, x, train))


class _Residual(nn.Module):
    """The branches, added to their input."""

    config: layers.NormConfig
    step: Residual

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = concatenate(self.config, self.step.branches, x, train)
        y = layers.Conv(
            self.config,
            x.shape[-1],
            activation=None,
            normalize=False,
            name="Conv2d_1x1",
        )(y, train)
        x = x + jnp.asarray(self.step.scale, y.dtype) * y
        return nn.relu(x) if self.step.activate else x


def concatenate(
    config: layers.NormConfig,
    branches: Sequence[tuple[Step, ...]],
    x: jax.Array,
    train: bool,
) -> jax.Array:
    """Concatenate the branches' outputs; call it in a module's `__call__`."""
    return jnp.concatenate(
        [
            _Steps(config, steps, name=f"Branch_{i}")(x, train)
            for i, steps in enumerate(branches)
        ],
        axis=-1,
    )
