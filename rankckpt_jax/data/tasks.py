"""A `Task`: labelled images with fixed splits, wherever they come from.

Three sources stand behind one type: a folder of images, a TFDS data set, and arrays in
memory (scikit-learn's digits, which need no download). A task's training images are
what the measures see; its test images are what a fine-tuned network is judged by.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.ndimage

from rankckpt_jax import store
from rankckpt_jax.data import preprocess
from rankckpt_jax.errors import InputError
from rankckpt_jax.lazy_tensorflow import tensorflow

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")

HELD_OUT_FRACTION = 0.2
"""Share of each class of `train` that becomes `test` where a folder has no `test`."""

_CANVAS = 48
"""Side in pixels of the images that `from_digits` draws."""

Examples = Callable[[int | None, int, int, int], Any]
"""(shuffle_seed, process_index, process_count, skip) -> tf.data.Dataset."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Some of a task's images, in a fixed order.

    Attributes:
      name: "train", "val" or "test".
      num_examples: How many images.
      fingerprint: Digest of which images and labels these are.
      examples: `examples(shuffle_seed, process_index, process_count, skip)` is a
        `tf.data.Dataset` of {"image": uint8 [h, w, 3], "label": int32, "index":
        int64}, one pass over every `process_count`-th example from `process_index`
        on, in order or, with a seed, shuffled before the division, after skipping
        `skip` of this process's examples. `index` is the position in the split.
      subset: `subset(name, rows)` is the split of the examples at these positions; None
        where examples cannot be picked out, as in a stream.
    """

    name: str
    num_examples: int
    fingerprint: str
    examples: Examples
    subset: Callable[[str, np.ndarray], Split] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """An image classification task.

    Attributes:
      name: Used as the directory's name in the store.
      class_names: Class of each label; labels are positions in it.
      splits: By name: "train" and "test"; where there is one, "val", and "trainval",
        the images of both "train" and "val".
      description: One line that says where the images and the splits come from.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    description: str

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.class_names)


def load(config: Any) -> Task:
    """Builds the task that a config's `task` section describes.

    Args:
      config: The fields of `configs/default.py`'s `config.task`: `path` (a folder)
        goes before `tfds` (a data set's name), which goes before `digits`.

    Raises:
      InputError: None of the three is set, or what they name cannot be used.
    """
    limit = config.get("limit", 0)
    if config.path:
        return _limited(from_folder(config.path, name=config.name), limit)
    if config.tfds:
        return from_tfds(
            config.tfds,
            {name: config[name] for name in ("train", "val", "test") if config[name]},
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
        mend="give a folder that holds train/CLASS/*.jpg: --config.task.path=DIR",
    )


def from_folder(path: str, name: str = "") -> Task:
    """Takes images from `path/{train,val,test}/CLASS/*`.

    Without `test`, the images of `val` are tested on; without either, a fifth of each
    class of `train` is held out, chosen by a hash of the file's name, so that the
    choice neither depends on the order of files nor changes as files are added.

    Args:
      path: The folder; a local directory.
      name: The task's name; by default the folder's.

    Raises:
      InputError: There is no such folder, no image or only one class in it, or a
        class of one split that is not a class of `train`.
    """
    root = pathlib.Path(path).expanduser()
    if not (root / "train").is_dir():
        raise InputError(
            "No training images",
            where=str(root / "train"),
            expected="a folder that holds train/CLASS/*.jpg",
            found="no such folder" if not root.exists() else _listing(root),
            mend="make one sub-folder of `train` per class, with its images inside",
        )
    files = {
        split: _images_by_class(root / split)
        for split in ("train", "val", "test")
        if (root / split).is_dir()
    }
    classes = tuple(sorted(files["train"]))
    if len(classes) < 2:
        raise InputError(
            "A classification task needs at least two classes",
            where=str(root / "train"),
            found=f"{len(classes)} folder(s) with images: {', '.join(classes) or '-'}",
        )
    for split, by_class in files.items():
        if unknown := sorted(by_class.keys() - set(classes)):
            raise InputError(
                f"Classes of {split!r} that have no training images",
                where=str(root / split),
                expected="only classes that `train` has",
                found=", ".join(unknown),
            )
    origin = f"folder {root}"
    if "test" not in files and "val" in files:
        files["test"] = files.pop("val")
        origin += ", its val images as test"
    elif "test" not in files:
        files["train"], files["test"] = _hold_out(files["train"])
        origin += f", {HELD_OUT_FRACTION:.0%} of train held out as test"
    splits = {
        split: _folder_split(root, split, by_class, classes)
        for split, by_class in files.items()
    }
    described = _describe(origin, classes, splits)
    if "val" in files:
        train, val = files["train"], files["val"]
        both = {name: train[name] + val.get(name, []) for name in train}
        splits["trainval"] = _folder_split(root, "trainval", both, classes)
    return Task(name or root.resolve().name, classes, splits, described)


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
      InputError: The data set is neither prepared on this machine nor to be had.
    """
    tensorflow()
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(dataset, data_dir=data_dir, try_gcs=False)
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises many kinds, for network and names alike.
        raise InputError(
            f"TFDS cannot provide {dataset!r}",
            where="config.task.tfds",
            found=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            if str(error).strip()
            else type(error).__name__,
            mend="prepare it on a machine with network and copy it to "
            f"{data_dir or '~/tensorflow_datasets'} (config.task.data_dir), or give "
            "the images as a folder: --config.task.path=DIR",
        ) from error
    classes = tuple(builder.info.features["label"].names)
    built = {
        role: _tfds_split(builder, role, expression, limit)
        for role, expression in splits.items()
    }
    origin = f"TFDS {builder.info.full_name}, " + ", ".join(
        f"{role} = {expression}" for role, expression in splits.items()
    )
    described = _describe(origin, classes, built)
    if "val" in splits:
        both = f"{splits['train']}+{splits['val']}"
        built["trainval"] = _tfds_split(builder, "trainval", both, limit)
    return Task(name or builder.name, classes, built, described)


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
    """
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
    return Task(
        name or "digits",
        classes,
        splits,
        _describe("scikit-learn's handwritten digits", classes, splits),
    )


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


def array_split(name: str, images: np.ndarray, labels: np.ndarray) -> Split:
    """Makes a split of images in memory.

    Args:
      name: "train", "val" or "test".
      images: uint8 [N, H, W, 3].
      labels: int [N].
    """
    labels = np.asarray(labels, np.int32)

    def examples(seed: int | None, index: int, count: int, skip: int) -> Any:
        tf = tensorflow()
        order = _order(len(labels), seed)[index::count][skip:]
        return tf.data.Dataset.from_tensor_slices(order).map(
            lambda i: {"image": tf.gather(images, i), "label": labels_of(i), "index": i}
        )

    def labels_of(i: Any) -> Any:
        return tensorflow().gather(labels, i)

    def subset(name: str, rows: np.ndarray) -> Split:
        return array_split(name, images[rows], labels[rows])

    fingerprint = store.digest(images.tobytes(), labels.tobytes())
    return Split(name, len(labels), fingerprint, examples, subset)


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
            mend="name some: --config.task.train='train[:90%]' "
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
    described = f"{task.description}, of which at most {limit} a split are taken"
    return dataclasses.replace(task, splits=splits, description=described)


def _order(num_examples: int, seed: int | None) -> np.ndarray:
    if seed is None:
        return np.arange(num_examples)
    return np.random.default_rng(seed).permutation(num_examples)


def _images_by_class(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Image files of each sub-folder that has any, sorted by their path."""
    found = {}
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            images = sorted(
                path
                for path in child.rglob("*")
                if path.suffix.lower() in IMAGE_SUFFIXES and not _hidden(path, child)
            )
            if images:
                found[child.name] = images
    return found


def _hidden(path: pathlib.Path, root: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _hold_out(
    by_class: Mapping[str, list[pathlib.Path]],
) -> tuple[dict[str, list[pathlib.Path]], dict[str, list[pathlib.Path]]]:
    train, test = {}, {}
    for name, files in by_class.items():
        ordered = sorted(
            files, key=lambda file: hashlib.sha256(file.name.encode()).digest()
        )
        held = min(len(files) - 1, math.ceil(HELD_OUT_FRACTION * len(files)))
        test[name] = sorted(ordered[:held])
        train[name] = sorted(ordered[held:])
    return train, {name: files for name, files in test.items() if files}


def _folder_split(
    root: pathlib.Path,
    name: str,
    by_class: Mapping[str, list[pathlib.Path]],
    classes: Sequence[str],
) -> Split:
    label_of = {class_name: label for label, class_name in enumerate(classes)}
    pairs = [(f, label_of[c]) for c, files in by_class.items() for f in files]
    return _files_split(root, name, pairs)


def _files_split(
    root: pathlib.Path, name: str, pairs: Sequence[tuple[pathlib.Path, int]]
) -> Split:
    paths = np.asarray([str(file) for file, _ in pairs], dtype=object)
    labels = np.asarray([label for _, label in pairs], np.int32)
    described = [
        f"{file.relative_to(root)}\0{file.stat().st_size}\0{label}"
        for file, label in pairs
    ]

    def examples(seed: int | None, index: int, count: int, skip: int) -> Any:
        tf = tensorflow()
        order = _order(len(labels), seed)[index::count][skip:]
        return tf.data.Dataset.from_tensor_slices(
            {"path": paths[order].astype(str), "label": labels[order], "index": order}
        ).map(
            lambda example: {
                "image": preprocess.decode(tf.io.read_file(example["path"])),
                "label": example["label"],
                "index": example["index"],
            },
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def subset(name: str, rows: np.ndarray) -> Split:
        return _files_split(root, name, [pairs[row] for row in rows])

    return Split(name, len(labels), store.digest(*described), examples, subset)


def _tfds_split(builder: Any, name: str, expression: str, limit: int) -> Split:
    import tensorflow_datasets as tfds

    num_examples = builder.info.splits[expression].num_examples
    num_examples = min(num_examples, limit or num_examples)
    fingerprint = store.digest(builder.info.full_name, expression, str(num_examples))

    def examples(seed: int | None, index: int, count: int, skip: int) -> Any:
        tf = tensorflow()
        # Undecoded, so that JPEG decoding is the same as for a folder of images.
        dataset = builder.as_dataset(
            split=expression,
            decoders={"image": tfds.decode.SkipDecoding()},
            shuffle_files=False,
        )
        dataset = dataset.take(num_examples).enumerate()
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

    return Split(name, num_examples, fingerprint, examples)


def _describe(origin: str, classes: Sequence[str], splits: Mapping[str, Split]) -> str:
    counts = ", ".join(f"{s.num_examples} {name}" for name, s in splits.items())
    return f"{origin}: {len(classes)} classes, {counts} images"


def _listing(folder: pathlib.Path) -> str:
    names = sorted(child.name for child in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"a folder that holds {shown}" if names else "an empty folder"
