"""Linear probes: training of the head alone, on features instead of images.

Features are extracted once. Training then uses the same loop and recipes as any other
trial, with `IdentityBackbone` for a network and `FeatureCache` for a cache of images.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.data.splits import Split
from rankckpt_jax.devices import processes
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract
from rankckpt_jax.models import layers


@dataclasses.dataclass(frozen=True)
class IdentityBackbone:
    """The forward function of a network whose input are its features already.

    It has the fields of `checkpoints.backbone.Apply` and ignores them.
    """

    dtype: str = "float32"
    axis_name: str | None = None
    decay: float | None = None
    precision: str = "highest"

    def __call__(
        self,
        variables: Any,
        images: jax.Array,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Any:
        """Return `images`, [B, D], as the features."""
        output = layers.Output(images, None)
        return (output, variables["batch_stats"]) if train else output


class FeatureCache(ImageCache):
    """A cache of features, to be used instead of a cache of images."""

    def __init__(
        self,
        backbone: backbone_lib.Backbone,
        cache: ImageCache,
        *,
        dtype: str,
        batch_size: int,
        description: str,
    ):
        """Create an empty cache. Features of a split are extracted when first needed.

        Args:
          backbone: The network.
          cache: Cache of decoded images.
          dtype: Dtype that the network computes in.
          batch_size: Images per step and process.
          description: Label of the progress bar.
        """
        super().__init__(None)
        self._options: dict[str, Any] = {
            "cache": cache,
            "dtype": dtype,
            "batch_size": batch_size,
            "description": f"{description}: extracting",
        }
        self._backbone = backbone
        self._features: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def get(
        self,
        split: Split,
        size: int,
        preprocess: str,
        process: int = 0,
        count: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (features float32 [N, D], labels) instead of images and labels.

        Raises:
          InputError: There are several processes.
        """
        if split.fingerprint not in self._features:
            if processes.process_count() > 1:
                raise InputError(
                    "A linear probe cannot run in several processes",
                    where="config.finetune.frozen",
                    expected="one process",
                    found=f"{processes.process_count()} processes",
                    fix="start one process, or set config.finetune.frozen=False",
                )
            arrays = extract.extract(
                self._backbone, split, preprocess=preprocess, **self._options
            )
            self._features[split.fingerprint] = arrays["features"], arrays["labels"]
        features, labels = self._features[split.fingerprint]
        return features[process::count], labels[process::count]


def without_head(backbone: backbone_lib.Backbone) -> backbone_lib.Backbone:
    """Return a backbone that passes features through, without weights or scaling."""
    return dataclasses.replace(
        backbone,
        variables={"params": {}, "batch_stats": {}},
        apply=IdentityBackbone(),
        # Maps 0 to 0 and 255 to 255, so that features are not scaled.
        input_range=(0.0, 255.0),
        input_mean=(0.0,),  # type: ignore[arg-type]
    )
