"""Warnings about a folder of images that can be used."""

from __future__ import annotations

import collections
import concurrent.futures
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rankckpt_jax.data import decode, image_files
from rankckpt_jax.data.folder_layout import ByClass, Layout
from rankckpt_jax.data.image_files import FileInfo
from rankckpt_jax.errors import some

_SAMPLE_BYTES = 4096

# Images of a split whose pixels are looked at, and the standard deviation of all of
# these pixels below which they are called nearly constant. Photos have about 70 of 255.
_SAMPLE_IMAGES = 16
_MIN_DEVIATION = 5.0

Digest = Callable[[pathlib.Path], str]


def make(
    root: pathlib.Path,
    layout: Layout,
    by_split: Mapping[str, ByClass],
    copies: Iterable[Sequence[pathlib.Path]],
    target: str,
    warnings: Sequence[str] = (),
) -> dict[str, str]:
    """Return warnings about a usable folder, by topic.

    Args:
      root: The folder.
      layout: Its splits and classes.
      by_split: The images that can be read, by split and class.
      copies: Groups of files with the same bytes.
      target: Kind of the labels.
      warnings: Further warnings about labels.
    """
    linked = _linked_classes(layout) if target == "classes" else {}
    labels, splits = _about_copies(root, by_split, copies, linked)
    sentences = {
        "classes": _about_classes(by_split) if target == "classes" else [],
        "folders": list(layout.warnings),
        "images": _about_formats(layout),
        "labels": [*warnings, *_about_links(linked), *labels],
        "pixels": _about_pixels(root, by_split),
        "splits": splits,
        "target": [layout.assumed] if layout.assumed else [],
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
        for place in dict.fromkeys(layout.places.values())
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


def _about_pixels(root: pathlib.Path, by_split: Mapping[str, ByClass]) -> list[str]:
    """Return a sentence for each split whose pixels hardly differ."""
    sentences = []
    for split, by_class in by_split.items():
        every = [file for files in by_class.values() for file in files]
        chosen = np.linspace(0, len(every) - 1, min(_SAMPLE_IMAGES, len(every)))
        with concurrent.futures.ThreadPoolExecutor(image_files.THREADS) as threads:
            read = threads.map(_moments, [every[round(i)] for i in chosen])
            moments = [found for found in read if found is not None]
        if not moments:
            continue
        mean, square = np.mean(moments, axis=0)
        deviation = math.sqrt(max(square - mean**2, 0.0))
        if deviation < _MIN_DEVIATION:
            sentences.append(
                f"the images of {split} are nearly constant: the pixels of "
                f"{len(moments)} of them have the mean {mean:.1f} and the standard "
                f"deviation {deviation:.1f} of 255; check their format and bit depth, "
                f"for example of {str(every[0].relative_to(root))!r}"
            )
    return sentences


def _moments(path: pathlib.Path) -> tuple[float, float] | None:
    """Return the means of pixels and of squared pixels; None if they are unreadable."""
    try:
        pixels = decode.decode(path.read_bytes()).astype(np.float64)
    except (OSError, ValueError):
        return None  # `corrupt_images` reports it.
    return float(pixels.mean()), float((pixels**2).mean())


def _linked_classes(layout: Layout) -> dict[str, list[list[str]]]:
    """Return the classes that are one folder under several names, by split."""
    linked: dict[str, list[list[str]]] = {}
    for split, by_class in layout.by_split.items():
        names: dict[tuple[int, int], list[str]] = {}
        for name in by_class:
            folder = layout.places[split] / name
            if folder.is_dir():  # Labels of a file have no folders.
                status = folder.stat()
                names.setdefault((status.st_dev, status.st_ino), []).append(name)
        linked[split] = [same for same in names.values() if len(same) > 1]
    return linked


def _about_links(linked: Mapping[str, list[list[str]]]) -> list[str]:
    return [
        f"the classes {' and '.join(map(repr, names))} of {split} are the same folder, "
        "so their images have several labels; remove the link"
        for split, groups in linked.items()
        for names in groups
    ]


def _about_copies(
    root: pathlib.Path,
    by_split: Mapping[str, ByClass],
    copies: Iterable[Sequence[pathlib.Path]],
    linked: Mapping[str, list[list[str]]],
) -> tuple[list[str], list[str]]:
    """Return sentences about copies in several classes, and in several splits."""
    place_of = {
        file: (split, name)
        for split, by_class in by_split.items()
        for name, files in by_class.items()
        for file in files
    }
    same = {name: names[0] for gs in linked.values() for names in gs for name in names}

    def class_of(file: pathlib.Path) -> str:
        name = place_of[file][1]
        return same.get(name, name)

    def show(pairs: Iterable[tuple[pathlib.Path, pathlib.Path]]) -> str:
        return some(
            f"{str(a.relative_to(root))!r} = {str(b.relative_to(root))!r}"
            for a, b in pairs
        )

    mislabeled = []
    tested = []
    for group in copies:
        # Further copies of an image with several labels belong to no split.
        files = [file for file in group if file in place_of]
        if not files:
            continue
        others = [file for file in files if class_of(file) != class_of(files[0])]
        if others:
            mislabeled.append((files[0], others[0]))
        train = [file for file in files if place_of[file][0] != "test"]
        if train:
            tested += [(f, train[0]) for f in files if place_of[f][0] == "test"]
    labels = []
    if mislabeled:
        labels.append(
            f"{len(mislabeled)} images are in several classes, as byte-for-byte "
            "copies; remove those of the wrong class, or set "
            "config.task.target=multi_label if an image may have several labels: "
            + show(mislabeled)
        )
    splits = []
    if tested:
        total = sum(map(len, by_split["test"].values()))
        splits.append(
            f"{len(tested)} of {total} test images are byte-for-byte copies of "
            "training images, so accuracies are too high; remove the copies: "
            + show(tested)
        )
    return labels, splits


def without_links(
    layout: Layout, copies: Iterable[Sequence[pathlib.Path]]
) -> list[list[pathlib.Path]]:
    """Return groups of copies without files in a link to another folder of a class."""
    links = {
        layout.places[split] / name
        for split, groups in _linked_classes(layout).items()
        for names in groups
        for name in names[1:]
    }
    return [[f for f in group if not links & set(f.parents)] for group in copies]


def find_copies(
    by_split: Mapping[str, ByClass],
    infos: Mapping[pathlib.Path, FileInfo],
    digest: Digest,
) -> list[list[pathlib.Path]]:
    """Return the groups of files of all splits with the same bytes.

    Files are compared by size, then by a few kilobytes from the middle, where the
    pixels are. Only files that are still equal are read to the end.
    """
    keys: tuple[Callable[[pathlib.Path], Any], ...] = (
        lambda file: infos[file].size,
        lambda file: _middle(file, infos[file].size),
        digest,
    )
    groups = [[f for by in by_split.values() for fs in by.values() for f in fs]]
    for key in keys:
        finer: dict[Any, list[pathlib.Path]] = {}
        for number, group in enumerate(groups):
            for file in group:
                finer.setdefault((number, key(file)), []).append(file)
        groups = [group for group in finer.values() if len(group) > 1]
    return groups


def _middle(path: pathlib.Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(size - _SAMPLE_BYTES, 0) // 2)
        return file.read(_SAMPLE_BYTES)
