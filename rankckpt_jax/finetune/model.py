"""Fine-tuned models: a network with its head, its classes and its preprocessing."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

import rankckpt_jax
from rankckpt_jax.checkpoints import backbone as backbone_lib
from rankckpt_jax.checkpoints import model_directory
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data import targets
from rankckpt_jax.data.splits import Task
from rankckpt_jax.errors import InputError
from rankckpt_jax.models import layers
from rankckpt_jax.storage import files

_LIBRARIES = ("jax", "jaxlib", "flax", "torch", "torchax", "timm", "torchvision")


@dataclasses.dataclass(frozen=True)
class Model:
    """A fine-tuned network that predicts; see `predict.predict`.

    Attributes:
      backbone: The network, with its new head as the classifier. Its image size and
        input range are those of fine-tuning.
      class_names: Name of each class or label, in the order of the outputs; empty for
        regression.
      target: Kind of the labels, one of `data.targets.TARGETS`.
      preprocess: Rule of `preprocess.resize`.
      dtype: Dtype of the network's computation.
      scale: Mean and standard deviation of the training images' numbers, by which
        outputs are scaled back; (0, 1) except for regression.
      facts: The content of `model.json`: provenance, recipe and accuracy.
    """

    backbone: backbone_lib.Backbone
    class_names: tuple[str, ...]
    target: str
    preprocess: str
    dtype: str = "float32"
    scale: tuple[float, float] = (0.0, 1.0)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_outputs(self) -> int:
        """Width of the head."""
        return 1 if self.target == targets.REGRESSION else len(self.class_names)


def load_model(path: str | os.PathLike[str]) -> Model:
    """Load a model that `config.finetune.keep=best` wrote.

    Args:
      path: The directory, local or in a bucket.

    Raises:
      InputError: There is no model, it is damaged, or it needs a library that is not
        installed.
    """
    directory = files.to_path(os.fspath(path))
    backbone, card = model_directory.load(directory)
    try:
        low, high = (float(value) for value in card["scale"])
        made = Model(
            backbone,
            tuple(map(str, card["classes"])),
            card["target"],
            card["preprocessing"]["resize"],
            card["dtype"],
            (low, high),
            card,
        )
        head = backbone.variables["params"][layers.HEAD]
        widths = made.num_outputs, head["kernel"].shape[1], head["bias"].shape[0]
        if made.target not in targets.TARGETS or len(set(widths)) != 1:
            raise ValueError(f"{widths[1]} outputs for {len(made.class_names)} classes")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            "The description of a fine-tuned model cannot be used",
            where=str(directory / model_directory.CARD),
            expected="the file that fine-tuning wrote",
            found=f"{type(error).__name__}: {error}",
        ) from error
    return made


def make_model(
    backbone: backbone_lib.Backbone,
    weights: Mapping[str, Any],
    task: Task,
    *,
    preprocess: str,
    dtype: str,
    scale: tuple[float, float],
) -> Model:
    """Return the model of a checkpoint and the weights that training gave it.

    Args:
      backbone: The checkpoint that was fine-tuned.
      weights: Result of `sweep.load_weights`. A linear probe has a head only.
      task: The images that it was fine-tuned on.
      preprocess: Rule of `preprocess.resize`.
      dtype: Dtype of the network's computation.
      scale: See `Model`.
    """
    own, _ = backbone_lib.split_head(backbone.variables)
    trained = weights["params"].get("backbone")
    stats = weights.get("batch_stats", {}) if trained else own.get("batch_stats", {})
    params = {**(trained or own["params"]), layers.HEAD: weights["params"]["head"]}
    variables = {"params": params, "batch_stats": stats}
    tuned = dataclasses.replace(
        backbone,
        variables=variables,
        num_source_classes=task.num_outputs,
        fingerprint=backbone_lib.digest_weights(variables),
        own_image_size=backbone.image_size,
        own_transform=preprocess,
        warnings={},
    )
    return Model(tuned, task.class_names, task.target, preprocess, dtype, scale)


def save_model(
    directory: epath.Path,
    key: Mapping[str, Any],
    model: Model,
    facts: Mapping[str, Any],
    serving: bytes = b"",
) -> None:
    """Write a model to a directory of its own.

    Args:
      directory: The directory. An older model in it is replaced.
      key: JSON-able inputs that decide the weights.
      model: The model.
      facts: JSON-able provenance for `model.json`.
      serving: The exported program; see `serving.export`.

    Raises:
      InputError: The network cannot be kept; see `network_files.check`.
      StorageError: A file cannot be written.
    """
    backbone = model.backbone
    card = {
        "classes": list(model.class_names),
        "target": model.target,
        "scale": list(model.scale),
        "dtype": model.dtype,
        "preprocessing": {
            "resize": model.preprocess,
            "image_size": backbone.image_size,
            "input_range": list(backbone.input_range),
            "input_mean": list(backbone.input_mean),
            **preprocess_lib.key(model.preprocess),
        },
        "serving": model_directory.SERVING if serving else None,
        **facts,
        "versions": _versions(),
    }
    model_directory.save(directory, key, backbone, card, serving)


def _versions() -> dict[str, str]:
    versions = {"rankckpt_jax": rankckpt_jax.__version__}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
