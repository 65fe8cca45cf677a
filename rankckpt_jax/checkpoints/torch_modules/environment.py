"""torchax, with the operations that it lacks or computes otherwise.

Only this file and `apply` use torchax. It is published as pre-releases, each of which
works with few versions of PyTorch, and knows nothing of the others.
"""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp

from rankckpt_jax.checkpoints.torch_modules import spec as spec_lib
from rankckpt_jax.errors import InputError
from rankckpt_jax.models import ops

REQUIREMENTS = ("torch>=2.13,<2.15", "torchax>=0.0.14.dev20260912")
"""Versions that work together, as in the extra `torch` of pyproject.toml."""


def require_torchax() -> Any:
    """Import torchax.

    Raises:
      InputError: It is missing, or does not work with the installed PyTorch. The
        message has both versions and the line that installs a pair that works.
    """
    spec_lib.import_library("torch")
    try:
        # Any of its modules may fail with any error beside another PyTorch.
        import torchax
        import torchax.view
    except Exception as error:
        raise InputError(
            "PyTorch networks cannot be converted to JAX, because torchax cannot be "
            "imported",
            expected=" and ".join(REQUIREMENTS),
            found=f"torch {_version('torch')} and torchax {_version('torchax')} "
            f"({type(error).__name__}: {error})",
            fix="pip install "
            + " ".join(f'"{requirement}"' for requirement in REQUIREMENTS)
            + "; or set config.torch_engine=torch, which needs no torchax and does not "
            "fine-tune",
        ) from error
    return torchax


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


@functools.cache
def environment(axis_name: str | None = None, decay: float | None = None) -> Any:
    """Return an environment of torchax in which networks are traced.

    The changes are confined to it. torchax's default environment stays as it is.

    Args:
      axis_name: Mapped axis over which batch norm averages its moments in training.
      decay: Decay of batch norm's running statistics; None for each layer's own.
    """
    torchax = require_torchax()
    torch = spec_lib.import_library("torch")
    own_types = torchax.tensor.Tensor, torchax.view.View

    class Environment(torchax.tensor.Environment):  # type: ignore[name-defined]
        """Accepts PyTorch's own tensors as constants."""

        def t2j_iso(self, values: Any) -> Any:
            def convert(value: Any) -> Any:
                if isinstance(value, own_types):
                    return value.jax()
                if value.device.type == "meta":
                    raise AssertionError("A tensor of the network has no value")
                # A scalar does not change the dtype of the result.
                return value.item() if value.ndim == 0 else self.t2j_copy(value)

            tree = torch.utils._pytree
            return tree.tree_map_only(torch.Tensor, convert, values)

    env = Environment()

    def override(operation: Any, function: Any) -> None:
        def run(*args: Any, **kwargs: Any) -> Any:
            return env.j2t_iso(function(*env.t2j_iso(args), **env.t2j_iso(kwargs)))

        env.override_op_definition(operation, run)

    def batch_norm(
        input: Any,
        running_mean: Any,
        running_var: Any,
        weight: Any = None,
        bias: Any = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Any:
        has_running = running_mean is not None
        x, weight, bias, mean, var = env.t2j_iso(
            (input, weight, bias, running_mean, running_var)
        )
        if training:
            axis = axis_name if has_running else None
            mean, var, count = _moments(x.astype(jnp.float32), axis)
            if has_running:
                new = momentum if decay is None else 1 - decay
                unbiased = var * (count / max(count - 1, 1))
                # `_elem` is the array within a tensor of torchax. The caller reads the
                # new statistics from these two.
                for running, moment in ((running_mean, mean), (running_var, unbiased)):
                    running._elem = (1 - new) * running._elem + new * moment
        return env.j2t_iso(_normalize(x, weight, bias, mean, var, eps))

    functional, aten = torch.nn.functional, torch.ops.aten
    env.override_op_definition(functional.batch_norm, batch_norm)
    # torchax names the second argument `weights`.
    override(functional.linear, _linear)
    # For depthwise convolutions and matrix products that suit a CPU.
    override(functional.conv2d, _conv2d)
    # Those of torchax refuse negative widths.
    override(aten.pad.default, _pad)
    override(aten.constant_pad_nd.default, _constant_pad)
    return env


def _moments(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array, int]:
    """Return (mean, biased variance, count) of [B, C, ...] for each channel."""
    axes = (0, *range(2, x.ndim))
    count = x.size // x.shape[1]
    if axis_name is not None:
        count *= jax.lax.axis_size(axis_name)

    def average(values: jax.Array) -> jax.Array:
        mean = jnp.mean(values, axes)
        return mean if axis_name is None else jax.lax.pmean(mean, axis_name)

    mean = average(x)
    # Two passes: E[x^2] - E[x]^2 loses the variance if the mean is far from zero.
    return mean, average(jnp.square(x - _channels(mean, x))), count


def _normalize(
    x: jax.Array, weight: Any, bias: Any, mean: Any, var: Any, eps: float
) -> jax.Array:
    """Return (x - mean) / sqrt(var + eps) * weight + bias in the dtype of x."""
    factor = jax.lax.rsqrt(var + eps) * (1 if weight is None else weight)
    offset = (0 if bias is None else bias) - mean * factor
    y = x.astype(jnp.float32) * _channels(factor, x) + _channels(offset, x)
    return y.astype(x.dtype)


def _channels(values: jax.Array, x: jax.Array) -> jax.Array:
    """Reshape [C] to broadcast with [B, C, ...]."""
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def _linear(input: jax.Array, weight: jax.Array, bias: Any = None) -> jax.Array:
    """Return input [..., D] times weight [V, D], plus bias [V]."""
    y = jnp.einsum("...d,vd->...v", input.astype(weight.dtype), weight)
    return y if bias is None else y + bias


def _conv2d(
    input: jax.Array,
    weight: jax.Array,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> jax.Array:
    """Convolve [B, C, H, W] with [D, C / groups, h, w], plus bias [D]."""
    x = jnp.transpose(input, (0, 2, 3, 1))
    kernel = jnp.transpose(weight, (2, 3, 1, 0))
    stride, dilation = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        pads: ops.Padding = padding.upper()
    elif any(_pair(padding)):
        pads = tuple((side, side) for side in _pair(padding))
    else:
        pads = "VALID"
    # The precision is that of the context.
    if groups == x.shape[-1] > 1:
        # PyTorch counts the kernels of a channel one after the other, as ours do.
        kernel = kernel.reshape(*kernel.shape[:2], groups, -1)
        y = ops.depthwise_conv(
            *(x, kernel, stride, weight.dtype, None), padding=pads, dilation=dilation
        )
    else:
        y = ops.conv(
            *(x, kernel, stride, pads, weight.dtype, groups, None), dilation=dilation
        )
    return jnp.transpose(y if bias is None else y + bias, (0, 3, 1, 2))


def _pair(sides: Any) -> tuple[int, int]:
    """Return (vertical, horizontal) of one number or several."""
    vertical, *rest = (sides,) if isinstance(sides, int) else sides
    return vertical, *(rest or (vertical,))  # type: ignore[return-value]


def _constant_pad(x: jax.Array, pad: Any, value: Any = 0) -> jax.Array:
    """Pad with a value; negative widths cut off."""
    pairs = [(low, high, 0) for low, high in zip(pad[::2], pad[1::2], strict=True)]
    widths = [(0, 0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    return jax.lax.pad(x, jnp.asarray(value or 0, x.dtype), widths)


def _pad(
    x: jax.Array, pad: Any, mode: str = "constant", value: Any = None
) -> jax.Array:
    """Pad as `torch.nn.functional.pad` does."""
    if mode == "constant":
        return _constant_pad(x, pad, value)
    modes = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    widths = [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    return jnp.pad(x, widths, mode=modes[mode])
