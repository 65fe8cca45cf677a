"""Tasks: labeled images with fixed splits.

A task comes from a folder of images, from TensorFlow Datasets (TFDS), or from arrays in
memory (scikit-learn's digits, which need no download). The measures use the training
images. A fine-tuned network is evaluated on the test images.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.ndimage
from etils import epath

from rankckpt_jax.data import decode, targets
from rankckpt_jax.data.folders import from_folder
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.data.splits import MAX_UNREADABLE, Example, Split, Task, array_split
from rankckpt_jax.errors import InputError, some
from rankckpt_jax.storage import files, network

_CANVAS = 48
"""Side of the images that `from_digits` draws, in pixels."""

_SAMPLE_BYTES = 4096


def load(config: Any) -> Task:
    """Return the task that `config.task` describes.

    Args:
      config: Fields as in `config.task` of `configs/default.py`. `path` (a folder) has
        precedence over `tfds` (a data set), which has precedence over `digits`.

    Raises:
      InputError: None of the three is set, or the images cannot be used.
    """
    limit = config.get("limit", 0)
    most = config.get("max_unreadable", MAX_UNREADABLE)
    target = config.get("target", targets.AUTO)
    targets.check(target)
    for field, value, valid, expected in (
        ("limit", limit, limit >= 0, "at least 0"),
        ("max_unreadable", most, 0 <= most <= 1, "a share in [0, 1]"),
    ):
        if not valid:
            raise InputError(
                f"Invalid `config.task.{field}`",
                where=f"config.task.{field}",
                expected=expected,
                found=str(value),
                fix="omit it to use the default",
            )
    if config.path:
        task = from_folder(config.path, config.name, most, target)
        return _with_imbalance(_limited(task, limit))
    if target not in (targets.AUTO, "classes"):
        raise InputError(
            "Only a folder of images can have labels of this kind",
            where="config.task.target",
            expected="auto or classes for TFDS and digits",
            found=target,
            fix="pass the images as a folder with labels.csv: --config.task.path=DIR",
        )
    if config.tfds:
        return from_tfds(
            config.tfds,
            {role: config[role] for role in ("train", "val", "test") if config[role]},
            data_dir=config.data_dir or None,
            name=config.name,
            limit=limit,
        )
    if config.digits:
        task = from_digits(config.digits, config.name, config.get("drawings", 1))
        return _limited(task, limit)
    raise InputError(
        "The config does not specify any images",
        where="config.task",
        expected="one of config.task.path, config.task.tfds, config.task.digits",
        found="none of them",
        fix="pass a folder that contains train/CLASS/*.jpg: --config.task.path=DIR",
    )


def from_tfds(
    dataset: str,
    splits: Mapping[str, str],
    data_dir: str | None = None,
    name: str = "",
    limit: int = 0,
) -> Task:
    """Return a task from TensorFlow Datasets.

    Args:
      dataset: Name of the data set in TFDS, such as "caltech101:3.*.*".
      splits: TFDS split expressions, such as {"train": "train", "test": "test"}.
      data_dir: Directory of prepared data sets; None for TFDS's default.
      name: Name of the task; by default that of the data set.
      limit: Number of images of each split to use, from its start; 0 for all.

    Raises:
      InputError: The data set cannot be prepared or downloaded, has no labeled images,
        or does not have such a split.
    """
    if "train" not in splits:
        raise InputError(
            "`config.task.train` is not set",
            where="config.task.train",
            expected="a TFDS split expression",
            fix="for example --config.task.train='train[:90%]'",
        )
    tensorflow()
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset, data_dir=data_dir, try_gcs=False)
        _check_reachable(builder)
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises errors of many types.
        raise InputError(
            f"TFDS cannot provide {dataset!r}",
            where="config.task.tfds",
            expected="a data set that is prepared on this machine or can be downloaded",
            # Instructions for a download by hand are on several lines.
            found=" ".join(f"{type(error).__name__}: {error}".split()),
            fix="prepare it on a machine with internet access and copy it to "
            f"{data_dir or '~/tensorflow_datasets'} (config.task.data_dir), or pass "
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
    train_roles = [role for role in ("train", "val") if role in splits]
    if "test" in splits and not limit:
        shared = sum(
            _overlap(builder, splits["test"], splits[role]) for role in train_roles
        )
        if shared:
            train = " + ".join(splits[role] for role in train_roles)
            notes["splits"] = (
                f"{shared} of {built['test'].num_examples} test images are training "
                f"images too, so accuracies are too high: {splits['test']} and "
                f"{train}; set config.task.test to other images"
            )
    return Task(name or builder.name, classes, built, origin, notes)


def _check_reachable(builder: Any) -> None:
    """Raise ConnectionError if none of the servers that have a data set answers.

    TFDS would retry for minutes.
    """
    if builder.is_prepared() or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    servers = {urllib.parse.urljoin(url, "/") for url in builder.url_infos}
    if servers and not any(map(network.reachable, sorted(servers))):
        raise ConnectionError(f"no answer from {some(sorted(servers))}")


def from_digits(digits: Sequence[int], name: str = "", drawings: int = 1) -> Task:
    """Return a task from scikit-learn's handwritten digits, without a download.

    The source is the UCI data set of 1797 real images of 8 x 8 pixels. A fixed half of
    each class is `train`, the other half `test`. Each digit is drawn on a larger canvas
    at a random position and size (the same in every run), so that single pixels do not
    determine the class.

    Args:
      digits: Classes, from 0 to 9.
      name: Name of the task.
      drawings: Number of drawings of each digit of `train`.

    Raises:
      InputError: `digits` are not two or more different digits.
    """
    if len(digits) < 2 or sorted(set(digits)) != sorted(set(digits) & set(range(10))):
        raise InputError(
            "A task needs at least two different digits",
            where="config.task.digits",
            expected="different integers from 0 to 9",
            found=str(digits),
            fix="for example --config.task.digits='(0, 1, 2)'",
        )
    from sklearn.datasets import load_digits

    data = load_digits()
    # Levels 0 to 16, white on black.
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
    """Draw one digit, float [8, 8], at a random place: uint8 [S, S, 3]."""
    size = int(random.integers(_CANVAS // 2, _CANVAS + 1))
    top, left = random.integers(0, _CANVAS - size + 1, 2)
    drawn = scipy.ndimage.zoom(
        image, size / len(image), order=1, grid_mode=True, mode="nearest"
    )
    canvas = np.zeros((_CANVAS, _CANVAS), np.uint8)
    canvas[top : top + size, left : left + size] = np.rint(drawn.clip(0, 255))
    return np.repeat(canvas[..., None], 3, axis=-1)


def hold_out(split: Split, seed: int = 0) -> tuple[Split, Split]:
    """Hold out a tenth of a split for validation, as VTAB does.

    Args:
      split: The examples.
      seed: Seed of the random choice. The tenth is the same in every run with it.

    Returns:
      (the remaining examples, the tenth), named "train_kept" and "train_held" if the
      split is "train".

    Raises:
      InputError: The split is a stream, whose examples cannot be selected.
    """
    if split.subset is None:
        raise InputError(
            "No validation images to select hyperparameters with",
            where="config.task.val",
            fix="set --config.task.train='train[:90%]' and "
            "--config.task.val='train[90%:]', or select by test accuracy with "
            "--config.finetune.select_by=test",
        )
    order = np.random.default_rng(seed).permutation(split.num_examples)
    count = math.ceil(split.num_examples / 10)
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    return split.subset(f"{split.name}_kept", kept), split.subset(
        f"{split.name}_held", held
    )


def _limited(task: Task, limit: int) -> Task:
    """Return the task with at most `limit` images of each split; 0 for all."""
    if not limit:
        return task
    splits = {}
    for name, split in task.splits.items():
        assert split.subset is not None  # Folders and arrays support it.
        order = np.random.default_rng(0).permutation(split.num_examples)
        splits[name] = split.subset(name, np.sort(order[:limit]))
    origin = f"{task.origin}, at most {limit} images of a split"
    return dataclasses.replace(task, splits=splits, origin=origin)


# Smallest share of the largest class, and its multiple of the mean share, from which a
# task is called imbalanced.
_LARGEST_CLASS, _ABOVE_MEAN = 0.5, 1.5


def _with_imbalance(task: Task) -> Task:
    """Add a note if a network that always answers the largest class is often right."""
    train, test = task.splits["train"], task.splits["test"]
    if task.target != "classes" or train.labels is None or test.labels is None:
        return task
    counts = np.bincount(train.labels, minlength=task.num_classes)
    largest, share = int(counts.argmax()), float(counts.max() / counts.sum())
    if share < max(_LARGEST_CLASS, _ABOVE_MEAN / task.num_classes):
        return task
    reached = float(np.mean(test.labels == largest))
    note = (
        f"the largest class, {task.class_names[largest]!r}, has {share:.0%} of the "
        f"training images, and the majority class alone reaches an accuracy of "
        f"{reached:.1%}; compare by config.finetune.metric=balanced_accuracy"
    )
    notes = dict(task.notes)
    notes["classes"] = "; ".join(filter(None, (notes.get("classes", ""), note)))
    return dataclasses.replace(task, notes=notes)


def _classes(dataset: str, features: Any) -> tuple[str, ...]:
    """Return the names of the classes of a TFDS data set."""
    by_name = dict(features.items())
    names = getattr(by_name.get("label"), "names", None)
    if "image" not in by_name or names is None:
        raise InputError(
            f"The TFDS data set {dataset!r} has no images with one class each",
            where="config.task.tfds",
            expected="the features `image` and `label`, a class",
            found=f"{dataset} with " + ", ".join(sorted(by_name)),
            fix="pass the images as a folder: --config.task.path=DIR",
        )
    return tuple(names)


def _overlap(builder: Any, first: str, second: str) -> int:
    """Return the number of examples that two split expressions have in common."""

    def ranges(expression: str) -> list[tuple[str, int, int]]:
        return [
            (
                part.filename,
                part.skip,
                # Older releases write -1 for all remaining examples.
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


def _sample_files(builder: Any, expression: str) -> Iterator[str]:
    """Yield the size and some bytes of each file that holds examples of a split.

    A prepared data set can be too large to be read for every run. A data set that is
    prepared again with other images differs in the sizes of its files, or in the bytes
    at their start, middle and end.
    """
    instructions = builder.info.splits[expression].file_instructions
    for name in dict.fromkeys(part.filename for part in instructions):
        path = epath.Path(name)
        if not path.exists():
            continue
        size, _ = files.size_and_time(path)
        yield str(size)
        with path.open("rb") as file:
            for start in (0, size // 2, max(size - _SAMPLE_BYTES, 0)):
                file.seek(start)
                yield files.digest(file.read(_SAMPLE_BYTES))


def _tfds_split(
    builder: Any,
    name: str,
    expression: str,
    limit: int,
    corrupt: Mapping[int, str] | None = None,
) -> Split:
    import tensorflow_datasets as tfds

    try:
        stored = builder.info.splits[expression].num_examples
    except (KeyError, ValueError, AssertionError) as error:
        raise InputError(
            f"Unknown TFDS split {expression!r}",
            where=f"config.task.{name}",
            expected="an expression over " + ", ".join(builder.info.splits),
            found=expression,
            fix="for example --config.task.train='train[:90%]'",
        ) from error
    stored = min(stored, limit or stored)
    reasons = dict(corrupt or {})
    num_examples = stored - len(reasons)

    def identify() -> str:
        described = [builder.info.full_name, expression, str(stored)]
        described += [str(position) for position in sorted(reasons)]
        return files.digest(*described, *_sample_files(builder, expression))

    def examples(
        seed: int | None, index: int, count: int, skip: int
    ) -> Iterator[Example]:
        tf = tensorflow()
        # `decode` decodes, so that pixels equal those of a folder.
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
        dataset = dataset.shard(count, index).skip(skip)
        try:
            for i, example in dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
                read = functools.partial(decode.decode, example["image"])
                yield Example(int(i), int(example["label"]), read)
        except tf.errors.OpError as error:
            raise InputError(
                "The files of a TFDS data set cannot be read",
                where=f"{builder.info.full_name}, {expression}",
                found=str(error.message).splitlines()[0],
                fix="prepare or copy the data set again",
            ) from error

    def without(more: Mapping[int, str]) -> Split:
        kept = [i for i in range(stored) if i not in reasons]
        more = {kept[position]: why for position, why in more.items()}
        return _tfds_split(builder, name, expression, limit, {**reasons, **more})

    return Split(
        name,
        num_examples,
        identify,
        examples,
        without=without,
        unreadable={f"{expression}, example {i}": why for i, why in reasons.items()},
    )
