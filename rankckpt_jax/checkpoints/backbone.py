"""The `Backbone`: a checkpoint of any format, as the other rooms use it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax import models
from rankckpt_jax.data.transform import Transform
from rankckpt_jax.errors import InputError
from rankckpt_jax.models import cpu, layers, ops
from rankckpt_jax.storage import files

FORWARD_VERSION = 2
"""Version of the networks' forward passes, in the key of features and fine-tuning.

Raise it with every change of the features that a network of `models` or a converted
graph returns.
"""

Variables = dict[str, Any]
"""{"params": ..., "batch_stats": ...}; "params" holds the classifier as "logits"."""


@dataclasses.dataclass(frozen=True)
class Apply:
    """The forward function of an architecture; equal for equal architectures.

    It holds no weights, so a function compiled for it serves every checkpoint of the
    architecture.

    Attributes:
      architecture: A name for `models.create`.
      dtype: Name of the dtype of the computation.
      axis_name: Mapped axis over which batch moments are averaged in training.
      decay: Decay of batch norm's moving averages per training step; None for the
        architecture's own.
      precision: Precision of float32 products, "highest" or "default".
      with_blocks: Whether the pooled outputs of `block_names` are returned too, outside
        training.
    """

    architecture: str
    dtype: str = "float32"
    axis_name: str | None = None
    decay: float | None = None
    precision: str = "highest"
    with_blocks: bool = False

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of the network's last blocks; see `models.Architecture`."""
        return models.get(self.architecture).blocks

    def __call__(
        self,
        variables: Variables,
        images: jax.Array,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Any:
        """Apply the network.

        Args:
          variables: See `Variables`; the classifier in `params["logits"]` is optional.
          images: float [B, H, W, 3] in the backbone's input range.
          train: Whether batch norm uses and updates batch statistics.
          key: Random key of dropout and the like in training. The networks of `models`
            have none, so they ignore it. Without it, other kinds of networks draw the
            same values in every step.

        Returns:
          `Output`; if `train`, (`Output`, the updated batch_stats).
        """
        head = variables["params"].get(layers.HEAD)
        module = models.create(
            self.architecture,
            num_classes=0 if head is None else head["bias"].shape[-1],
            dtype=jnp.dtype(self.dtype),
            axis_name=self.axis_name,
            precision=jax.lax.Precision[self.precision.upper()],
            **({} if self.decay is None else {"momentum": self.decay}),
        )
        if not train:
            forward = functools.partial(module.apply, variables)
            if self.with_blocks:
                forward = functools.partial(self._with_blocks, module, variables)
            return cpu.map_parts(forward, images)
        output, updated = module.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        return output, updated["batch_stats"]

    def _with_blocks(self, module: Any, variables: Variables, images: Any) -> Any:
        output, state = module.apply(variables, images, mutable=["intermediates"])
        found = layers.endpoints(state["intermediates"])
        blocks = tuple(ops.global_pool(found[name]) for name in self.block_names)
        return output._replace(blocks=blocks)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A pre-trained network, independent of the format it was loaded from.

    Attributes:
      name: Unique in its pool.
      architecture: The network's name.
      variables: {"params", "batch_stats"}, float32; see `Variables`.
      apply: `apply(variables, images)` -> `Output`; `apply(variables, images,
        train=True, key=key)` -> (`Output`, new batch_stats). An `Apply`, or a
        `GraphApply` or `TorchApply` with the same fields `dtype`, `axis_name`, `decay`
        and `precision`; or a `HostApply`, which JAX cannot trace.
      image_size: Side of its square input images in pixels.
      input_range: Values that the pixels 0 and 255 become.
      input_mean: Mean per channel, subtracted afterwards.
      feature_dim: D, width of the features.
      num_source_classes: Width of its own classifier; 0 without one.
      num_parameters: Number of trainable values without the classifier.
      fingerprint: Digest of the checkpoint's bytes.
      source: The file or handle it was loaded from.
      feature_tensor: Name of the tensor within a converted graph that holds the
        features, and the removed classifier.
      own_image_size: Side of the images that it was made for; None if unknown.
      own_transform: How its library resizes and crops images to evaluate it: a
        `Transform`, or a name in `preprocess.names()`. None is "vtab", a plain resize.
      warnings: What was assumed or not followed, by topic, for the report.
      engine: For a PyTorch network, what computes it: "jax", or "torch" for PyTorch
        itself. "" for others.
    """

    name: str
    architecture: str
    variables: Variables = dataclasses.field(repr=False)
    apply: Any
    image_size: int
    input_range: tuple[float, float]
    input_mean: tuple[float, float, float]
    feature_dim: int
    num_source_classes: int
    num_parameters: int
    fingerprint: str
    source: str
    feature_tensor: str = ""
    own_image_size: int | None = None
    own_transform: Transform | str | None = None
    warnings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    engine: str = ""

    @property
    def own_preprocess(self) -> str:
        """The rule of `preprocess.resize` for `own_transform` at `image_size`."""
        if isinstance(self.own_transform, Transform):
            return self.own_transform.rule(self.image_size)
        return self.own_transform or "vtab"


def create(
    architecture: str,
    variables: Variables,
    *,
    name: str,
    fingerprint: str,
    source: str,
    image_size: int | None = None,
    own_image_size: int | None = None,
    input_range: tuple[float, float] | None = None,
    input_mean: tuple[float, float, float] | None = None,
    own_transform: Transform | str | None = None,
) -> Backbone:
    """Build the `Backbone` of a network in `models`.

    The arguments are its attributes; `own_image_size`, `input_range` and `input_mean`
    are by default the architecture's, and `image_size` is `own_image_size`.

    Raises:
      InputError: The architecture is unknown, or the images are too small for it.
    """
    network = models.get(architecture)
    own_size = own_image_size or network.image_size
    size = image_size or own_size
    if size < network.minimum_image_size:
        raise InputError(
            f"{architecture} cannot take images of {size} x {size} pixels",
            where="config.image_size",
            expected=f"at least {network.minimum_image_size}",
            found=str(size),
            fix="set config.image_size to 0 to use each checkpoint's own size",
        )
    headless, head = split_head(variables)
    leaves = jax.tree.leaves(headless["params"])
    return Backbone(
        name=name,
        architecture=architecture,
        variables=variables,
        apply=Apply(architecture),
        image_size=size,
        input_range=input_range or network.input_range,
        input_mean=input_mean or network.input_mean,
        feature_dim=network.feature_dim,
        num_source_classes=0 if head is None else head["bias"].shape[-1],
        num_parameters=sum(leaf.size for leaf in leaves),
        fingerprint=fingerprint,
        source=source,
        own_image_size=own_size,
        own_transform=own_transform,
    )


def split_head(variables: Variables) -> tuple[Variables, Any]:
    """Return (the variables without the classifier, the classifier or None)."""
    params = dict(variables["params"])
    head = params.pop(layers.HEAD, None)
    return {**variables, "params": params}, head


def block_names(apply: Any) -> tuple[str, ...]:
    """Return the names of the last blocks that a forward function can return.

    They are empty for a converted graph and for a Flax module in memory.
    """
    return getattr(apply, "block_names", ())


def configure(apply: Any, dtype: str, with_blocks: bool) -> Any:
    """Return a forward function in a dtype, with its last blocks if they are known."""
    apply = dataclasses.replace(apply, dtype=dtype)
    if with_blocks and block_names(apply):
        apply = dataclasses.replace(apply, with_blocks=True)
    return apply


def is_on_host(apply: Any) -> bool:
    """Return whether a forward function takes and returns NumPy arrays."""
    return getattr(apply, "on_host", False)


def digest_weights(tree: Any) -> str:
    """Return a digest of arrays and of their paths, shapes and dtypes.

    Args:
      tree: Any pytree of arrays, such as `Variables`.
    """
    parts: list[str | bytes] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        parts.append(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}")
        parts.append(array.tobytes())
    return files.digest(*parts)
