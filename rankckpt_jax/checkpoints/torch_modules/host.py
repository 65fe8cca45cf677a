"""A PyTorch network that PyTorch itself computes, for extraction only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints.pixels import Pixels
from rankckpt_jax.checkpoints.torch_modules import blocks, points
from rankckpt_jax.checkpoints.torch_modules import spec as spec_lib
from rankckpt_jax.checkpoints.torch_modules.points import Point
from rankckpt_jax.errors import InputError
from rankckpt_jax.models import layers


@dataclasses.dataclass(frozen=True, eq=False)
class HostApply:
    """Forward function of a network on the host, by PyTorch.

    It takes and returns NumPy arrays, so JAX cannot trace it.

    Attributes:
      module: The network with its weights, in evaluation mode.
      point: Where its features are.
      pixels: Subtracts the mean of its images and divides by the standard deviation.
      dtype: "float32", or "bfloat16" for the products.
      parameters: Its trainable weights by name, without those of the classifier.
      block_names: Names of its last blocks; see `blocks.find`.
      with_blocks: Whether their pooled outputs are returned too.
    """

    on_host: ClassVar[bool] = True

    module: Any = dataclasses.field(repr=False)
    point: Point
    pixels: Pixels
    dtype: str = "float32"
    parameters: Mapping[str, np.ndarray] = dataclasses.field(
        default_factory=dict, repr=False
    )
    block_names: tuple[str, ...] = ()
    with_blocks: bool = False

    def __call__(
        self,
        variables: backbone_lib.Variables,
        images: Any,
        train: bool = False,
        key: Any = None,
    ) -> Any:
        """Apply the network.

        Args:
          variables: The classifier in `params["logits"]`, or none. The other weights
            are those of the module.
          images: float [B, H, W, 3] in [0, 1].
          train: Must be False.
          key: Ignored, because only training is random.

        Raises:
          InputError: `train` is True.
        """
        if train:
            raise InputError(
                "A network that PyTorch computes cannot be fine-tuned",
                where="config.torch_engine",
                expected="jax or auto",
                found="torch",
                fix="--config.torch_engine=jax",
            )
        names = self.block_names if self.with_blocks else ()
        features, outputs = run(
            self.module, self.point, names, self.prepare(images), self.dtype
        )
        logits: Any = None
        if (head := variables["params"].get(layers.HEAD)) is not None:
            logits = features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
        return layers.Output(features, logits, outputs)

    def prepare(self, images: Any) -> Any:
        """Return images [B, H, W, 3] as a normalized tensor [B, 3, H, W]."""
        torch = spec_lib.import_library("torch")
        scale, offset = (
            torch.tensor(values) for values in (self.pixels.scale, self.pixels.offset)
        )
        # Arrays of JAX are read-only, which PyTorch does not know.
        raw = torch.from_numpy(np.require(images, np.float32, ["W"]))
        # The channels stay last in memory, which is faster for convolutions.
        return (raw * scale + offset).permute(0, 3, 1, 2)


def run(
    module: Any,
    point: Point,
    names: Sequence[str],
    images: Any,
    dtype: str = "float32",
) -> tuple[Any, tuple[Any, ...]]:
    """Return the features of normalized images [B, 3, H, W], and those of blocks.

    Args:
      module: The network.
      point: Where its features are.
      names: Names of blocks; see `blocks.find`.
      images: Tensor [B, 3, H, W].
      dtype: "float32", or "bfloat16" for the products.

    Returns:
      float32 [B, D], and the same of each block.
    """
    torch = spec_lib.import_library("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    is_low = dtype == "bfloat16"
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=is_low):
        output, outputs = blocks.compute(
            module.to(device), point, names, images.to(device)
        )
        features = points.pool(output.float()).cpu().numpy()
        return features, tuple(x.cpu().numpy() for x in outputs)
