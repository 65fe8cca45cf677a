"""Finds the splits, and the classes or labels, of a folder of images."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import unicodedata
from collections.abc import Mapping

from rankckpt_jax.data import image_files, label_file, targets
from rankckpt_jax.data.label_kind import Label
from rankckpt_jax.errors import InputError, some

ByClass = dict[str, list[pathlib.Path]]

ALL = ""
"""The key of all images of a split whose labels are not classes."""

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
"""Names of the folder of each split, in lower case."""

# As in "training_set" or "test-images".
_SUFFIX = re.compile(r"[ _-]?(set|images|data)$")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The images of a folder by split and class.

    Attributes:
      by_split: Image files by class, by split: "train", and perhaps "val" and "test".
        Without classes, all files of a split have the key ALL.
      places: Folder of each split; the folder itself if it is not divided.
      origin: A phrase that names the folder and what was taken for which split.
      warnings: Sentences about what was ignored or is ambiguous.
      target: Kind of the labels, one of `targets.TARGETS`.
      label_of: The label of each image if they are not classes.
      of_folders: Whether the classes are folders.
      assumed: A sentence on the kind that was assumed, or empty.
    """

    by_split: Mapping[str, ByClass]
    places: Mapping[str, pathlib.Path]
    origin: str
    warnings: tuple[str, ...]
    target: str = "classes"
    label_of: Mapping[pathlib.Path, Label] = dataclasses.field(default_factory=dict)
    of_folders: bool = False
    assumed: str = ""


@dataclasses.dataclass(frozen=True)
class _Found:
    by_split: dict[str, ByClass]
    sources: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    target: str = "classes"
    label_of: Mapping[pathlib.Path, Label] = dataclasses.field(default_factory=dict)
    of_folders: bool = False
    assumed: str = ""


def find(root: pathlib.Path, target: str = targets.AUTO) -> Layout:
    """Return the splits and classes of a folder.

    A split is a sub-folder with one of SPLIT_NAMES, in any case. Without such a
    sub-folder all images belong to `train`. A class is a sub-folder of the split, or a
    label in its `labels.csv`. A `labels.csv` in `root` may list the images of all
    splits. Without such sub-folders, its column `split` may divide them.

    Args:
      root: The folder.
      target: Kind of the labels; see `config.task.target`. Folders are classes here.

    Raises:
      InputError: There are no training images, two folders have names of the same
        split, or a file `labels.csv` cannot be used.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise _no_images(root / "train", found)
    places = _find_splits(root)
    labels = root / label_file.NAME
    if not places:
        if not labels.is_file() and not image_files.folders(root):
            raise _no_images(root / "train", _listing(root))
        found_classes = _read_splits({"train": root}, target)
        places = dict.fromkeys(found_classes.by_split, root)
    elif "train" not in places:
        raise _no_images(root / "train", _listing(root))
    elif labels.is_file() and not any(map(_has_classes, places.values())):
        found_classes = _read_common_labels(labels, places, target)
    else:
        unlabeled = [
            p for s, p in places.items() if s != "train" and not _has_classes(p)
        ]
        places = {s: place for s, place in places.items() if place not in unlabeled}
        found_classes = _read_splits(places, target)
        if labels.is_file() and label_file.lists_images(labels):
            text = f"{label_file.NAME} is ignored, because the splits have folders of "
            ignored = (f"{text}classes; remove one of the two",)
            found_classes = dataclasses.replace(
                found_classes, warnings=(*found_classes.warnings, *ignored)
            )
    by_split = found_classes.by_split
    warnings: tuple[str, ...] = ()
    if found_classes.target == "classes":
        by_split, warnings = _unify_names(by_split)
    taken = [
        f"{place.name!r} taken as {split}"
        for split, place in places.items()
        if place.name != split and place != root
    ]
    if list(places.values()) == [root]:
        taken.append("taken as train")
    return Layout(
        by_split,
        places,
        ", ".join([f"folder {root}", *taken, *found_classes.sources]),
        (*_warn_about_folders(root, places), *found_classes.warnings, *warnings),
        found_classes.target,
        found_classes.label_of,
        found_classes.of_folders,
        found_classes.assumed,
    )


def _find_splits(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return the folders in `root` that have names of splits, by split."""
    places: dict[str, pathlib.Path] = {}
    for split, names in SPLIT_NAMES.items():
        matches = [
            child
            for child in sorted(root.iterdir())
            if child.is_dir() and _SUFFIX.sub("", child.name.casefold()) in names
        ]
        if len(matches) > 1:
            raise InputError(
                f"Two folders may be the split {split!r}",
                where=str(root),
                expected=f"one folder named {' or '.join(names)}",
                found=", ".join(repr(match.name) for match in matches),
                fix="remove or rename the others",
            )
        if matches:
            places[split] = matches[0]
    return places


def _has_classes(folder: pathlib.Path) -> bool:
    return bool(image_files.folders(folder)) or (folder / label_file.NAME).is_file()


def _read_splits(places: Mapping[str, pathlib.Path], target: str) -> _Found:
    by_split: dict[str, ByClass] = {}
    sources: list[str] = []
    warnings: list[str] = []
    label_of: dict[pathlib.Path, Label] = {}
    kinds: dict[str, str] = {}
    of_folders, assumed = True, ""
    for split, place in places.items():
        labels = place / label_file.NAME
        folders = image_files.folders(place)
        # Beside folders of classes it may describe the classes.
        if labels.is_file() and (not folders or label_file.lists_images(labels)):
            # The other splits have the kind of `train`, which comes first.
            read = label_file.read(labels, kinds.get("train", target))
            of_folders = False
            kinds[split], assumed = read.target, assumed or read.note
            label_of |= read.labels
            is_divided = list(places) == ["train"] and bool(read.splits)
            what = "and splits" if is_divided else f"of {split}"
            sources.append(f"{read.source} {what} from {label_file.NAME}")
            warnings.append(label_file.describe_unlisted(labels, read.labels))
            if is_divided:
                by_split |= _divide(labels, read)
            else:
                by_split[split] = _group(read.labels, read.target)
        else:
            kinds[split] = "classes"
            by_split[split] = {
                folder.name: image_files.images(folder) for folder in folders
            }
    if len(set(kinds.values())) > 1:
        raise InputError(
            "The splits have labels of different kinds",
            where=", ".join(str(place) for place in places.values()),
            expected=f"a file {label_file.NAME} in each, or folders of classes in each",
            found=", ".join(f"{split}: {kind}" for split, kind in kinds.items()),
            fix="label all splits in the same way",
        )
    return _Found(
        by_split,
        tuple(sources),
        tuple(filter(None, warnings)),
        kinds["train"],
        {} if kinds["train"] == "classes" else label_of,
        of_folders,
        assumed,
    )


def _read_common_labels(
    labels: pathlib.Path, places: Mapping[str, pathlib.Path], target: str
) -> _Found:
    """Divide the images of one `labels.csv` by the folders of the splits."""
    read = label_file.read(labels, target)
    by_split: dict[str, ByClass] = {}
    for split, place in places.items():
        inside = {f: label for f, label in read.labels.items() if place in f.parents}
        by_split[split] = _group(inside, read.target)
    outside = [
        str(file.relative_to(labels.parent))
        for file in read.labels
        if not set(places.values()) & set(file.parents)
    ]
    if outside:
        raise InputError(
            "Labeled images belong to no split",
            where=str(labels),
            expected="files in " + " or ".join(str(p.name) for p in places.values()),
            found=some(map(repr, outside)),
            fix="write the folder of the split in front of the name of the file",
        )
    unlisted = label_file.describe_unlisted(labels, read.labels)
    return _Found(
        by_split,
        (f"{read.source} from {label_file.NAME}",),
        (unlisted,) if unlisted else (),
        read.target,
        {} if read.target == "classes" else read.labels,
        False,
        read.note,
    )


def _divide(path: pathlib.Path, read: label_file.Labels) -> dict[str, ByClass]:
    """Divide images by the column `split` of a file."""
    split_of = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    inside: dict[str, dict[pathlib.Path, Label]] = {}
    for file, label in read.labels.items():
        split = split_of.get(_SUFFIX.sub("", read.splits[file].casefold()))
        if split is None:
            raise InputError(
                "An image belongs to no split",
                where=str(path),
                expected="one of " + ", ".join(split_of) + " in the column `split`",
                found=f"{read.splits[file]!r} for {file.relative_to(path.parent)}",
                fix="correct the file, or remove the column",
            )
        inside.setdefault(split, {})[file] = label
    if "train" not in inside:
        raise _no_images(path, "no line of train in the column `split`")
    return {s: _group(inside[s], read.target) for s in SPLIT_NAMES if s in inside}


def _group(labels: Mapping[pathlib.Path, Label], target: str) -> ByClass:
    """Group images by class, or under ALL if their labels are not classes."""
    by_class: ByClass = {} if target == "classes" else {ALL: []}
    for file, label in labels.items():
        key = str(label) if target == "classes" else ALL
        by_class.setdefault(key, []).append(file)
    return {key: sorted(by_class[key]) for key in sorted(by_class)}


def _unify_names(
    by_split: Mapping[str, ByClass],
) -> tuple[dict[str, ByClass], tuple[str, ...]]:
    """Use the names of `train` in all splits, for names that differ in encoding.

    "é" is one character or two, depending on the system that wrote it.

    Returns:
      (images by split and class, warnings).
    """
    same: dict[str, list[str]] = {}
    for name in by_split["train"]:
        same.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    warnings = [
        f"{len(names)} classes have names that differ only by Unicode normalization, "
        "so they look the same; merge their folders, or rename them: "
        + some(f"{name!r} ({ascii(name)})" for name in names)
        for names in same.values()
        if len(names) > 1
    ]
    unified = {}
    for split, by_class in by_split.items():
        merged: ByClass = {}
        for name, images in by_class.items():
            others = same.get(unicodedata.normalize("NFC", name), [])
            known = others[0] if len(others) == 1 else name
            if known != name:
                warnings.append(
                    f"the class {ascii(name)} of {split} is taken as {ascii(known)} of "
                    "train, because they differ only by Unicode normalization"
                )
            merged[known] = sorted([*merged.get(known, []), *images])
        unified[split] = merged
    return unified, tuple(warnings)


def _warn_about_folders(
    root: pathlib.Path, places: Mapping[str, pathlib.Path]
) -> tuple[str, ...]:
    if root in places.values():
        return ()
    splits = _find_splits(root)
    known = [name for names in SPLIT_NAMES.values() for name in names]
    others = [f for f in image_files.folders(root) if f not in splits.values()]
    warnings = [
        f"{place.name!r} has no folders of classes and no {label_file.NAME}, so it is "
        f"not used as {split}"
        for split, place in splits.items()
        if split not in places
    ]
    if others:
        warnings.append(
            f"folders beside {places['train'].name!r} are ignored, because they do "
            f"not have the name of a split ({', '.join(known)}): "
            + some(repr(folder.name) for folder in others)
        )
    return tuple(warnings)


def _no_images(where: pathlib.Path, found: str) -> InputError:
    return InputError(
        "No training images",
        where=str(where),
        expected=f"a folder that contains train/CLASS/*.jpg, CLASS/*.jpg, or images "
        f"and {label_file.NAME}",
        found=found,
        fix="create one sub-folder of `train` per class, and put its images there",
    )


def _listing(folder: pathlib.Path) -> str:
    names = sorted(child.name for child in folder.iterdir())
    return f"a folder that contains {some(names)}" if names else "an empty folder"
