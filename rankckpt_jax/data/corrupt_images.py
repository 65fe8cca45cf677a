"""Search for images that cannot be decoded, which are dropped from a task.

A damaged file is detected only when it is decoded, and decoding all images of a large
task takes minutes. The search among training images therefore starts only after a
pipeline has failed to decode an image, or before fine-tuning, which reads every image
many times. The test images of a folder are searched before ranking, because extraction
does not read them. The result is stored, so that all checkpoints of a task see the same
images, in later runs too.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from rankckpt_jax.data import decode, preprocess, stream
from rankckpt_jax.data.splits import (
    MAX_UNREADABLE,
    Example,
    Split,
    Task,
    check_unreadable,
)
from rankckpt_jax.devices import processes, progress
from rankckpt_jax.storage import store

_log = logging.getLogger(__name__)

# Images decoded ahead.
_AHEAD = 64


def drop_corrupt(
    task: Task,
    directory: epath.Path,
    most: float = MAX_UNREADABLE,
    *,
    look_in: Iterable[str] = (),
    again: bool = False,
) -> Task:
    """Return the task without the images that are known to be corrupt.

    All processes call this and get the same result.

    Args:
      task: The task with all images.
      directory: Directory of the stored results, one file per split.
      most: Largest share of a split that may be corrupt, in [0, 1].
      look_in: Names of splits to search if no result is stored.
      again: Whether to search these splits even if a result is stored.

    Returns:
      The task. `Split.unreadable` lists the dropped images.

    Raises:
      InputError: More than `most` of a split is corrupt.
    """
    splits = dict(task.splits)
    for name, split in task.splits.items():
        if split.without is None:
            continue
        place = epath.Path(directory) / f"{name}.json"
        key = {
            "images": split.fingerprint,
            "jpeg_decoder": decode.JPEG_DECODER,
            "decode_version": preprocess.VERSIONS["decode"],
            "max_megapixels": decode.MAX_MEGAPIXELS,
        }
        search = name in look_in
        corrupt = None if again and search else _load(place, key)
        if corrupt is None and search:
            start = time.monotonic()
            with progress.step(name, f"decoding {split.num_examples:,} images"):
                corrupt = find(split)
            seconds = time.monotonic() - start
            _log.info("%s: found %d corrupt (%.1f s)", name, len(corrupt), seconds)
            reasons = {str(position): why for position, why in corrupt.items()}
            store.save_result(place, key, {"unreadable": reasons})
        if corrupt:
            splits[name] = split.without(corrupt)
            check_unreadable(splits[name], most, task.origin)
    return dataclasses.replace(task, splits=splits)


def _load(place: epath.Path, key: Mapping[str, Any]) -> dict[int, str] | None:
    stored = store.load_result(place, key)
    if stored is None:
        return None
    return {int(i): why for i, why in stored.result["unreadable"].items()}


def find(split: Split) -> dict[int, str]:
    """Decode every image once and return the corrupt ones.

    Each process decodes a share of the images, and all get the complete result.

    Returns:
      The reason by the position of each image that cannot be decoded.

    Raises:
      InputError: A file cannot be opened.
    """
    if split.without is None:
        return {}
    local = processes.sync_errors(lambda: _find(split))
    return {
        int(i): why for share in processes.all_gather(local) for i, why in share.items()
    }


def _find(split: Split) -> Mapping[int, str]:
    process, count = processes.process_index(), processes.process_count()
    examples = split.examples(None, process, count, 0)
    corrupt = {}
    with progress.bar(f"{split.name}: decoding", split.num_examples, "image") as bar:
        for position, why in stream.map_ahead(_reason, examples, _AHEAD):
            if why:
                corrupt[position] = why
            bar.update(min(count, split.num_examples - position))
    return corrupt


def _reason(example: Example) -> tuple[int, str]:
    """Return its position, and why it cannot be decoded, or an empty string."""
    try:
        example.read()
    except decode.UnusableImage as error:
        return example.index, str(error)
    return example.index, ""
