"""Images in folders, `PATH/{train,val,test}/CLASS/*`, as a `Task`."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
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
"""Share of each class of `train` that becomes `test` where a folder has no `test`."""

# Images, but of formats that not every installation decodes, or decodes alike.
_OTHER_SUFFIXES = (".avif", ".heic", ".jp2", ".jxl", ".tif", ".tiff", ".webp")
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")

# Files opened at a time: on a network's file system each waits for an answer.
_THREADS = 16
_GLIMPSE = 4096

ByClass = dict[str, list[pathlib.Path]]


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """What a look at a file's beginning tells.

    Attributes:
      size: In bytes.
      why: Why it cannot be an image; empty where it may be one.
    """

    size: int
    why: str


def from_folder(
    path: str, name: str = "", max_unreadable: float = MAX_UNREADABLE
) -> Task:
    """Takes images from `path/{train,val,test}/CLASS/*`.

    Without `test`, the images of `val` are tested on; without either, a fifth of each
    class of `train` is held out, chosen by a hash of the file's name, so that the
    choice neither depends on the order of files nor changes as files are added.

    Files that cannot be opened, or do not begin as an image does, are left out. Whether
    the others can be decoded shows when they are; see `readable`.

    Args:
      path: The folder; a local directory.
      name: The task's name; by default the folder's.
      max_unreadable: Largest share of a split that may be left out.

    Raises:
      InputError: There is no such folder, a class without an image or only one class in
        it, a class of one split that is not a class of `train`, or too many files that
        are not images.
    """
    root = pathlib.Path(path).expanduser()
    if not (root / "train").is_dir():
        raise InputError(
            "No training images",
            where=str(root / "train"),
            expected="a folder that holds train/CLASS/*.jpg",
            found="no such folder" if not root.exists() else _listing(root),
            fix="make one sub-folder of `train` per class, with its images inside",
        )
    names = [s for s in ("train", "val", "test") if (root / s).is_dir()]
    by_split = {split: _images_by_class(root / split) for split in names}
    classes = tuple(sorted(by_split["train"]))
    if len(classes) < 2:
        raise InputError(
            "A classification task needs at least two classes",
            where=str(root / "train"),
            expected="train/CLASS/*.jpg of two classes or more",
            found=f"{len(classes)} folder(s): {', '.join(classes) or '-'}",
            fix="make one sub-folder of `train` per class, with its images inside",
        )
    for split, by_class in by_split.items():
        if unknown := sorted({c for c, fs in by_class.items() if fs} - set(classes)):
            raise InputError(
                f"Classes of {split!r} that have no training images",
                where=str(root / split),
                expected="only classes that `train` has: " + some(classes),
                found=some(unknown),
                fix="give each the same name in every split",
            )
    glances = _glance_at(by_split)
    unreadable: dict[str, dict[str, str]] = {}
    for split, by_class in by_split.items():
        bad = {f: glances[f].why for fs in by_class.values() for f in fs}
        bad = {file: why for file, why in bad.items() if why}
        unreadable[split] = {str(f.relative_to(root)): why for f, why in bad.items()}
        by_split[split] = {
            c: [file for file in fs if file not in bad] for c, fs in by_class.items()
        }
    origin = f"folder {root}"
    if "test" not in by_split and "val" in by_split:
        by_split["test"], unreadable["test"] = (
            by_split.pop("val"),
            unreadable.pop("val"),
        )
        origin += ", its val images as test"
    elif "test" not in by_split:
        by_split["train"], by_split["test"] = _hold_out(by_split["train"])
        origin += f", {HELD_OUT_FRACTION:.0%} of train held out as test"
    splits = {
        split: _folder_split(root, split, by_class, classes, unreadable.get(split, {}))
        for split, by_class in by_split.items()
    }
    for made in splits.values():
        check_unreadable(made, max_unreadable, str(root / made.name))
    if empty := sorted(c for c, images in by_split["train"].items() if not images):
        raise InputError(
            "Classes without any training image",
            where=str(root / "train"),
            expected="files *" + ", *".join(IMAGE_SUFFIXES) + " in the folder of each",
            found="; ".join(f"{c!r}: {_contents(root / 'train' / c)}" for c in empty),
            fix="add images, or remove the folder",
        )
    if "val" in by_split:
        train, val = by_split["train"], by_split["val"]
        both = {name: train[name] + val.get(name, []) for name in train}
        left_out = {**unreadable["train"], **unreadable["val"]}
        splits["trainval"] = _folder_split(root, "trainval", both, classes, left_out)
    notes = _notes(root, names, by_split, glances)
    return Task(name or root.resolve().name, classes, splits, origin, notes)


def _images_by_class(folder: pathlib.Path) -> ByClass:
    """Image files of each sub-folder, sorted by their path.

    Links to directories are followed at a class's name alone: below it they may lead
    in circles, or have one file counted twice.
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


def _glance_at(by_split: Mapping[str, ByClass]) -> dict[pathlib.Path, FileInfo]:
    every = [
        f for by_class in by_split.values() for fs in by_class.values() for f in fs
    ]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(every, threads.map(_glance, every), strict=True))


def _glance(path: pathlib.Path) -> FileInfo:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            # Opening a pipe would wait for its other end.
            return FileInfo(0, "not a regular file")
        with path.open("rb") as file:
            start = file.read(max(map(len, _BEGINNINGS)))
    except OSError as error:
        return FileInfo(0, error.strerror or str(error))
    if not start:
        return FileInfo(0, "empty")
    known = start.startswith(_BEGINNINGS)
    return FileInfo(found.st_size, "" if known else "not a JPEG, PNG, GIF or BMP file")


def _notes(
    root: pathlib.Path,
    names: Sequence[str],
    by_split: Mapping[str, ByClass],
    glances: Mapping[pathlib.Path, FileInfo],
) -> dict[str, str]:
    """What makes results of a folder doubtful, though it can be used."""
    notes = {}
    said = []
    if alone := [c for c, images in by_split["train"].items() if len(images) == 1]:
        said.append(
            f"{len(alone)} of {len(by_split['train'])} classes have a single training "
            f"image, which tells nothing of their spread: {some(map(repr, alone))}"
        )
    for split in by_split.keys() - {"train"}:
        if absent := [c for c in by_split["train"] if not by_split[split].get(c)]:
            said.append(
                f"{len(absent)} of {len(by_split['train'])} classes have no image in "
                f"{split}, so accuracies do not count them: {some(map(repr, absent))}"
            )
    if said:
        notes["classes"] = "; ".join(said)
    others = collections.Counter(
        path.suffix.lower()
        for split in names
        for path in (root / split).glob("*/**/*")
        if path.suffix.lower() in _OTHER_SUFFIXES and not _hidden(path, root)
    )
    if others:
        counts = ", ".join(f"{n} {suffix}" for suffix, n in sorted(others.items()))
        notes["images"] = f"files of other formats are not read: {counts}"
    learnt = [
        f for s in by_split.keys() - {"test"} for fs in by_split[s].values() for f in fs
    ]
    tested = [file for images in by_split["test"].values() for file in images]
    if twins := _same_bytes(tested, learnt, glances):
        shown = [
            f"{str(a.relative_to(root))!r} = {str(b.relative_to(root))!r}"
            for a, b in twins
        ]
        notes["splits"] = (
            f"{len(twins)} of {len(tested)} test images are, byte for byte, training "
            f"images too, so accuracies are too high: {some(shown)}"
        )
    return notes


def _same_bytes(
    first: Iterable[pathlib.Path],
    second: Iterable[pathlib.Path],
    glances: Mapping[pathlib.Path, FileInfo],
) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Files of the first with one of the second that has the same bytes.

    Sizes are known, and tell most files apart; of the others a few kilobytes from the
    middle, where pixels are, and only what still looks equal is read to its end.
    """
    keys: tuple[Callable[[pathlib.Path], Any], ...] = (
        lambda file: glances[file].size,
        lambda file: _middle(file, glances[file].size),
        _whole,
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
        file.seek(max(size - _GLIMPSE, 0) // 2)
        return file.read(_GLIMPSE)


def _whole(path: pathlib.Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


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
) -> Split:
    label_of = {class_name: label for label, class_name in enumerate(classes)}
    pairs = [(f, label_of[c]) for c, paths in by_class.items() for f in paths]
    return _files_split(root, name, pairs, unreadable)


def _files_split(
    root: pathlib.Path,
    name: str,
    pairs: Sequence[tuple[pathlib.Path, int]],
    unreadable: Mapping[str, str],
) -> Split:
    # Bytes, since a file's name need not be text.
    paths = np.asarray([os.fsencode(file) for file, _ in pairs], dtype=object)
    labels = np.asarray([label for _, label in pairs], np.int32)
    described = [
        f"{file.relative_to(root)}\0{file.stat().st_size}\0{label}"
        for file, label in pairs
    ]

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
        return _files_split(root, name, [pairs[row] for row in rows], unreadable)

    def without(reasons: Mapping[int, str]) -> Split:
        kept = [pair for row, pair in enumerate(pairs) if row not in reasons]
        more = {
            str(pairs[row][0].relative_to(root)): why for row, why in reasons.items()
        }
        return _files_split(root, name, kept, {**unreadable, **more})

    return Split(
        name,
        len(labels),
        files.digest(*described),
        examples,
        subset,
        without,
        unreadable,
    )


def _contents(folder: pathlib.Path) -> str:
    """What a folder without images holds instead."""
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
    return f"a folder that holds {shown}" if names else "an empty folder"
