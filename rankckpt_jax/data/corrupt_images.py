"""Which images of a split can be decoded; the others are left out of a task.

Whether a file is whole is known only once it is decoded, and decoding all of a large
task takes minutes. So nothing is looked for until a pipeline meets an image that cannot
be decoded, or before fine-tuning, which reads every image many times. What is found is
kept in the store: all checkpoints of a task see the same images, in later runs too.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.data import preprocess
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.data.splits import MAX_UNREADABLE, Split, Task, check_unreadable
from rankckpt_jax.devices import processes
from rankckpt_jax.errors import InputError
from rankckpt_jax.storage import store

_log = logging.getLogger(__name__)

# What TensorFlow puts around the words that say what is wrong.
_AROUND = re.compile(
    r"\{\{.*?\}\} ?|Error in user.*Iterator::\S+: |\[Op:\w+\].*|assertion failed: "
)


def drop_corrupt(
    task: Task,
    directory: epath.Path,
    most: float = MAX_UNREADABLE,
    *,
    look_in: Iterable[str] = (),
    again: bool = False,
) -> Task:
    """The task without the images that cannot be decoded, as far as they are known.

    All processes call it, and get the same.

    Args:
      task: With all its images.
      directory: Where what is found is kept, one file a split.
      most: Largest share of a split that may be left out.
      look_in: Names of splits of which every image is decoded where nothing is known.
      again: Whether to decode them also where something is.

    Returns:
      The task; its splits say what they lack.

    Raises:
      InputError: More than `most` of a split cannot be decoded.
    """
    splits = dict(task.splits)
    for name, split in task.splits.items():
        if split.without is None:
            continue
        place = epath.Path(directory) / f"{name}.json"
        wanted = {
            "images": split.fingerprint,
            "jpeg_decoder": preprocess.JPEG_DECODER,
            "max_megapixels": preprocess.MAX_MEGAPIXELS,
        }
        looked_for = name in look_in
        found = None if again and looked_for else _recall(split, place, wanted)
        if found is None and looked_for:
            start = time.monotonic()
            found = find(split)
            _log.info(
                "decoded all %d images of %s in %.1f s, to see whether they are whole",
                split.num_examples,
                name,
                time.monotonic() - start,
            )
            kept = {str(position): reason for position, reason in found.items()}
            store.save_result(place, wanted, {"unreadable": kept})
        if found:
            splits[name] = split.without(found)
            check_unreadable(splits[name], most, task.origin)
    return dataclasses.replace(task, splits=splits)


def _recall(
    split: Split, place: epath.Path, wanted: Mapping[str, Any]
) -> dict[int, str] | None:
    """What an earlier run found, unless some of it has been mended since."""
    stored = store.load_result(place, wanted)
    if stored is None:
        return None
    found = {int(i): why for i, why in stored.result["unreadable"].items()}
    if found and split.subset is not None:
        still = find(split.subset(split.name, np.asarray(sorted(found))))
        if len(still) < len(found):
            _log.info("images of %s have been mended: looking again", split.name)
            return None
    return found


def find(split: Split) -> dict[int, str]:
    """Decodes every image once and says which cannot be.

    The processes divide the images among them, and all get the whole answer.

    Args:
      split: To look through.

    Returns:
      By the position of each image that cannot be decoded, why.

    Raises:
      InputError: The images cannot be read to their end at all.
    """
    if split.without is None:
        return {}
    mine = processes.sync_errors(lambda: _find(split))
    return {
        int(i): why for share in processes.all_gather(mine) for i, why in share.items()
    }


def _find(split: Split) -> Mapping[int, str]:
    tf = tensorflow()
    process, count = processes.process_index(), processes.process_count()
    # Whole images would be copied out of TensorFlow for nothing.
    whole = split.examples(None, process, count, 0).map(
        lambda example: example["index"]
    )
    iterator = iter(whole.prefetch(tf.data.AUTOTUNE))
    found = {}
    # An image that cannot be decoded raises in its turn, and the next ones follow.
    for position in range(process, split.num_examples, count):
        try:
            next(iterator)
        except tf.errors.InvalidArgumentError as error:
            found[position] = why(error)
        except (tf.errors.OpError, StopIteration) as error:
            raise InputError(
                "Images cannot be read to the end",
                where=f"split {split.name!r}, image {position}",
                found=why(error),
                fix="copy or prepare the data set again",
            ) from error
    return found


def why(error: Any) -> str:
    """What TensorFlow's error says of an image, in one short line."""
    said = str(getattr(error, "message", error)).strip()
    line = _AROUND.sub("", said.splitlines()[0] if said else type(error).__name__)
    return line.strip(" .:[]") or type(error).__name__
