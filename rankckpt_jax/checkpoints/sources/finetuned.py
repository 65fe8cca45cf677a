"""Models that fine-tuning kept: directories with model.json and variables/."""

from __future__ import annotations

import dataclasses

from etils import epath

from rankckpt_jax.checkpoints import model_directory
from rankckpt_jax.checkpoints.backbone import Backbone
from rankckpt_jax.checkpoints.sources import Options

matches = model_directory.matches


def load(path: epath.Path, options: Options) -> Backbone:
    """Load a fine-tuned model as a checkpoint, to rank it or to train it further.

    Args:
      path: The directory.
      options: `image_size` is ignored with a warning, because the model was fine-tuned
        at its own.

    Returns:
      The backbone. Its classifier is the head that was fine-tuned.

    Raises:
      InputError: The model is damaged, or of a newer version.
    """
    backbone, _ = model_directory.load(path)
    own = backbone.image_size
    warnings = dict(backbone.warnings)
    if options.image_size not in (0, own):
        warnings["image_size"] = (
            f"A fine-tuned model keeps its images of {own} x {own} pixels"
        )
    return dataclasses.replace(
        backbone, name=options.name, warnings=warnings, source=options.handle
    )
