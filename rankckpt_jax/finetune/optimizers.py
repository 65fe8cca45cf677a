"""The optimizers of fine-tuning: SGD with momentum, AdamW, and layer-wise rates."""

from __future__ import annotations

import re
from typing import Any

import jax
import optax

from rankckpt_jax.errors import InputError

_BETA2 = 0.999
_EPSILON = 1e-8
# Parameters of transformers with several axes that timm does not decay either.
_NOT_DECAYED = re.compile(
    r"(^|[./])(\w+_token|pos_embed|relative_position_bias_table)$"
)
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_STEM = re.compile(r"\w+_token|pos_embed|patch_embed|norm_pre|rel_pos_bias")
_LAST_NORM = re.compile(r"norm\.")


def make(
    name: str,
    *,
    rate: Any,
    momentum: Any,
    weight_decay: Any,
    clip_norm: Any,
    layer_decay: float = 1.0,
) -> optax.GradientTransformation:
    """Return an optimizer of {"backbone": ..., "head": ...}.

    The numbers may be traced, except for `layer_decay`. They are those of
    `recipes.Recipe`. AdamW is that of PyTorch (Loshchilov and Hutter, 2019).

    Args:
      name: "sgd" or "adamw".
      rate: Learning rate of this step.
      momentum: Momentum of SGD, or decay of AdamW's first moment.
      weight_decay: SGD adds `weight_decay` times the kernels to the gradient. AdamW
        lowers kernels by `rate * weight_decay` times themselves.
      clip_norm: Maximum global norm of the gradient; may be infinite.
      layer_decay: See `layer_factors`.
    """
    decay = optax.add_decayed_weights(weight_decay, mask=_is_kernel)
    if name == "adamw":
        core = optax.scale_by_adam(momentum, _BETA2, _EPSILON), decay
    else:
        core = decay, optax.trace(decay=momentum)
    steps = [optax.clip_by_global_norm(clip_norm), *core, optax.scale(-rate)]
    if layer_decay != 1:
        steps.append(_scale_layers(layer_decay))
    return optax.chain(*steps)


def layer_factors(params: Any, decay: float) -> Any:
    """Return the factor of each parameter's learning rate, as in BEiT and timm.

    It is `decay` to the power of the number of layers above the parameter: 1 for the
    head, `decay` for the last block and the norm behind it, and `decay ** (N + 1)` for
    what precedes the first of N blocks. A parameter belongs to block n if its name
    starts with "blocks.n.". Parameters that belong nowhere count as the head's.

    Args:
      params: {"backbone": ..., "head": ...}, arrays or shapes.
      decay: Factor per layer.

    Raises:
      InputError: There are no blocks.
    """
    names = _names(params)
    blocks = [
        int(match[1]) + 1 for name in names if (match := _BLOCK.match(name)) is not None
    ]
    if not blocks:
        raise InputError(
            "Layer-wise decay of the learning rate needs the blocks of a transformer",
            where="config.finetune.layer_decay",
            expected="parameters with names such as blocks.0.attn.qkv.weight",
            found=", ".join(names[:3]) or "no parameters",
            fix="set config.finetune.layer_decay=1, or rank this network on its own",
        )
    depth = max(blocks)

    def factor(name: str) -> float:
        if (match := _BLOCK.match(name)) is not None:
            layer = int(match[1]) + 1
        elif _STEM.match(name):
            layer = 0
        else:
            layer = depth if _LAST_NORM.match(name) else depth + 1
        return decay ** (depth + 1 - layer)

    return jax.tree.unflatten(jax.tree.structure(params), map(factor, names))


def _scale_layers(decay: float) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        factors = layer_factors(params, decay)
        return jax.tree.map(lambda x, factor: x * factor, updates, factors), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _is_kernel(params: Any) -> Any:
    """Return for each parameter whether it is decayed.

    Those with one axis and a transformer's embeddings of positions and tokens are not.
    """
    kernels = [
        leaf.ndim > 1 and _NOT_DECAYED.search(name) is None
        for name, leaf in zip(_names(params), jax.tree.leaves(params), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), kernels)


def _names(params: Any) -> list[str]:
    """Return the parameters' names; those of the backbone without its prefix."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [
        jax.tree_util.keystr(path, simple=True, separator=".").removeprefix("backbone.")
        for path in paths
    ]
