"""Tasks from folders of images, such as `PATH/{train,val,test}/CLASS/*`."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rankckpt_jax.data import decode, folder_layout, folder_notes, image_files
from rankckpt_jax.data.folder_layout import ByClass, Layout
from rankckpt_jax.data.folder_notes import Digest
from rankckpt_jax.data.image_files import FileInfo
from rankckpt_jax.data.splits import (
    MAX_UNREADABLE,
    Example,
    Split,
    Task,
    check_unreadable,
    order,
)
from rankckpt_jax.errors import InputError, some
from rankckpt_jax.storage import files

HELD_OUT_FRACTION = 0.2
"""Share of each class of `train` that becomes `test` if the folder has no `test`.

At least one image of a class is held out, so the share is larger in small classes.
"""


def from_folder(
    path: str, name: str = "", max_unreadable: float = MAX_UNREADABLE
) -> Task:
    """Return the task of a folder; see `folder_layout.find` for its splits and classes.

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
    root = pathlib.Path(files.to_path(path))
    layout = folder_layout.find(root)
    classes = _check_classes(layout)
    infos = image_files.read_infos(
        f
        for by_class in layout.by_split.values()
        for fs in by_class.values()
        for f in fs
    )
    # Splits share images ("trainval"), and each file is read once.
    source = _Source(root, infos, functools.cache(_digest))
    places = dict(layout.places)
    by_split: dict[str, ByClass] = {}
    corrupt: dict[str, dict[str, str]] = {}
    for split, by_class in layout.by_split.items():
        bad = {f: infos[f].why for fs in by_class.values() for f in fs if infos[f].why}
        corrupt[split] = {str(f.relative_to(root)): why for f, why in bad.items()}
        by_split[split] = {
            c: [file for file in fs if file not in bad] for c, fs in by_class.items()
        }
    origin = layout.origin
    if "test" not in by_split and "val" in by_split:
        by_split["test"] = by_split.pop("val")
        corrupt["test"] = corrupt.pop("val")
        places["test"] = places.pop("val")
        origin += ", its val images as test"
    elif "test" not in by_split:
        total = sum(map(len, by_split["train"].values()))
        by_split["train"], by_split["test"] = _hold_out(by_split["train"])
        held = sum(map(len, by_split["test"].values()))
        share = held / max(total, 1)
        origin += f", {held} of {total} images of train ({share:.0%}) held out as test"
    if turned := sum(info.orientation != 1 for info in infos.values()):
        origin += f", {turned} images turned by their EXIF orientation"
    splits = {
        split: _folder_split(source, split, by_class, classes, corrupt.get(split, {}))
        for split, by_class in by_split.items()
    }
    for split_name, made in splits.items():
        where = places.get(split_name, places["train"])
        check_unreadable(made, max_unreadable, str(where))
    if empty := sorted(c for c, images in by_split["train"].items() if not images):
        raise InputError(
            "Classes without training images",
            where=str(places["train"]),
            expected="files *" + ", *".join(image_files.IMAGE_SUFFIXES) + " in each",
            found="; ".join(f"{c!r}: {_contents(places['train'] / c)}" for c in empty),
            fix="add images, or remove the folders",
        )
    if "val" in by_split:
        train, val = by_split["train"], by_split["val"]
        both = {name: train[name] + val.get(name, []) for name in train}
        dropped = {**corrupt["train"], **corrupt["val"]}
        splits["trainval"] = _folder_split(source, "trainval", both, classes, dropped)
    notes = folder_notes.make(root, layout, by_split, infos, source.digest)
    return Task(name or root.resolve().name, classes, splits, origin, notes)


def _check_classes(layout: Layout) -> tuple[str, ...]:
    """Return the names of the classes of `train`, sorted.

    Raises:
      InputError: There are fewer than two, or another split has others.
    """
    classes = tuple(sorted(layout.by_split["train"]))
    if len(classes) < 2:
        raise InputError(
            "A classification task needs at least two classes",
            where=str(layout.places["train"]),
            expected="CLASS/*.jpg of at least two classes",
            found=f"{len(classes)} class(es): {', '.join(classes) or '-'}",
            fix="create one sub-folder of `train` per class, and put its images there",
        )
    for split, by_class in layout.by_split.items():
        if unknown := sorted({c for c, fs in by_class.items() if fs} - set(classes)):
            raise InputError(
                f"Classes of {split!r} without training images",
                where=str(layout.places[split]),
                expected="only classes of `train`: " + some(classes),
                found=some(unknown),
                fix="use the same class names in every split",
            )
    return classes


def _digest(path: pathlib.Path) -> str:
    with _reading(path):
        return files.digest_file(path)


def _read(path: pathlib.Path, orientation: int) -> np.ndarray:
    with _reading(path):
        data = path.read_bytes()
    return decode.turn(decode.decode(data), orientation)


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
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


@dataclasses.dataclass(frozen=True)
class _Source:
    """The files that the splits of a folder share."""

    root: pathlib.Path
    infos: Mapping[pathlib.Path, FileInfo]
    digest: Digest


def _folder_split(
    source: _Source,
    name: str,
    by_class: Mapping[str, list[pathlib.Path]],
    classes: Sequence[str],
    unreadable: Mapping[str, str],
) -> Split:
    label_of = {class_name: label for label, class_name in enumerate(classes)}
    pairs = [(f, label_of[c]) for c, paths in by_class.items() for f in paths]
    return _files_split(source, name, pairs, unreadable)


def _files_split(
    source: _Source,
    name: str,
    pairs: Sequence[tuple[pathlib.Path, int]],
    unreadable: Mapping[str, str],
) -> Split:
    def identify() -> str:
        with concurrent.futures.ThreadPoolExecutor(image_files.THREADS) as threads:
            contents = threads.map(source.digest, [file for file, _ in pairs])
            described = [
                f"{file.relative_to(source.root)}\0{content}\0{label}"
                for (file, label), content in zip(pairs, contents, strict=True)
            ]
        return files.digest(*described)

    def examples(
        seed: int | None, index: int, count: int, skip: int
    ) -> Iterator[Example]:
        for row in order(len(pairs), seed)[index::count][skip:]:
            file, label = pairs[row]
            orientation = source.infos[file].orientation
            yield Example(int(row), label, functools.partial(_read, file, orientation))

    def subset(name: str, rows: np.ndarray) -> Split:
        return _files_split(source, name, [pairs[row] for row in rows], unreadable)

    def without(reasons: Mapping[int, str]) -> Split:
        kept = [pair for row, pair in enumerate(pairs) if row not in reasons]
        more = {
            str(pairs[row][0].relative_to(source.root)): why
            for row, why in reasons.items()
        }
        return _files_split(source, name, kept, {**unreadable, **more})

    return Split(
        name,
        len(pairs),
        identify,
        examples,
        subset,
        without,
        unreadable,
        orientation="EXIF",
    )


def _contents(folder: pathlib.Path) -> str:
    """Describe the content of a class without images."""
    if not folder.is_dir():
        return "none of its images can be read"
    suffixes = collections.Counter(
        path.suffix.lower() or "without a suffix"
        for path in image_files.walk(folder)
        if path.is_file()
    )
    if not suffixes:
        return "an empty folder"
    return "files " + ", ".join(f"{n} {suffix}" for suffix, n in suffixes.items())
