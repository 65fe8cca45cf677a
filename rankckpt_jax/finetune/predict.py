"""Predictions of a fine-tuned model for images that it has not seen."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special

from rankckpt_jax.data import decode, image_files, stream, targets
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.devices import mapping, progress
from rankckpt_jax.errors import InputError, some
from rankckpt_jax.finetune import step as step_lib
from rankckpt_jax.finetune.model import Model, load_model
from rankckpt_jax.finetune.recipes import Recipe
from rankckpt_jax.storage import files as files_lib

_BATCH_SIZE = 64

LABEL_THRESHOLD = 0.5
"""Probability from which an image is predicted to have a label."""


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The outputs of a model for N images, in the order of `files`.

    Attributes:
      files: Name of each image: its path below the folder, the path that was given, or
        its position in an array.
      target: Kind of the labels, one of `data.targets.TARGETS`.
      class_names: Name of each class or label; empty for regression.
      probabilities: float64 [N, C]. Rows sum to 1 for classes. For multi_label every
        label has a probability of its own. [N, 0] for regression.
      numbers: float64 [N] for regression; empty otherwise.
      unreadable: The reason by the name of each image that could not be read.
    """

    files: tuple[str, ...]
    target: str
    class_names: tuple[str, ...]
    probabilities: np.ndarray
    numbers: np.ndarray
    unreadable: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        """Return N."""
        return len(self.files)

    @property
    def classes(self) -> tuple[str, ...]:
        """The most probable class of each image; empty for other targets."""
        if self.target != targets.CLASSES:
            return ()
        return tuple(self.class_names[i] for i in self.probabilities.argmax(axis=1))

    @property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """The labels of each image, for multi_label; empty for other targets.

        They have a probability of at least LABEL_THRESHOLD.
        """
        if self.target != targets.MULTI_LABEL:
            return ()
        return tuple(
            tuple(self.class_names[i] for i in np.flatnonzero(row >= LABEL_THRESHOLD))
            for row in self.probabilities
        )


def predict(
    model: Model | str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | np.ndarray,
) -> Predictions:
    """Predict the classes of images with a fine-tuned model.

    Images are decoded, turned by their EXIF orientation, resized and scaled as in
    fine-tuning.

    Args:
      model: The directory that `config.finetune.keep=best` wrote, or the result of
        `load_model`.
      images: A folder, whose images are found at any depth; a list of files; or an
        array, uint8 [N, h, w, 3].

    Returns:
      The predictions. Files that cannot be read are listed and left out.

    Raises:
      InputError: The model cannot be used, there are no images, or they are not uint8.
    """
    if not isinstance(model, Model):
        model = load_model(model)
    named, num_images = _read(model, images)
    logits = np.zeros((0, model.num_outputs), np.float32)
    names: list[str] = []
    unreadable: dict[str, str] = {}
    parts = []
    with progress.bar("predicting", num_images, "image") as bar:
        for group, outputs in _outputs(model, named, num_images, unreadable, bar):
            names += group
            parts.append(outputs)
    if parts:
        logits = np.concatenate(parts)
    # In float64, so that probabilities of 64 classes and more sum to 1.
    outputs = logits.astype(np.float64)
    numbers, probabilities = np.zeros(0), np.zeros((len(names), 0))
    if model.target == targets.REGRESSION:
        numbers = outputs[:, 0] * model.scale[1] + model.scale[0]
    elif model.target == targets.MULTI_LABEL:
        probabilities = scipy.special.expit(outputs)
    else:
        probabilities = scipy.special.softmax(outputs, axis=1)
    return Predictions(
        tuple(names),
        model.target,
        model.class_names,
        probabilities,
        numbers,
        unreadable,
    )


Named = tuple[str, np.ndarray | None, str]
"""(name, resized pixels or None, why there are none)."""


def _read(model: Model, images: Any) -> tuple[Iterator[Named], int]:
    """Return (images that are decoded ahead, their number)."""
    size, rule = model.backbone.image_size, model.preprocess
    if isinstance(images, str | os.PathLike):
        folder = pathlib.Path(files_lib.to_path(os.fspath(images)))
        if not folder.is_dir():
            raise InputError(
                "No folder of images",
                where=str(folder),
                expected="a folder, a list of files, or an array uint8 [N, h, w, 3]",
                found="a file" if folder.exists() else "nothing",
                fix="check the path; a single file is given as a list: [FILE]",
            )
        paths = image_files.images(folder)
        named = [(path.relative_to(folder).as_posix(), path) for path in paths]
        if not named:
            raise InputError(
                "The folder has no images",
                where=str(folder),
                expected="files *" + ", *".join(image_files.IMAGE_SUFFIXES),
                found=some(sorted(os.listdir(folder))) or "an empty folder",
                fix="check the path",
            )
        return _read_files(named, size, rule), len(named)
    if hasattr(images, "__array__") or hasattr(images, "dtype"):
        array = np.asarray(images)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
            raise InputError(
                "The array does not hold images",
                where="images",
                expected="uint8 [N, h, w, 3], red, green and blue in [0, 255]",
                found=f"{array.dtype} {list(array.shape)}",
                fix="convert pixels in [0, 1] with (255 * images).round()"
                ".astype(np.uint8); give a single image as image[None]",
            )
        resize = functools.partial(_resize_array, size=size, rule=rule)
        items = enumerate(array)
        return stream.map_ahead(resize, items, 2 * _BATCH_SIZE), len(array)
    given = list(images)
    if not all(isinstance(path, str | os.PathLike) for path in given):
        raise InputError(
            "The list does not hold the names of files",
            where="images",
            expected="a folder, a list of files, or an array uint8 [N, h, w, 3]",
            found=", ".join(sorted({type(item).__name__ for item in given})),
            fix="stack images in memory with np.stack",
        )
    named = [(os.fspath(path), pathlib.Path(path)) for path in given]
    return _read_files(named, size, rule), len(named)


def _read_files(
    named: Sequence[tuple[str, pathlib.Path]], size: int, rule: str
) -> Iterator[Named]:
    infos = image_files.read_infos(path for _, path in named)
    read = functools.partial(_read_file, infos=infos, size=size, rule=rule)
    return stream.map_ahead(read, named, 2 * _BATCH_SIZE)


def _read_file(
    item: tuple[str, pathlib.Path],
    infos: Mapping[pathlib.Path, image_files.FileInfo],
    size: int,
    rule: str,
) -> Named:
    name, path = item
    info = infos[path]
    if info.why:
        return name, None, info.why
    try:
        pixels = decode.turn(decode.decode(path.read_bytes()), info.orientation)
        return name, preprocess_lib.resize(pixels, size, rule), ""
    except decode.UnusableImage as error:
        return name, None, str(error)
    except OSError as error:
        return name, None, error.strerror or str(error)


def _resize_array(item: tuple[int, np.ndarray], size: int, rule: str) -> Named:
    index, pixels = item
    try:
        return str(index), preprocess_lib.resize(pixels, size, rule), ""
    except decode.UnusableImage as error:
        return str(index), None, str(error)


def _outputs(
    model: Model,
    named: Iterable[Named],
    num_images: int,
    unreadable: dict[str, str],
    bar: Any,
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield (names, logits float32 [n, C]) of batches; add to `unreadable`."""
    # A power of two, so that few programs serve all numbers of images.
    size = min(_BATCH_SIZE, 1 << max(num_images - 1, 0).bit_length())
    size = mapping.round_up_to_devices(size)
    spec = step_lib.step_spec(model.backbone, Recipe(dtype=model.dtype))
    forward = step_lib.predict(spec.apply)
    params = dict(model.backbone.variables["params"])
    head = params.pop("logits")
    stats = model.backbone.variables.get("batch_stats", {})
    state = step_lib.State({"backbone": params, "head": head}, stats, ())
    state = mapping.replicate(state)
    scaling = mapping.replicate(
        preprocess_lib.scaling(model.backbone.input_range, model.backbone.input_mean)
    )
    mask = np.ones(size, bool)

    def compute(images: list[np.ndarray]) -> Any:
        padded = np.zeros((size, *images[0].shape), preprocess_lib.DTYPE)
        padded[: len(images)] = images
        labels = np.zeros(size, np.int32)
        return forward(state, scaling, mapping.shard((padded, labels, mask)))[0]

    def batches() -> Iterator[tuple[list[str], Any]]:
        names: list[str] = []
        images: list[np.ndarray] = []
        for name, pixels, why in named:
            bar.update(1)
            if pixels is None:
                unreadable[name] = why
                continue
            names.append(name)
            images.append(pixels)
            if len(images) == size:
                yield names, compute(images)
                names, images = [], []
        if images:
            yield names, compute(images)

    for names, logits in mapping.delayed(batches()):
        logits = np.asarray(logits).reshape(size, -1)
        yield names, logits[: len(names)]
