"""Layers and types shared by the network families.

Module names follow TF-Slim's variable scopes (`Conv2d_0/BatchNorm`) and parameters have
TensorFlow's shapes, so a checkpoint is converted by its names alone; see
`checkpoints/sources/slim.py`. Every layer stores its output in the collection
"intermediates" if the caller makes it mutable; `endpoints` reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from rankckpt_jax.models import ops

Activation = Callable[[jax.Array], jax.Array]

HEAD = "logits"
"""Name of every network's classifier in its parameters: {"kernel", "bias"}."""

_ENDPOINT = "endpoint"

# He et al.'s initialization (truncated normal), as in TF-Slim's networks.
_initialize = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
# Each output channel of a depthwise kernel [h, w, C, M] reads one input channel.
_initialize_depthwise = nn.initializers.variance_scaling(
    2.0, "fan_in", "truncated_normal", in_axis=(), out_axis=(-2, -1)
)


class Output(NamedTuple):
    """Output of a network.

    Attributes:
      features: float32 [B, D], globally pooled, before the classifier: "pre-logits".
      logits: float32 [B, C], or None without a classifier.
      blocks: float32 [B, D] of each block that the forward function was asked for.
    """

    features: jax.Array
    logits: jax.Array | None
    blocks: tuple[jax.Array, ...] = ()


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """Settings shared by all layers of a network: TF-Slim's "argument scope".

    Attributes:
      momentum: Weight of the old value in batch norm's moving averages, per step.
      epsilon: Added to batch norm's variance.
      use_scale: Whether batch norm has a gamma; TF-Slim's Inception networks have none.
      dtype: Of convolutions and activations; parameters stay float32.
      axis_name: Mapped axis over which batch moments are averaged, or None.
      precision: Of float32 convolutions; see `ops.conv`.
    """

    momentum: float
    epsilon: float = 1e-3
    use_scale: bool = True
    dtype: Any = jnp.float32
    axis_name: str | None = None
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST


class Network(nn.Module, kw_only=True):
    """Base of all networks.

    Attributes:
      num_classes: Width of the logits; 0 for features only.
      dtype: Of the convolutions.
      axis_name: Mapped axis over which batch moments are averaged, or None.
      momentum: Of batch norm's moving averages, per step.
      precision: Of float32 convolutions; see `ops.conv`.
    """

    num_classes: int = 0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    momentum: float = 0.997
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST

    def config(self, **options: Any) -> NormConfig:
        """Return the settings of the network's layers; `options` as in `NormConfig`."""
        return NormConfig(
            self.momentum,
            dtype=self.dtype,
            axis_name=self.axis_name,
            precision=self.precision,
            **options,
        )

    def output(self, features: jax.Array) -> Output:
        """Apply the classifier, if any, to float32 [B, D]; call it in `__call__`.

        TF-Slim's dropout is omitted: features are taken before it.
        """
        if not self.num_classes:
            return Output(features, None)
        highest = jax.lax.Precision.HIGHEST
        classifier = nn.Dense(self.num_classes, precision=highest, name=HEAD)
        return Output(features, classifier(features))

    def pool_output(self, x: jax.Array, endpoint_name: str) -> Output:
        """Pool the last feature map [B, H, W, D], then apply the classifier."""
        features = ops.global_pool(x)
        endpoint(self, features, endpoint_name)
        return self.output(features)


class BatchNorm(nn.Module):
    """Batch normalization as TF-Slim trains it.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias over all axes except the last,
    in float32. In training, the moments are those of the batch over all devices of
    `axis_name`, and each moving average m becomes
    momentum * m + (1 - momentum) * moment. As in TensorFlow's fused kernel, which
    TF-Slim uses, the moving average receives the unbiased variance n / (n - 1) * var.

    Attributes:
      config: The network's settings.
    """

    config: NormConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalize [..., C]."""
        config = self.config
        width = (x.shape[-1],)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        moving_mean = self.variable("batch_stats", "mean", jnp.zeros, width)
        moving_var = self.variable("batch_stats", "var", jnp.ones, width)
        bias = self.param("bias", zeros, width)
        scale = self.param("scale", ones, width) if config.use_scale else 1.0
        if not train:
            factor = scale * jax.lax.rsqrt(moving_var.value + config.epsilon)
            offset = bias - moving_mean.value * factor
            return (x * factor + offset).astype(config.dtype)
        x = x.astype(ops.accumulation_dtype(x))
        mean = self._mean(x)
        # Two passes: E[x^2] - E[x]^2 loses the variance if the mean is far from zero.
        centered = x - mean
        var = self._mean(jnp.square(centered))
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            if config.axis_name is not None:
                count *= jax.lax.axis_size(config.axis_name)
            unbiased = var * (count / max(count - 1, 1))
            old, new = config.momentum, 1 - config.momentum
            moving_mean.value = old * moving_mean.value + new * mean
            moving_var.value = old * moving_var.value + new * unbiased
        y = centered * (scale * jax.lax.rsqrt(var + config.epsilon)) + bias
        return y.astype(config.dtype)

    def _mean(self, x: jax.Array) -> jax.Array:
        """Average over all axes except the last and over all devices: [C]."""
        mean = jnp.mean(x, tuple(range(x.ndim - 1)))
        axis_name = self.config.axis_name
        return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


class Conv(nn.Module):
    """Convolution, then batch norm, a bias or neither, then an activation.

    Attributes:
      config: The network's settings.
      features: Output channels.
      kernel_size: (height, width).
      stride: In both directions.
      padding: See `ops.Padding`.
      activation: Applied last; None for none.
      normalize: Whether batch norm follows.
      use_bias: Whether a bias follows if batch norm does not.
    """

    config: NormConfig
    features: int
    kernel_size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: ops.Padding = "SAME"
    activation: Activation | None = nn.relu
    normalize: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, H', W', features]."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", _initialize, shape)
        config = self.config
        y = ops.conv(
            x,
            kernel,
            self.stride,
            self.padding,
            config.dtype,
            precision=config.precision,
        )
        if self.normalize:
            y = BatchNorm(self.config, name="BatchNorm")(y, train)
        elif self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y += bias.astype(y.dtype)
        return endpoint(self, y if self.activation is None else self.activation(y))


class DepthwiseConv(nn.Module):
    """One filter per channel, then batch norm and an activation.

    Attributes:
      config: The network's settings.
      kernel_size: (height, width).
      stride: In both directions.
      activation: Applied last.
    """

    config: NormConfig
    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    activation: Activation = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, H', W', C] with "SAME" padding."""
        shape = (*self.kernel_size, x.shape[-1], 1)
        kernel = self.param("depthwise_kernel", _initialize_depthwise, shape)
        config = self.config
        y = ops.depthwise_conv(x, kernel, self.stride, config.dtype, config.precision)
        y = BatchNorm(self.config, name="BatchNorm")(y, train)
        return endpoint(self, self.activation(y))


class SeparableConv(nn.Module):
    """Depthwise convolution, pointwise convolution, bias, ReLU.

    The two linear convolutions are computed as the one full convolution they amount to:
    a depthwise convolution with few input channels uses no kind of device well.

    Attributes:
      config: The network's settings.
      features: Output channels.
      kernel_size: (height, width).
      multiplier: Filters per input channel of the depthwise part.
      stride: In both directions.
    """

    config: NormConfig
    features: int
    kernel_size: tuple[int, int]
    multiplier: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map [B, H, W, C] to [B, H', W', features] with "SAME" padding."""
        channels, multiplier = x.shape[-1], self.multiplier
        shape = (*self.kernel_size, channels, multiplier)
        depthwise = self.param("depthwise_kernel", _initialize_depthwise, shape)
        shape = (1, 1, channels * multiplier, self.features)
        pointwise = self.param("pointwise_kernel", _initialize, shape)
        kernel = jnp.einsum(
            "hwcm,cmd->hwcd",
            depthwise,
            pointwise.reshape(channels, multiplier, self.features),
            precision=jax.lax.Precision.HIGHEST,
        )
        config = self.config
        y = ops.conv(
            x, kernel, self.stride, "SAME", config.dtype, precision=config.precision
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return endpoint(self, nn.relu(y + bias.astype(y.dtype)))


def pool(features: jax.Array) -> jax.Array:
    """Average [B, h, w, D] over h and w, and keep [B, D]. Return float32 [B, D]."""
    if features.ndim == 4:
        features = jnp.mean(features, (1, 2))
    return features.astype(jnp.float32)


def make_output(
    features: jax.Array, head: Any, blocks: Sequence[jax.Array] = ()
) -> Output:
    """Return the output of a network from its features and its classifier.

    Args:
      features: float32 [B, D].
      head: {"kernel" [D, C], "bias" [C]}, or None.
      blocks: float32 [B, D] of further layers.
    """
    logits = None if head is None else classify(head, features)
    return Output(features, logits, tuple(blocks))


def classify(head: Any, features: jax.Array) -> jax.Array:
    """Apply a classifier {"kernel" [D, C], "bias" [C]} to [B, D]: [B, C] float32.

    The product has the highest precision, because a TPU's default rounds the inputs to
    bfloat16 and measures read the logits as probabilities.
    """
    highest = jax.lax.Precision.HIGHEST
    return jnp.dot(features, head["kernel"], precision=highest) + head["bias"]


def endpoint(module: nn.Module, x: jax.Array, name: str = _ENDPOINT) -> jax.Array:
    """Store `x` as the endpoint of a module, or as `name` within it; return `x`."""
    module.sow("intermediates", name, x)
    return x


def endpoints(intermediates: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return the intermediate activations by their TF-Slim names, without root scope.

    Args:
      intermediates: The collection "intermediates", from
        `module.apply(variables, images, mutable=["intermediates"])`.

    Returns:
      For example {"Mixed_5b": [B, H, W, C], "block1/unit_1/bottleneck_v1/conv1": ...}.
    """
    flat = flax.traverse_util.flatten_dict(dict(intermediates))
    return {
        "/".join(part for part in path if part != _ENDPOINT): values[0]
        for path, values in flat.items()
    }
