"""The forward function of a PyTorch network in JAX."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.pixels import Pixels
from rankckpt_jax.checkpoints.torch_modules import (
    blocks,
    environment,
    points,
    skeletons,
)
from rankckpt_jax.checkpoints.torch_modules.points import Point
from rankckpt_jax.checkpoints.torch_modules.spec import ModuleSpec
from rankckpt_jax.models import cpu, layers


@dataclasses.dataclass(frozen=True)
class TorchApply:
    """Forward function of a PyTorch network, as `backbone.Apply` is of a Flax network.

    It is equal for equal architectures, so that a function compiled for it serves all
    checkpoints of the architecture.

    `variables["params"]` has PyTorch's parameters by their names in the state dict, and
    `variables["batch_stats"]` the running statistics of batch norm.

    Attributes:
      spec: The network.
      point: Where its features are.
      constants: Digest of its other tensors; see `skeletons.register`.
      pixels: Subtracts the mean and divides by the standard deviation of its images.
      dtype: "float32", or "bfloat16" for everything except moments and statistics.
      axis_name: Mapped axis over which batch moments are averaged in training.
      decay: Decay of batch norm's running statistics per training step. None means each
        layer's own.
      precision: Precision of float32 products, "highest" or "default".
      block_names: Names of its last blocks; see `blocks.find`.
      with_blocks: Whether their pooled outputs are returned too, outside training.
    """

    spec: ModuleSpec
    point: Point
    constants: str = dataclasses.field(repr=False)
    pixels: Pixels = Pixels()
    dtype: str = "float32"
    axis_name: str | None = None
    decay: float | None = None
    precision: str = "highest"
    block_names: tuple[str, ...] = ()
    with_blocks: bool = False

    def __call__(
        self,
        variables: backbone_lib.Variables,
        images: jax.Array,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Any:
        """Apply the network; see `backbone.Apply`.

        Args:
          variables: The weights, and the classifier in `params["logits"]` or none.
          images: float [B, H, W, 3] in [0, 1].
          train: Whether batch norm uses and updates batch statistics, and whether
            dropout and stochastic depth are active.
          key: Random key of dropout and stochastic depth.
        """
        precision = self.precision if self.dtype == "float32" else self.dtype
        with jax.default_matmul_precision(precision):
            images = self.pixels(jnp.asarray(images, jnp.float32))
            head = variables["params"].get(layers.HEAD)
            forward = functools.partial(self._forward, variables, train, key)
            if not train:
                features, outputs = cpu.map_parts(
                    lambda part: forward(part)[:2], images
                )
                return layers.make_output(features, head, outputs)
            features, _, statistics = forward(images)
            return layers.make_output(features, head), statistics

    def _forward(
        self,
        variables: backbone_lib.Variables,
        train: bool,
        key: jax.Array | None,
        images: jax.Array,
    ) -> tuple[jax.Array, list[jax.Array], Any]:
        """Return (the features, those of blocks, the new running statistics)."""
        env = environment.environment(self.axis_name, self.decay)
        skeleton = skeletons.get(self.spec, self.constants)
        statistics = env.j2t_iso(_as_arrays(variables.get("batch_stats", {})))
        weights = {k: v for k, v in variables["params"].items() if k != layers.HEAD}
        weights = jax.tree.map(lambda x: x.astype(self.dtype), _as_arrays(weights))
        tensors = {**env.j2t_iso(weights), **statistics}
        images = jnp.transpose(images, (0, 3, 1, 2)).astype(self.dtype)
        # Without a key of its own, a trace would leave its tracer in the environment.
        key = jax.random.key(0) if key is None else key
        dtype = skeletons.torch_dtype(self.dtype)
        with (
            skeleton.filled(tensors, train, dtype) as module,
            warnings.catch_warnings(),
            env.override_property(prng=key),
            env,
        ):
            # PyTorch's default integers have 64 bits.
            warnings.filterwarnings("ignore", "Explicitly requested dtype.*int64")
            names = self.block_names if self.with_blocks and not train else ()
            output, outputs = blocks.compute(
                module, self.point, names, env.j2t_iso(images)
            )
        features = points.pool(env.t2j_iso(output).astype(jnp.float32))
        pooled = [env.t2j_iso(x) for x in outputs]
        return features, pooled, {name: x.jax() for name, x in statistics.items()}


def _as_arrays(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)
