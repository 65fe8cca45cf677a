"""Labels of a folder's images: several labels per image, numbers, and their checks."""

from __future__ import annotations

import collections
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rankckpt_jax.data import label_kind, targets
from rankckpt_jax.data.folder_layout import ALL, ByClass
from rankckpt_jax.data.label_kind import Label
from rankckpt_jax.errors import InputError, some

Copies = Sequence[Sequence[pathlib.Path]]
"""Groups of files with the same bytes."""

BySplit = Mapping[str, ByClass]


def merge_copies(
    root: pathlib.Path, by_split: BySplit, copies: Copies, target: str
) -> tuple[BySplit, dict[pathlib.Path, Label]] | None:
    """Make one image with several labels of its copies in several folders.

    Args:
      root: The folder, for errors.
      by_split: The images by split and folder.
      copies: Groups of files with the same bytes. Links to one folder of classes count
        as one class and are no copies.
      target: See `config.task.target`.

    Returns:
      (the images by split without the further copies, the labels of each image), or
      None if the images have one class each: with the target "classes", or with "auto"
      if fewer than `label_kind.SEVERAL` of the images are in several folders.

    Raises:
      InputError: The target is "regression", which folders cannot express, or it is
        "multi_label" and files in several folders share their names, but not their
        bytes.
    """
    if target == "regression":
        raise InputError(
            "Folders of classes have no number per image",
            where=str(root),
            expected="a file labels.csv with lines FILE,NUMBER",
            found="folders",
            fix="add the file, or leave config.task.target out",
        )
    if target == "classes":
        return None
    classes: dict[pathlib.Path, list[str]] = {}
    split_of: dict[pathlib.Path, str] = {}
    for split, by_class in by_split.items():
        for name, files in by_class.items():
            for file in files:
                classes.setdefault(file, []).append(unicodedata.normalize("NFC", name))
                split_of[file] = split
    further = set()
    for group in copies:
        by: dict[str, list[pathlib.Path]] = {}
        for file in group:
            by.setdefault(split_of[file], []).append(file)
        for first, *others in by.values():
            for other in others:
                # A copy in the same folder is another image of this class.
                if not set(classes[other]) <= set(classes[first]):
                    classes[first] += classes[other]
                    further.add(other)
    kept = {file: names for file, names in classes.items() if file not in further}
    several = sum(len(names) > 1 for names in kept.values())
    if target == targets.AUTO and several < max(1, label_kind.SEVERAL * len(kept)):
        return None
    if not several:
        _check_names(root, by_split)
    merged: dict[str, ByClass] = {split: {ALL: []} for split in by_split}
    for file in sorted(kept):
        merged[split_of[file]][ALL].append(file)
    return merged, {file: tuple(dict.fromkeys(names)) for file, names in kept.items()}


def _check_names(root: pathlib.Path, by_split: BySplit) -> None:
    """Raise if no image has several labels, but names are in several folders."""
    counts = collections.Counter(
        file.name for fs in by_split["train"].values() for file in fs
    )
    shared = [name for name, count in counts.items() if count > 1]
    if shared:
        raise InputError(
            "No image has several labels",
            where=str(root),
            expected="the same file, byte for byte, in the folders of its labels",
            found=f"{len(shared)} names in several folders, with different contents: "
            + some(map(repr, shared), most=4),
            fix="copy or link the same file into each folder, list the labels in "
            "labels.csv, or leave config.task.target out",
        )


def label_names(
    root: pathlib.Path, by_split: BySplit, label_of: Mapping[pathlib.Path, Label]
) -> tuple[tuple[str, ...], list[str]]:
    """Return the labels that some, but not all, training images have, and warnings.

    Args:
      root: The folder, for errors.
      by_split: The images by split, under the key ALL.
      label_of: The labels of each image, for multi_label.

    Raises:
      InputError: There is no such label.
    """
    counts = {
        split: collections.Counter(
            name for f in fs[ALL] for name in _names(label_of[f])
        )
        for split, fs in by_split.items()
    }
    images = len(by_split["train"][ALL])
    every = sorted({name for found in counts.values() for name in found})
    kept = [name for name in every if 0 < counts["train"][name] < images]
    if not kept:
        raise InputError(
            "No label distinguishes the training images",
            where=str(root),
            expected="at least one label that some, but not all, of them have",
            found=f"{len(every)} labels of {images} images: {some(every) or '-'}",
            fix="correct the labels, or set config.task.target=classes if each image "
            "has one class",
        )
    warnings = []
    for which, names in (
        ("no", [n for n in every if not counts["train"][n]]),
        ("every", [n for n in every if counts["train"][n] == images]),
    ):
        if names:
            warnings.append(
                f"{len(names)} labels are left out, because {which} training image "
                f"has them: {some(map(repr, names))}"
            )
    if alone := [n for n in kept if counts["train"][n] == 1]:
        warnings.append(
            f"{len(alone)} of {len(kept)} labels have a single training image, too few "
            f"to learn them; add images: {some(map(repr, alone))}"
        )
    for split in sorted(by_split.keys() - {"train"}):
        if absent := [n for n in kept if not counts[split][n]]:
            warnings.append(
                f"{len(absent)} of {len(kept)} labels have no image in {split}, so "
                f"metrics ignore them; add images: {some(map(repr, absent))}"
            )
    if all(len(_names(label_of[f])) == 1 for f in by_split["train"][ALL]):
        warnings.append(
            "every training image has exactly one label; if images cannot have "
            "several, set config.task.target=classes"
        )
    return tuple(kept), warnings


def check_numbers(
    root: pathlib.Path, by_split: BySplit, label_of: Mapping[pathlib.Path, Label]
) -> None:
    """Raise an `InputError` if all numbers of a split are equal."""
    for split, files in by_split.items():
        numbers = {label_of[file] for file in files[ALL]}
        if len(numbers) < 2:
            raise InputError(
                f"The images of {split} have no different numbers",
                where=str(root),
                expected="at least two different numbers",
                found=f"{len(files[ALL])} images with the number "
                + (", ".join(map(str, numbers)) or "-"),
                fix="correct the labels, or add images",
            )


def encode(
    files: Iterable[pathlib.Path],
    names: Sequence[str],
    label_of: Mapping[pathlib.Path, Label],
    target: str,
) -> np.ndarray:
    """Return the labels of images as an array; see `Split.labels`.

    Args:
      files: The images.
      names: The labels of multi_label.
      label_of: The label of each image.
      target: "multi_label" or "regression".
    """
    files = list(files)
    if target == "regression":
        return targets.to_array([label_of[file] for file in files], target)
    position = {name: i for i, name in enumerate(names)}
    array = np.zeros((len(files), len(names)), bool)
    for row, file in enumerate(files):
        own = [position[n] for n in _names(label_of[file]) if n in position]
        array[row, own] = True
    return array


def describe(label: np.ndarray, target: str) -> str:
    """Return a text for the label of an image, for the fingerprint of its split."""
    if target == "multi_label":
        return f"{len(label)}:" + ",".join(map(str, np.flatnonzero(label)))
    return str(int(label)) if target == "classes" else repr(float(label))


def _names(label: Label) -> tuple[str, ...]:
    assert isinstance(label, tuple)
    return label
