"""Layers and types that the network families share.

Module names follow TF-Slim's variable scopes (`Conv2d_0/BatchNorm`), and parameters
have TensorFlow's shapes, so that a checkpoint is converted by its names alone; see
`checkpoints/slim.py`. Every layer offers its output as an endpoint: `endpoints` reads
them under TF-Slim's names from the collection "intermediates", which is filled only
where the caller makes it mutable.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from rankckpt_jax.models import convolution, fusion, windows

Activation = Callable[[jax.Array], jax.Array]

HEAD = "logits"
"""Name of every network's classifier in its parameters: {"kernel", "bias"}."""

_ENDPOINT = "endpoint"

# He et al.'s initialization, normal and truncated, as TF-Slim's networks start from.
_initialize = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
# An output of a depthwise kernel [h, w, C, multiplier] sees one input channel.
_initialize_depthwise = nn.initializers.variance_scaling(
    2.0, "fan_in", "truncated_normal", in_axis=(), out_axis=(-2, -1)
)


class Output(NamedTuple):
    """What a network returns.

    Attributes:
      features: float32 [B, D], globally pooled, before the classifier: "pre-logits".
      logits: float32 [B, C], or None without a classifier.
    """

    features: jax.Array
    logits: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Style:
    """What all layers of a network have in common: TF-Slim's "argument scope".

    Attributes:
      decay: Of batch norm's moving averages, per step.
      epsilon: Added to batch norm's variance.
      use_scale: Whether batch norm has a gamma; TF-Slim's Inception networks have none.
      dtype: Of convolutions and activations; parameters stay float32.
      axis_name: Mapped axis over which batch moments are averaged, or None.
    """

    decay: float
    epsilon: float = 1e-3
    use_scale: bool = True
    dtype: Any = jnp.float32
    axis_name: str | None = None


class BatchNorm(nn.Module):
    """Batch normalization as TF-Slim trains it.

    y = (x - mean) / sqrt(var + epsilon) * scale + bias over all axes but the last, in
    float32. In training the moments are the batch's, over all devices of `axis_name`,
    and the moving averages m move to decay * m + (1 - decay) * moment. As in
    TensorFlow's fused kernel, which TF-Slim uses, the variance that enters the moving
    average is the unbiased one, n / (n - 1) times that which normalizes.

    Attributes:
      style: Its decay, epsilon, scale, dtype of the result and mapped axis.
    """

    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalizes [..., C]."""
        style = self.style
        width = (x.shape[-1],)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        moving_mean = self.variable("batch_stats", "mean", jnp.zeros, width)
        moving_var = self.variable("batch_stats", "var", jnp.ones, width)
        bias = self.param("bias", zeros, width)
        scale = self.param("scale", ones, width) if style.use_scale else 1.0
        if train:
            scale = jnp.broadcast_to(scale, bias.shape)
            y, mean, var = _normalize(
                x.astype(windows.at_least_float32(x)),
                scale,
                bias,
                style.epsilon,
                style.axis_name,
            )
            if not self.is_initializing():
                count = x.size // x.shape[-1] * _num_mapped(style.axis_name)
                unbiased = var * (count / max(count - 1, 1))
                keep, move = style.decay, 1 - style.decay
                moving_mean.value = keep * moving_mean.value + move * mean
                moving_var.value = keep * moving_var.value + move * unbiased
            return y.astype(style.dtype)
        factor = scale * jax.lax.rsqrt(moving_var.value + style.epsilon)
        offset = bias - moving_mean.value * factor
        # Once for each channel; XLA's CPU backend would compute them anew for each
        # pixel.
        factor, offset = jax.lax.optimization_barrier((factor, offset))
        return (x * factor + offset).astype(style.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch norm by the batch's own moments, and these: y [..., C], m, v [C].

    With z = (x - m) / sqrt(v + epsilon) and h the gradient with respect to y, that with
    respect to x is

        scale / sqrt(v + epsilon) (h - mean(h) - z mean(h z)),

    two passes over x and h; deriving the forward pass step by step takes twice as many.
    The moments are for the moving averages: no gradient goes through them.
    """
    return _normalize_forward(x, scale, bias, epsilon, axis_name)[0]


def _normalize_forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    axis_name: str | None,
) -> tuple[Any, Any]:
    mean = _mean(x, axis_name)
    # Two passes: E[x^2] - E[x]^2 would lose the variance of a far-off mean. What is
    # centered is kept for the gradient in place of x, whose memory is free again.
    centered = fusion.once(x - mean)
    var = _mean(jnp.square(centered), axis_name)
    inverse = jax.lax.rsqrt(var + epsilon)
    y = centered * (scale * inverse) + bias
    return (y, mean, var), (centered, inverse, scale)


def _normalize_backward(
    epsilon: float, axis_name: str | None, kept: Any, gradients: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    centered, inverse, scale = kept
    h = gradients[0]
    axes = tuple(range(h.ndim - 1))
    # Those of this device's share of the loss.
    d_bias = jnp.sum(h, axes)
    d_scale = jnp.sum(h * centered, axes) * inverse
    count = h.size // h.shape[-1] * _num_mapped(axis_name)
    of_all = (d_bias / count, d_scale * inverse / count)
    if axis_name is not None:
        of_all = jax.lax.psum(of_all, axis_name)
    d_x = scale * inverse * (h - of_all[0] - centered * of_all[1])
    return fusion.once(d_x), d_scale, d_bias


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _mean(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Over all axes but the last and over all devices: [C]."""
    mean = jnp.mean(x, tuple(range(x.ndim - 1)))
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def _num_mapped(axis_name: str | None) -> int:
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


class Conv(nn.Module):
    """Convolution, then batch norm or a bias, then an activation.

    Attributes:
      style: The network's.
      features: Output channels.
      kernel_size: (height, width).
      stride: In both directions.
      padding: See `windows.Padding`.
      activation: Applied last; None for none.
      normalize: Batch norm and no bias; otherwise a bias and no batch norm.
    """

    style: Style
    features: int
    kernel_size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: windows.Padding = "SAME"
    activation: Activation | None = nn.relu
    normalize: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features]."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", _initialize, shape)
        y = convolution.conv(x, kernel, self.stride, self.padding, self.style.dtype)
        if self.normalize:
            y = BatchNorm(self.style, name="BatchNorm")(y, train)
        else:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y += bias.astype(y.dtype)
        return endpoint(self, y if self.activation is None else self.activation(y))


class DepthwiseConv(nn.Module):
    """One filter per channel, then batch norm and an activation.

    Attributes:
      style: The network's.
      kernel_size: (height, width).
      stride: In both directions.
      activation: Applied last; None for none.
    """

    style: Style
    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    activation: Activation | None = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', C]; "SAME" padding."""
        shape = (*self.kernel_size, x.shape[-1], 1)
        kernel = self.param("depthwise_kernel", _initialize_depthwise, shape)
        y = convolution.depthwise_conv(x, kernel, self.stride, "SAME", self.style.dtype)
        y = BatchNorm(self.style, name="BatchNorm")(y, train)
        return endpoint(self, y if self.activation is None else self.activation(y))


class SeparableConv(nn.Module):
    """Depthwise convolution, then a pointwise one with nothing between; bias, ReLU.

    Computed as the one full convolution that the two amount to: a depthwise
    convolution with few input channels leaves every kind of device idle.

    Attributes:
      style: The network's.
      features: Output channels.
      kernel_size: (height, width).
      multiplier: Filters per input channel of the depthwise part.
      stride: In both directions.
    """

    style: Style
    features: int
    kernel_size: tuple[int, int]
    multiplier: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features]; "SAME" padding."""
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
        y = convolution.conv(x, kernel, self.stride, "SAME", self.style.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return endpoint(self, nn.relu(y + bias.astype(y.dtype)))


class Classifier(nn.Module):
    """The linear layer on the pooled features, kept in float32.

    Attributes:
      num_classes: Width of the logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps [B, D] to [B, num_classes]."""
        shape = (features.shape[-1], self.num_classes)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        return classify({"kernel": kernel, "bias": bias}, features)


def classify(head: Any, features: jax.Array) -> jax.Array:
    """Applies a classifier's {"kernel" [D, C], "bias" [C]} to [B, D]: [B, C] float32.

    At the highest precision, since a TPU's default would round to bfloat16 what a
    measure reads as probabilities.
    """
    highest = jax.lax.Precision.HIGHEST
    return jnp.dot(features, head["kernel"], precision=highest) + head["bias"]


def output(module: nn.Module, features: jax.Array, num_classes: int) -> Output:
    """Ends a network: its features, and its classifier's logits if it has one.

    To be called within the module's compact `__call__`. TF-Slim's dropout between the
    two is left out: features are taken before it.
    """
    if not num_classes:
        return Output(features, None)
    return Output(features, Classifier(num_classes, name=HEAD, parent=module)(features))


def endpoint(module: nn.Module, x: jax.Array, name: str = _ENDPOINT) -> jax.Array:
    """Offers `x` as the endpoint of the module, or as `name` within it; returns `x`."""
    module.sow("intermediates", name, x)
    return x


def endpoints(intermediates: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The intermediate activations by their names in TF-Slim, without the root scope.

    Args:
      intermediates: The collection "intermediates", from
        `module.apply(variables, images, mutable=["intermediates"])`.

    Returns:
      Such as {"Mixed_5b": [B, H, W, C], "block1/unit_1/bottleneck_v1/conv1": ...}.
    """
    flat = flax.traverse_util.flatten_dict(dict(intermediates))
    return {
        "/".join(part for part in path if part != _ENDPOINT): values[0]
        for path, values in flat.items()
    }
