"""A `Task`: labeled images with fixed splits, wherever they come from.

Three sources stand behind one type: a folder of images, a TFDS data set, and arrays in
memory (scikit-learn's digits, which need no download). A task's training images are
what the measures see; its test images are what a fine-tuned network is judged by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.ndimage

from rankckpt_jax.data import preprocess
from rankckpt_jax.data.folders import from_folder
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.data.splits import MAX_UNREADABLE, Split, Task, array_split
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import files

_CANVAS = 48
"""Side in pixels of the images that `from_digits` draws."""


def load(config: Any) -> Task:
    """Builds the task that a config's `task` section describes.

    Args:
      config: The fields of `configs/default.py`'s `config.task`: `path` (a folder)
        goes before `tfds` (a data set's name), which goes before `digits`.

    Raises:
      InputError: None of the three is set, or what they name cannot be used.
    """
    limit = config.get("limit", 0)
    most = config.get("max_unreadable", MAX_UNREADABLE)
    for field, value, holds, expected in (
        ("limit", limit, limit >= 0, "at least 0"),
        ("max_unreadable", most, 0 <= most <= 1, "a share in [0, 1]"),
    ):
        if not holds:
            raise InputError(
                "Images cannot be chosen so",
                where=f"config.task.{field}",
                expected=expected,
                found=str(value),
                fix="leave it out for the default",
            )
    if config.path:
        task = from_folder(config.path, name=config.name, max_unreadable=most)
        return _limited(task, limit)
    if config.tfds:
        return from_tfds(
            config.tfds,
            {role: config[role] for role in ("train", "val", "test") if config[role]},
            data_dir=config.data_dir or None,
            name=config.name,
            limit=limit,
        )
    if config.digits:
        return _limited(from_digits(config.digits, name=config.name), limit)
    raise InputError(
        "The config names no images",
        where="config.task",
        expected="one of config.task.path, config.task.tfds, config.task.digits",
        found="none of them",
        fix="give a folder that holds train/CLASS/*.jpg: --config.task.path=DIR",
    )


def from_tfds(
    dataset: str,
    splits: Mapping[str, str],
    data_dir: str | None = None,
    name: str = "",
    limit: int = 0,
) -> Task:
    """Takes images from TensorFlow Datasets.

    Args:
      dataset: A name TFDS knows, with a version: "caltech101:3.*.*".
      splits: TFDS split expressions: {"train": "train", "test": "test"}.
      data_dir: Where TFDS keeps data sets; its own default if None.
      name: The task's name; by default the data set's.
      limit: Only the first so many images of each split; 0 for all.

    Raises:
      InputError: The data set is neither prepared on this machine nor to be had, is
        not one of labeled images, or has no such split.
    """
    if "train" not in splits:
        raise InputError(
            "No training images are named",
            where="config.task.train",
            expected="a TFDS split expression",
            found="nothing",
            fix="such as --config.task.train='train[:90%]'",
        )
    tensorflow()
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset, data_dir=data_dir, try_gcs=False)
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises many kinds, for network and names alike.
        raise InputError(
            f"TFDS cannot provide {dataset!r}",
            where="config.task.tfds",
            expected="a data set that is prepared here, or can be downloaded",
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            if str(error).strip()
            else type(error).__name__,
            fix="prepare it on a machine with network and copy it to "
            f"{data_dir or '~/tensorflow_datasets'} (config.task.data_dir), or give "
            "the images as a folder: --config.task.path=DIR",
        ) from error
    classes = _classes(dataset, builder.info.features)
    built = {
        role: _tfds_split(builder, role, expression, limit)
        for role, expression in splits.items()
    }
    origin = f"TFDS {builder.info.full_name}, " + ", ".join(
        f"{role} = {expression}" for role, expression in splits.items()
    )
    if "val" in splits:
        both = f"{splits['train']}+{splits['val']}"
        built["trainval"] = _tfds_split(builder, "trainval", both, limit)
    notes = {}
    learnt = " + ".join(splits[role] for role in ("train", "val") if role in splits)
    if "test" in splits and not limit:
        shared = sum(
            _overlap(builder, splits["test"], splits[role])
            for role in ("train", "val")
            if role in splits
        )
        if shared:
            notes["splits"] = (
                f"{shared} of {built['test'].num_examples} test images are training "
                f"images too, so accuracies are too high: {splits['test']} and {learnt}"
            )
    return Task(name or builder.name, classes, built, origin, notes)


def from_digits(digits: Sequence[int], name: str = "", drawings: int = 1) -> Task:
    """Takes scikit-learn's handwritten digits: real images, no download.

    UCI ML hand-written digits, 1797 of them, 8 x 8 pixels each. A fixed half of each
    class is `train`, the other `test`. Each is drawn on a larger canvas at a place and
    a size of its own (drawn at random, the same in every run), so that, as among
    photographs, pixels alone do not tell the class.

    Args:
      digits: Which of 0 to 9 are the classes.
      name: The task's name.
      drawings: How often each digit of `train` is drawn.

    Raises:
      InputError: They are not two or more different digits.
    """
    if len(digits) < 2 or sorted(set(digits)) != sorted(set(digits) & set(range(10))):
        raise InputError(
            "Two or more digits are needed to tell apart",
            where="config.task.digits",
            expected="different whole numbers from 0 to 9, such as (0, 1, 2)",
            found=str(digits),
            fix="--config.task.digits='(0, 1, 2)'",
        )
    from sklearn.datasets import load_digits

    data = load_digits()
    # 0 to 16 levels of ink; white on black, as scikit-learn shows them.
    images = data.images * (255 / 16)
    chosen: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    random = np.random.default_rng(0)
    for digit in digits:
        members = random.permutation(np.flatnonzero(data.target == digit))
        half = len(members) // 2
        chosen["train"].append(members[:half])
        chosen["test"].append(members[half:])
    position = {digit: label for label, digit in enumerate(digits)}
    splits = {}
    for split, parts in chosen.items():
        rows = np.concatenate(parts)
        rows = np.tile(rows, drawings if split == "train" else 1)
        labels = np.asarray([position[d] for d in data.target[rows]], np.int32)
        drawn = np.stack([_draw(images[row], random) for row in rows])
        splits[split] = array_split(split, drawn, labels)
    classes = tuple(str(digit) for digit in digits)
    origin = "scikit-learn's handwritten digits"
    return Task(name or "digits", classes, splits, origin)


def _draw(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draws one digit, float [8, 8], somewhere on a canvas: uint8 [S, S, 3]."""
    size = int(random.integers(_CANVAS // 3, _CANVAS * 3 // 4))
    top, left = random.integers(0, _CANVAS - size + 1, 2)
    drawn = scipy.ndimage.zoom(
        image, size / len(image), order=1, grid_mode=True, mode="nearest"
    )
    canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)
    canvas[top : top + size, left : left + size] = np.rint(drawn.clip(0, 255))
    return np.repeat(canvas[..., None], 3, axis=-1)


def hold_out(split: Split) -> tuple[Split, Split]:
    """Divides a split for want of one to compare settings on.

    A tenth of the examples, as in VTAB's own divisions, drawn at random and the same
    in every run.

    Returns:
      (the others, the tenth), named after the split: "train_kept", "train_held".

    Raises:
      InputError: The split is a stream, of which nothing can be picked.
    """
    if split.subset is None:
        raise InputError(
            "There are no validation images to choose a setting by",
            where="config.task.val",
            fix="name some: --config.task.train='train[:90%]' "
            "--config.task.val='train[90%:]'; or choose by test accuracy: "
            "--config.finetune.select_by=test",
        )
    order = np.random.default_rng(0).permutation(split.num_examples)
    count = math.ceil(split.num_examples / 10)
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    return split.subset(f"{split.name}_kept", kept), split.subset(
        f"{split.name}_held", held
    )


def _limited(task: Task, limit: int) -> Task:
    """The task with at most `limit` images of each split; 0 for all."""
    if not limit:
        return task
    splits = {}
    for name, split in task.splits.items():
        assert split.subset is not None  # Folders and arrays can be picked from.
        order = np.random.default_rng(0).permutation(split.num_examples)
        splits[name] = split.subset(name, np.sort(order[:limit]))
    origin = f"{task.origin}, at most {limit} images of a split"
    return dataclasses.replace(task, splits=splits, origin=origin)


def _classes(dataset: str, features: Any) -> tuple[str, ...]:
    """Names of the classes of a TFDS data set of labeled images."""
    known = dict(features.items())
    names = getattr(known.get("label"), "names", None)
    if "image" not in known or names is None:
        raise InputError(
            "A TFDS data set is not one of images with one class each",
            where="config.task.tfds",
            expected="the features `image` and `label`, a class",
            found=f"{dataset} with " + ", ".join(sorted(known)),
            fix="give the images as a folder: --config.task.path=DIR",
        )
    return tuple(names)


def _overlap(builder: Any, first: str, second: str) -> int:
    """How many examples two split expressions have in common."""

    def ranges(expression: str) -> list[tuple[str, int, int]]:
        return [
            (
                part.filename,
                part.skip,
                # Older releases write -1 for all that follow.
                part.skip + part.take if part.take >= 0 else part.examples_in_shard,
            )
            for part in builder.info.splits[expression].file_instructions
        ]

    return sum(
        max(0, min(end, other_end) - max(start, other_start))
        for file, start, end in ranges(first)
        for other, other_start, other_end in ranges(second)
        if file == other
    )


def _tfds_split(
    builder: Any,
    name: str,
    expression: str,
    limit: int,
    left_out: Mapping[int, str] | None = None,
) -> Split:
    import tensorflow_datasets as tfds

    try:
        stored = builder.info.splits[expression].num_examples
    except (KeyError, ValueError, AssertionError) as error:
        raise InputError(
            "A TFDS data set has no such split",
            where=f"config.task.{name}",
            expected="an expression over " + ", ".join(builder.info.splits),
            found=expression,
            fix="such as --config.task.train='train[:90%]'",
        ) from error
    stored = min(stored, limit or stored)
    reasons = dict(left_out or {})
    num_examples = stored - len(reasons)
    described = [builder.info.full_name, expression, str(stored)]
    described += [str(position) for position in sorted(reasons)]

    def examples(seed: int | None, index: int, count: int, skip: int) -> Any:
        tf = tensorflow()
        # Undecoded, so that JPEG decoding is the same as for a folder of images.
        dataset = builder.as_dataset(
            split=expression,
            decoders={"image": tfds.decode.SkipDecoding()},
            shuffle_files=False,
        )
        dataset = dataset.take(stored).enumerate()
        if reasons:
            absent = tf.constant(sorted(reasons), tf.int64)
            dataset = dataset.filter(lambda i, _: tf.reduce_all(i != absent))
            dataset = dataset.map(lambda _, example: example).enumerate()
        if seed is not None:
            buffer = min(num_examples, 16_384)
            dataset = dataset.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)
        return (
            dataset.shard(count, index)
            .skip(skip)
            .map(
                lambda i, example: {
                    "image": preprocess.decode(example["image"]),
                    "label": tf.cast(example["label"], tf.int32),
                    "index": i,
                },
                num_parallel_calls=tf.data.AUTOTUNE,
            )
        )

    def without(more: Mapping[int, str]) -> Split:
        kept = [i for i in range(stored) if i not in reasons]
        found = {kept[position]: why for position, why in more.items()}
        return _tfds_split(builder, name, expression, limit, {**reasons, **found})

    return Split(
        name,
        num_examples,
        files.digest(*described),
        examples,
        without=without,
        unreadable={f"{expression}, example {i}": why for i, why in reasons.items()},
    )
