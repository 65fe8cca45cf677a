"""A linear probe: features stand where images do, so that training is the head alone.

The checkpoint is applied once to each image. What is trained on the features is the
same loop with the same recipes, on a backbone that has no weights left.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.data import pipeline
from rankckpt_jax.data.tasks import Split
from rankckpt_jax.devices import processes
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract
from rankckpt_jax.models import layers


@dataclasses.dataclass(frozen=True)
class Given:
    """The forward function of features that are there already.

    Has the fields of `checkpoints.backbone.Apply`, none of which matter.
    """

    dtype: str = "float32"
    axis_name: str | None = None
    decay: float | None = None

    def __call__(self, variables: Any, images: jax.Array, train: bool = False) -> Any:
        """Returns `images`, [B, D], as the features."""
        output = layers.Output(images, None)
        return (output, variables["batch_stats"]) if train else output


class FeatureCache(pipeline.ImageCache):
    """Takes the place of the cache of images: holds their features in host memory."""

    def __init__(
        self,
        backbone: backbone_lib.Backbone,
        cache: pipeline.ImageCache,
        *,
        dtype: str,
        batch_size: int,
        description: str,
    ):
        """Extracts nothing yet.

        Args:
          backbone: Applied to each split when it is first asked for.
          cache: Of the images.
          dtype: That the network computes in.
          batch_size: Images a step, per process.
          description: What the progress bar says.
        """
        super().__init__(0.0)
        self._extract: dict[str, Any] = {
            "cache": cache,
            "dtype": dtype,
            "batch_size": batch_size,
            "description": f"{description}: features",
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
        """Returns (features float32 [N, D], labels int32 [N]) in place of images."""
        if split.fingerprint not in self._features:
            if processes.process_count() > 1:
                raise InputError(
                    "A linear probe runs in one process",
                    where="config.finetune.frozen",
                    found=f"{processes.process_count()} processes",
                )
            found = extract.extract(
                self._backbone, split, preprocess=preprocess, **self._extract
            )
            self._features[split.fingerprint] = found["features"], found["labels"]
        whole, labels = self._features[split.fingerprint]
        return whole[process::count], labels[process::count]


def headless(backbone: backbone_lib.Backbone) -> backbone_lib.Backbone:
    """What is left of a backbone whose features are given: no weights, no range."""
    return dataclasses.replace(
        backbone,
        variables={"params": {}, "batch_stats": {}},
        apply=Given(),
        # 0 to 255 onto itself, less nothing in any dimension: features are not to be
        # scaled.
        input_range=(0.0, 255.0),
        input_mean=(0.0,),  # type: ignore[arg-type]
    )
