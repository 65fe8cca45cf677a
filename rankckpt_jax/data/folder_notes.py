"""Warnings about a folder of images that can be used."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rankckpt_jax.data import image_files
from rankckpt_jax.data.folder_layout import ByClass, Layout
from rankckpt_jax.data.image_files import FileInfo
from rankckpt_jax.errors import some

_SAMPLE_BYTES = 4096

Digest = Callable[[pathlib.Path], str]


def make(
    root: pathlib.Path,
    layout: Layout,
    by_split: Mapping[str, ByClass],
    infos: Mapping[pathlib.Path, FileInfo],
    digest: Digest,
) -> dict[str, str]:
    """Return warnings about a usable folder, by topic.

    Args:
      root: The folder.
      layout: Its splits and classes.
      by_split: The images that can be read, by split and class.
      infos: Facts about each file.
      digest: Returns the digest of a file's contents.
    """
    sentences = {
        "classes": _about_classes(by_split),
        "folders": list(layout.warnings),
        "images": _about_formats(layout),
        "splits": _about_splits(root, by_split, infos, digest),
    }
    return {topic: "; ".join(texts) for topic, texts in sentences.items() if texts}


def _about_classes(by_split: Mapping[str, ByClass]) -> list[str]:
    sentences = []
    train = by_split["train"]
    if alone := [c for c, images in train.items() if len(images) == 1]:
        sentences.append(
            f"{len(alone)} of {len(train)} classes have a single training "
            "image, too few to estimate their variance; add images: "
            + some(map(repr, alone))
        )
    for split in by_split.keys() - {"train"}:
        if absent := [c for c in train if not by_split[split].get(c)]:
            sentences.append(
                f"{len(absent)} of {len(train)} classes have no image in "
                f"{split}, so accuracies ignore them; add images: "
                + some(map(repr, absent))
            )
    return sentences


def _about_formats(layout: Layout) -> list[str]:
    others = collections.Counter(
        path.suffix.lower()
        for place in layout.places.values()
        for path in image_files.walk(place)
        if path.suffix.lower() in image_files.UNSUPPORTED_SUFFIXES
    )
    if not others:
        return []
    counts = ", ".join(f"{n} {suffix}" for suffix, n in sorted(others.items()))
    return [
        f"files in unsupported formats are ignored: {counts}; convert them to JPEG "
        "or PNG"
    ]


def _about_splits(
    root: pathlib.Path,
    by_split: Mapping[str, ByClass],
    infos: Mapping[pathlib.Path, FileInfo],
    digest: Digest,
) -> list[str]:
    train_files = [
        f for s in by_split.keys() - {"test"} for fs in by_split[s].values() for f in fs
    ]
    test_files = [file for images in by_split["test"].values() for file in images]
    duplicates = _find_duplicates(test_files, train_files, infos, digest)
    if not duplicates:
        return []
    shown = [
        f"{str(a.relative_to(root))!r} = {str(b.relative_to(root))!r}"
        for a, b in duplicates
    ]
    return [
        f"{len(duplicates)} of {len(test_files)} test images are byte-for-byte "
        "copies of training images, so accuracies are too high; remove the copies: "
        + some(shown)
    ]


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
