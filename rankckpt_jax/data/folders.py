"""Tasks from folders of images, `PATH/{train,val,test}/CLASS/*`."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rankckpt_jax.data import preprocess
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.data.splits import (
    MAX_UNREADABLE,
    Split,
    Task,
    check_unreadable,
    order,
)
from rankckpt_jax.errors import InputError, some
from rankckpt_jax.storage import files

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")

HELD_OUT_FRACTION = 0.2
"""Share of each class of `train` that becomes `test` if the folder has no `test`."""

# Image formats that some installations do not decode, or decode differently.
_UNSUPPORTED_SUFFIXES = (".avif", ".heic", ".jp2", ".jxl", ".tif", ".tiff", ".webp")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")

# Files opened at the same time, because each waits on a network file system.
_THREADS = 16
_SAMPLE_BYTES = 4096

ByClass = dict[str, list[pathlib.Path]]
Digest = Callable[[pathlib.Path], str]


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """Facts from the first bytes of a file.

    Attributes:
      size: Size in bytes.
      why: Why the file is not an image; empty if it may be one.
    """

    size: int
    why: str


def from_folder(
    path: str, name: str = "", max_unreadable: float = MAX_UNREADABLE
) -> Task:
    """Return the task of `path/{train,val,test}/CLASS/*`.

    Without `test`, the images of `val` become the test images. Without either, a fifth
    of each class of `train` is held out. It is chosen by a hash of the file names, so
    that the choice does not depend on the order of files or on other files.

    Files that cannot be opened, or do not start with an image signature, are dropped.
    `corrupt_images` finds those that cannot be decoded.

    Args:
      path: A local directory.
      name: Name of the task; by default that of the directory.
      max_unreadable: Largest share of a split that may be dropped, in [0, 1].

    Raises:
      InputError: The directory does not exist or has fewer than two classes, a class
        has no training images, another split has a class that `train` lacks, or too
        many files are not images.
    """
    root = pathlib.Path(path).expanduser()
    if not (root / "train").is_dir():
        raise InputError(
            "No training images",
            where=str(root / "train"),
            expected="a folder that contains train/CLASS/*.jpg",
            found="no such folder" if not root.exists() else _listing(root),
            fix="create one sub-folder of `train` per class, and put its images there",
        )
    names = [s for s in ("train", "val", "test") if (root / s).is_dir()]
    by_split = {split: _images_by_class(root / split) for split in names}
    classes = tuple(sorted(by_split["train"]))
    if len(classes) < 2:
        raise InputError(
            "A classification task needs at least two classes",
            where=str(root / "train"),
            expected="train/CLASS/*.jpg of at least two classes",
            found=f"{len(classes)} folder(s): {', '.join(classes) or '-'}",
            fix="create one sub-folder of `train` per class, and put its images there",
        )
    for split, by_class in by_split.items():
        if unknown := sorted({c for c, fs in by_class.items() if fs} - set(classes)):
            raise InputError(
                f"Classes of {split!r} without training images",
                where=str(root / split),
                expected="only classes of `train`: " + some(classes),
                found=some(unknown),
                fix="use the same class names in every split",
            )
    infos = _read_infos(by_split)
    # Splits share images ("trainval"), and each file is read once.
    digest = functools.cache(_digest)
    corrupt: dict[str, dict[str, str]] = {}
    for split, by_class in by_split.items():
        bad = {f: infos[f].why for fs in by_class.values() for f in fs if infos[f].why}
        corrupt[split] = {str(f.relative_to(root)): why for f, why in bad.items()}
        by_split[split] = {
            c: [file for file in fs if file not in bad] for c, fs in by_class.items()
        }
    origin = f"folder {root}"
    if "test" not in by_split and "val" in by_split:
        by_split["test"] = by_split.pop("val")
        corrupt["test"] = corrupt.pop("val")
        origin += ", its val images as test"
    elif "test" not in by_split:
        by_split["train"], by_split["test"] = _hold_out(by_split["train"])
        origin += f", {HELD_OUT_FRACTION:.0%} of train held out as test"
    splits = {
        split: _folder_split(
            root, split, by_class, classes, corrupt.get(split, {}), digest
        )
        for split, by_class in by_split.items()
    }
    for split_name, made in splits.items():
        check_unreadable(made, max_unreadable, str(root / split_name))
    if empty := sorted(c for c, images in by_split["train"].items() if not images):
        raise InputError(
            "Classes without training images",
            where=str(root / "train"),
            expected="files *" + ", *".join(IMAGE_SUFFIXES) + " in each folder",
            found="; ".join(f"{c!r}: {_contents(root / 'train' / c)}" for c in empty),
            fix="add images, or remove the folders",
        )
    if "val" in by_split:
        train, val = by_split["train"], by_split["val"]
        both = {name: train[name] + val.get(name, []) for name in train}
        dropped = {**corrupt["train"], **corrupt["val"]}
        splits["trainval"] = _folder_split(
            root, "trainval", both, classes, dropped, digest
        )
    notes = _notes(root, names, by_split, infos, digest)
    return Task(name or root.resolve().name, classes, splits, origin, notes)


def _images_by_class(folder: pathlib.Path) -> ByClass:
    """Return the image files of each sub-folder, sorted by path.

    A class may be a link to a directory. Links below it are not followed, because they
    could form a circle or count a file twice.
    """
    return {
        child.name: sorted(
            path
            for path in child.rglob("*")
            if path.suffix.lower() in IMAGE_SUFFIXES and not _hidden(path, child)
        )
        for child in sorted(folder.iterdir())
        if child.is_dir() and not child.name.startswith(".")
    }


def _hidden(path: pathlib.Path, root: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _read_infos(by_split: Mapping[str, ByClass]) -> dict[pathlib.Path, FileInfo]:
    every = [
        f for by_class in by_split.values() for fs in by_class.values() for f in fs
    ]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(every, threads.map(_read_info, every), strict=True))


def _read_info(path: pathlib.Path) -> FileInfo:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would block.
            return FileInfo(0, "not a regular file")
        with path.open("rb") as file:
            start = file.read(max(map(len, _SIGNATURES)))
    except OSError as error:
        return FileInfo(0, error.strerror or str(error))
    if not start:
        return FileInfo(0, "empty")
    is_image = start.startswith(_SIGNATURES)
    return FileInfo(
        status.st_size, "" if is_image else "not a JPEG, PNG, GIF or BMP file"
    )


def _notes(
    root: pathlib.Path,
    names: Sequence[str],
    by_split: Mapping[str, ByClass],
    infos: Mapping[pathlib.Path, FileInfo],
    digest: Digest,
) -> dict[str, str]:
    """Return warnings about a usable folder, by topic."""
    notes = {}
    sentences = []
    if alone := [c for c, images in by_split["train"].items() if len(images) == 1]:
        sentences.append(
            f"{len(alone)} of {len(by_split['train'])} classes have a single training "
            "image, too few to estimate their variance; add images: "
            + some(map(repr, alone))
        )
    for split in by_split.keys() - {"train"}:
        if absent := [c for c in by_split["train"] if not by_split[split].get(c)]:
            sentences.append(
                f"{len(absent)} of {len(by_split['train'])} classes have no image in "
                f"{split}, so accuracies ignore them; add images: "
                + some(map(repr, absent))
            )
    if sentences:
        notes["classes"] = "; ".join(sentences)
    others = collections.Counter(
        path.suffix.lower()
        for split in names
        for path in (root / split).glob("*/**/*")
        if path.suffix.lower() in _UNSUPPORTED_SUFFIXES and not _hidden(path, root)
    )
    if others:
        counts = ", ".join(f"{n} {suffix}" for suffix, n in sorted(others.items()))
        notes["images"] = (
            f"files in unsupported formats are ignored: {counts}; convert them to JPEG "
            "or PNG"
        )
    train_files = [
        f for s in by_split.keys() - {"test"} for fs in by_split[s].values() for f in fs
    ]
    test_files = [file for images in by_split["test"].values() for file in images]
    if duplicates := _find_duplicates(test_files, train_files, infos, digest):
        shown = [
            f"{str(a.relative_to(root))!r} = {str(b.relative_to(root))!r}"
            for a, b in duplicates
        ]
        notes["splits"] = (
            f"{len(duplicates)} of {len(test_files)} test images are byte-for-byte "
            "copies of training images, so accuracies are too high; remove the copies: "
            + some(shown)
        )
    return notes


def _find_duplicates(
    first: Iterable[pathlib.Path],
    second: Iterable[pathlib.Path],
    infos: Mapping[pathlib.Path, FileInfo],
    digest: Digest,
) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Return pairs of a file of `first` and one of `second` with the same bytes.

    Files are compared by size, then by a few kilobytes from the middle, where the
    pixels are. Only files that are still equal are read to the end.
    """
    keys: tuple[Callable[[pathlib.Path], Any], ...] = (
        lambda file: infos[file].size,
        lambda file: _middle(file, infos[file].size),
        digest,
    )
    groups = [(list(first), list(second))]
    for key in keys:
        finer: dict[Any, tuple[list[pathlib.Path], list[pathlib.Path]]] = {}
        for number, group in enumerate(groups):
            for side, paths in enumerate(group):
                for file in paths:
                    place = finer.setdefault((number, key(file)), ([], []))
                    place[side].append(file)
        groups = [group for group in finer.values() if all(group)]
    return [(file, others[0]) for paths, others in groups for file in paths]


def _middle(path: pathlib.Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(size - _SAMPLE_BYTES, 0) // 2)
        return file.read(_SAMPLE_BYTES)


def _digest(path: pathlib.Path) -> str:
    try:
        return files.digest_file(path)
    except OSError as error:
        raise InputError(
            "An image cannot be read",
            where=str(path),
            found=error.strerror or str(error),
            fix="copy it again, or remove it",
        ) from error


def _hold_out(by_class: ByClass) -> tuple[ByClass, ByClass]:
    train, test = {}, {}
    for name, paths in by_class.items():
        ordered = sorted(
            paths, key=lambda file: hashlib.sha256(os.fsencode(file.name)).digest()
        )
        held = max(min(len(paths) - 1, math.ceil(HELD_OUT_FRACTION * len(paths))), 0)
        test[name] = sorted(ordered[:held])
        train[name] = sorted(ordered[held:])
    return train, {name: paths for name, paths in test.items() if paths}


def _folder_split(
    root: pathlib.Path,
    name: str,
    by_class: Mapping[str, list[pathlib.Path]],
    classes: Sequence[str],
    unreadable: Mapping[str, str],
    digest: Digest,
) -> Split:
    label_of = {class_name: label for label, class_name in enumerate(classes)}
    pairs = [(f, label_of[c]) for c, paths in by_class.items() for f in paths]
    return _files_split(root, name, pairs, unreadable, digest)


def _files_split(
    root: pathlib.Path,
    name: str,
    pairs: Sequence[tuple[pathlib.Path, int]],
    unreadable: Mapping[str, str],
    digest: Digest,
) -> Split:
    # Bytes, because a file name is not always valid text.
    paths = np.asarray([os.fsencode(file) for file, _ in pairs], dtype=object)
    labels = np.asarray([label for _, label in pairs], np.int32)

    def identify() -> str:
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
            contents = threads.map(digest, [file for file, _ in pairs])
            described = [
                f"{file.relative_to(root)}\0{content}\0{label}"
                for (file, label), content in zip(pairs, contents, strict=True)
            ]
        return files.digest(*described)

    def examples(seed: int | None, index: int, count: int, skip: int) -> Any:
        tf = tensorflow()
        rows = order(len(labels), seed)[index::count][skip:]
        return tf.data.Dataset.from_tensor_slices(
            {
                "path": tf.constant(paths[rows], tf.string),
                "label": labels[rows],
                "index": rows,
            }
        ).map(
            lambda example: {
                "image": preprocess.decode(tf.io.read_file(example["path"])),
                "label": example["label"],
                "index": example["index"],
            },
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def subset(name: str, rows: np.ndarray) -> Split:
        return _files_split(
            root, name, [pairs[row] for row in rows], unreadable, digest
        )

    def without(reasons: Mapping[int, str]) -> Split:
        kept = [pair for row, pair in enumerate(pairs) if row not in reasons]
        more = {
            str(pairs[row][0].relative_to(root)): why for row, why in reasons.items()
        }
        return _files_split(root, name, kept, {**unreadable, **more}, digest)

    return Split(
        name,
        len(labels),
        identify,
        examples,
        subset,
        without,
        unreadable,
    )


def _contents(folder: pathlib.Path) -> str:
    """Describe the content of a folder without images."""
    suffixes = collections.Counter(
        path.suffix.lower() or "without a suffix"
        for path in folder.rglob("*")
        if path.is_file()
    )
    if not suffixes:
        return "an empty folder"
    return "files " + ", ".join(f"{n} {suffix}" for suffix, n in suffixes.items())


def _listing(folder: pathlib.Path) -> str:
    names = sorted(child.name for child in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"a folder that contains {shown}" if names else "an empty folder"
