"""The short form of a config: images, checkpoints and the choices of most runs.

`rank` and the command `rankckpt IMAGES CHECKPOINTS` translate it here into fields of
configs/default.py. This module imports nothing slow, so that the command answers at
once.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Sequence
from typing import Any

from rankckpt_jax.errors import InputError

COMMANDS = ("demo", "list", "predict")
"""First words of a command line that are not images."""

OPTIONS = {
    "measures": "--measures",
    "image_size": "--image-size",
    "workdir": "--workdir",
    "seed": "--seed",
}
"""Options of the command line by field."""

Path = str | os.PathLike[str]


def to_fields(
    images: Path | None = None,
    checkpoints: Path | Sequence[Path] | None = None,
    *,
    measures: str | Sequence[str] | None = None,
    image_size: int | None = None,
    workdir: Path | None = None,
    seed: int | None = None,
    finetune: bool | int = False,
    stages: str = "extract,score,report",
) -> dict[str, Any]:
    """Return the fields of a config for the short form; None leaves a field out.

    Example:
      >>> to_fields(checkpoints=["a", "b"], measures="nleep", image_size=96)
      {'checkpoints': 'a,b', 'measures': 'nleep', 'image_size': 96}
      >>> to_fields("photos")
      {'task.path': 'photos', 'task.tfds': ''}
      >>> to_fields("caltech101:3.*.*")
      {'task.path': '', 'task.tfds': 'caltech101:3.*.*'}
      >>> to_fields(finetune=2)
      {'finetune.top': 2, 'stages': 'extract,score,finetune,report'}

    Args:
      images: A folder, or the name of a TFDS data set with its version.
      checkpoints: Directories, globs, files or handles.
      measures: Names of measures, or "all".
      image_size: Side of the images in pixels; 0 for each checkpoint's own.
      workdir: Directory or bucket of all results.
      seed: Seed of random starts and of the order of images.
      finetune: True to fine-tune all checkpoints, or the number of the best-ranked
        checkpoints to fine-tune; False or 0 for none.
      stages: The stages of the config, to which fine-tuning is added.

    Returns:
      Values of configs/default.py by dotted name.

    Raises:
      InputError: `finetune` is not such a number.
    """
    fields: dict[str, Any] = {}
    if images is not None:
        name = os.fspath(images)
        is_tfds = _is_tfds(name)
        # Both, because the field of a config that is not empty might have precedence.
        fields["task.path"] = "" if is_tfds else name
        fields["task.tfds"] = name if is_tfds else ""
    if checkpoints is not None:
        fields["checkpoints"] = _join(checkpoints)
    if measures is not None:
        fields["measures"] = _join(measures)
    if image_size is not None:
        fields["image_size"] = image_size
    if workdir is not None:
        fields["workdir"] = os.fspath(workdir)
    if seed is not None:
        fields["seed"] = seed
    if not isinstance(finetune, numbers.Integral) or finetune < 0:
        raise InputError(
            "The number of checkpoints to fine-tune cannot be used",
            where="finetune",
            expected="True for all checkpoints, or a whole number of at least 1",
            found=repr(finetune),
            fix="for example finetune=2 for the two best-ranked checkpoints",
        )
    if finetune:
        fields["finetune.top"] = 0 if finetune is True else int(finetune)
        fields["stages"] = _with_finetune(stages)
    return fields


def _is_tfds(name: str) -> bool:
    """Return whether a name is a TFDS data set with its version, not a path."""
    return ":" in name and "://" not in name and not os.path.exists(name)


def _join(names: Path | Sequence[Path]) -> str:
    if isinstance(names, str | os.PathLike):
        return os.fspath(names)
    return ",".join(os.fspath(name) for name in names)


def _with_finetune(stages: str) -> str:
    """Add `finetune` to stages, before the report."""
    names = [name.strip() for name in stages.split(",") if name.strip()]
    if "finetune" in names:
        return stages
    end = names.index("report") if "report" in names else len(names)
    return ",".join([*names[:end], "finetune", *names[end:]])
