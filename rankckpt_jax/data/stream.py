"""Images of a split, decoded and resized ahead of the consumer by threads.

Pillow and NumPy release the interpreter's lock while they compute.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from rankckpt_jax.data import decode, image_headers
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.splits import Example, Split
from rankckpt_jax.errors import UnreadableImage

# The cores of this process, which not every system names.
_CORES = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)

THREADS = min(len(_CORES), 32)
"""Number of threads of each iterator.

More threads than cores wait for the interpreter's lock: six on two cores take 1.3 times
the CPU time of two. The lock is held for a tenth of the time of a small image, so more
than 32 gain nothing.
"""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Images:
    """Some examples of a split.

    Attributes:
      images: uint8 [B, S, S, 3].
      labels: [B] or [B, L]; see `Split.labels`.
      index: int64 [B], positions in the split.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray


def batches(
    split: Split,
    size: int,
    preprocess: str,
    *,
    batch_size: int,
    examples: Iterable[Example],
) -> Iterator[Images]:
    """Yield decoded and resized images; the last batch may be smaller.

    Args:
      split: The split, for error messages.
      size: Side of the square images in pixels, S.
      preprocess: See `preprocess.resize`.
      batch_size: Images of a batch, B. Two batches are decoded ahead.
      examples: Examples of the split, in the order of the images.

    Raises:
      UnreadableImage: An image cannot be decoded or resized.
    """
    resize = functools.partial(_resize, size=size, preprocess=preprocess)
    ahead = map_ahead(resize, examples, 2 * batch_size)
    part: list[tuple[Example, np.ndarray]] = []
    try:
        for resized in ahead:
            part.append(resized)
            if len(part) == batch_size:
                yield _stack(split, part)
                part = []
        if part:
            yield _stack(split, part)
    except decode.UnusableImage as error:
        raise UnreadableImage(
            "An image cannot be decoded",
            where=f"split {split.name!r}",
            expected=f"{image_headers.READABLE} files of at most "
            f"{decode.MAX_MEGAPIXELS} megapixels",
            found=str(error),
        ) from error


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Yield the results of a function in order, computed ahead by threads.

    Args:
      function: What it raises is raised at its item's position.
      items: Its arguments, taken one at a time.
      ahead: Largest number of results that are held.
    """
    pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        try:
            for item in items:
                pending.append(threads.submit(function, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _resize(
    example: Example, *, size: int, preprocess: str
) -> tuple[Example, np.ndarray]:
    return example, preprocess_lib.resize(example.read(), size, preprocess)


def _stack(split: Split, part: list[Any]) -> Images:
    examples, images = zip(*part, strict=True)
    return Images(
        np.stack(images),
        split.label_array([example.label for example in examples]),
        np.asarray([example.index for example in examples], np.int64),
    )
