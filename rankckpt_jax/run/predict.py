"""The command `rankckpt predict MODEL IMAGES`: images -> predictions.csv."""

from __future__ import annotations

import logging
import os

from rankckpt_jax.devices import compilation, progress
from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import predict as predict_lib
from rankckpt_jax.finetune.model import load_model
from rankckpt_jax.report import predictions as report
from rankckpt_jax.storage import files

_log = logging.getLogger(__name__)


def predict(model: str, images: str, output: str) -> tuple[str, bool]:
    """Predict the classes of all images in a folder, and write them as CSV.

    Args:
      model: Directory of the model.
      images: The folder.
      output: The file to write. An older one is replaced.

    Returns:
      (a summary to print, whether all images could be read).

    Raises:
      InputError: The model or the folder cannot be used, or no image can be read.
      StorageError: The file cannot be written.
    """
    place = files.to_path(output)
    if place.is_dir():
        raise InputError(
            "The predictions cannot be written to a folder",
            where="--output",
            expected="the name of a CSV file",
            found=output,
            fix=f"--output={os.path.join(output, 'predictions.csv')}",
        )
    with compilation.persistent_cache():
        with progress.step(model, "loading", announce=False):
            loaded = load_model(model)
        size = loaded.backbone.image_size
        name = loaded.facts.get("checkpoint", {}).get("name", "")
        _log.info("%s: %s, images of %d x %d pixels", model, name, size, size)
        predictions = predict_lib.predict(loaded, images)
    for file, why in predictions.unreadable.items():
        _log.warning("%s: %s", file, why)
    if not len(predictions):
        raise InputError(
            "No image could be read",
            where=images,
            expected="images that can be decoded",
            found=f"{len(predictions.unreadable)} files that cannot",
            fix="copy them again, or convert them to JPEG or PNG",
        )
    files.write_text_atomically(place, report.to_csv(predictions))
    return report.to_text(predictions, output), not predictions.unreadable
