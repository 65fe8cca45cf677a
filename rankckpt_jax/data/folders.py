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

from rankckpt_jax.data import (
    decode,
    folder_labels,
    folder_layout,
    folder_notes,
    image_files,
    targets,
)
from rankckpt_jax.data.folder_layout import ByClass, Layout
from rankckpt_jax.data.folder_notes import Digest
from rankckpt_jax.data.image_files import FileInfo
from rankckpt_jax.data.label_kind import Label
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
    path: str,
    name: str = "",
    max_unreadable: float = MAX_UNREADABLE,
    target: str = targets.AUTO,
) -> Task:
    """Return the task of a folder; see `folder_layout.find` for its splits and labels.

    Without `test`, the images of `val` become the test images. Without either, a fifth
    of each class of `train`, or of all images, is held out. It is chosen by a hash of
    the file names, so that the choice does not depend on the order of files or on other
    files.

    Files that cannot be opened, or do not start with an image signature, are dropped.
    `corrupt_images` finds those that cannot be decoded.

    Args:
      path: A local directory.
      name: Name of the task; by default that of the directory.
      max_unreadable: Largest share of a split that may be dropped, in [0, 1].
      target: Kind of the labels; see `config.task.target`.

    Raises:
      InputError: The directory does not exist or has fewer than two classes, a class
        has no training images, another split has a class that `train` lacks, the labels
        are not of the kind `target` or do not vary, or too many files are not images.
    """
    root = pathlib.Path(files.to_path(path))
    layout = folder_layout.find(root, target)
    classes = _check_classes(layout) if layout.target == "classes" else ()
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
    origin, kind, label_of = layout.origin, layout.target, dict(layout.label_of)
    copies = folder_notes.find_copies(by_split, infos, source.digest)
    if layout.of_folders:
        separate = folder_notes.without_links(layout, copies)
        merged = folder_labels.merge_copies(root, by_split, separate, target)
        if merged is not None:
            kind = "multi_label"
            by_split, label_of = dict(merged[0]), merged[1]
            origin += ", labels from the folders of each image"
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
    warnings: list[str] = []
    if kind == "multi_label":
        classes, warnings = folder_labels.label_names(root, by_split, label_of)
    elif kind == "regression":
        folder_labels.check_numbers(root, by_split, label_of)
    labeling = _Labeling(kind, classes, label_of)
    splits = {
        split: _folder_split(source, split, by_class, labeling, corrupt.get(split, {}))
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
        splits["trainval"] = _folder_split(source, "trainval", both, labeling, dropped)
    notes = folder_notes.make(root, layout, by_split, copies, kind, warnings)
    return Task(name or root.resolve().name, classes, splits, origin, notes, kind)


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


@dataclasses.dataclass(frozen=True)
class _Labeling:
    """The kind of the labels, their names, and the label of each image.

    Labels that are classes follow from the class of an image instead.
    """

    target: str
    names: Sequence[str]
    label_of: Mapping[pathlib.Path, Label]


def _folder_split(
    source: _Source,
    name: str,
    by_class: Mapping[str, list[pathlib.Path]],
    labeling: _Labeling,
    unreadable: Mapping[str, str],
) -> Split:
    target, names = labeling.target, labeling.names
    paths = [file for members in by_class.values() for file in members]
    if target == "classes":
        position = {name: label for label, name in enumerate(names)}
        labels = targets.to_array(
            [position[c] for c, members in by_class.items() for _ in members], target
        )
    else:
        labels = folder_labels.encode(paths, names, labeling.label_of, target)
    return _files_split(source, name, paths, labels, target, unreadable)


def _files_split(
    source: _Source,
    name: str,
    paths: Sequence[pathlib.Path],
    labels: np.ndarray,
    target: str,
    unreadable: Mapping[str, str],
) -> Split:
    def identify() -> str:
        with concurrent.futures.ThreadPoolExecutor(image_files.THREADS) as threads:
            contents = threads.map(source.digest, paths)
            described = [
                f"{file.relative_to(source.root)}\0{content}\0"
                f"{folder_labels.describe(label, target)}"
                for file, content, label in zip(paths, contents, labels, strict=True)
            ]
        return files.digest(*described)

    def examples(
        seed: int | None, index: int, count: int, skip: int
    ) -> Iterator[Example]:
        for row in order(len(paths), seed)[index::count][skip:]:
            file = paths[row]
            read = functools.partial(_read, file, source.infos[file].orientation)
            yield Example(int(row), labels[row], read)

    def take(name: str, rows: Sequence[int], unreadable: Mapping[str, str]) -> Split:
        chosen = [paths[row] for row in rows]
        own = labels[np.asarray(rows, np.int64)]
        return _files_split(source, name, chosen, own, target, unreadable)

    def subset(name: str, rows: np.ndarray) -> Split:
        return take(name, rows.tolist(), unreadable)

    def without(reasons: Mapping[int, str]) -> Split:
        kept = [row for row in range(len(paths)) if row not in reasons]
        more = {
            str(paths[row].relative_to(source.root)): why
            for row, why in reasons.items()
        }
        return take(name, kept, {**unreadable, **more})

    return Split(
        name,
        len(paths),
        identify,
        examples,
        subset,
        without,
        unreadable,
        orientation="EXIF",
        target=target,
        labels=labels,
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
