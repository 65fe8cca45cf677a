"""Batches of images for one process: decoded, resized, padded and masked.

Images come from an `ImageCache`. If it cannot keep them, threads decode ahead of the
consumer, so that decoding overlaps with the device's work. Every batch has the same
shape: the last one is padded, and its mask marks the real rows. Every process takes the
same number of steps.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data import stream
from rankckpt_jax.data.image_cache import ImageCache
from rankckpt_jax.data.splits import Example, Split
from rankckpt_jax.devices import mapping, processes

# Rows of a batch below which compiling another program takes longer than padding.
_SMALL_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Batch:
    """One process's part of a step.

    Attributes:
      images: uint8 [B, S, S, 3].
      labels: [B] or [B, L]; see `Split.labels`. 0 in padding rows.
      index: int64 [B], the example's position in its split; -1 in padding rows.
      mask: bool [B]; False in padding rows.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    mask: np.ndarray


def fit_batch(batch_size: int, num_examples: int) -> int:
    """Return the rows of each batch of one process in one pass over a split.

    Padding costs as much time as images. A batch is therefore no larger than the share
    of a process, or than 64, so that small splits still share a compiled program.

    Args:
      batch_size: The requested rows; rounded up to the local devices.
      num_examples: Number of images of the split.
    """
    share = math.ceil(num_examples / processes.process_count())
    return mapping.round_up_to_devices(min(batch_size, max(share, _SMALL_BATCH)))


def num_steps(num_examples: int, batch_size: int) -> int:
    """Return the number of steps in which the processes see each example once."""
    largest_share = math.ceil(num_examples / processes.process_count())
    return math.ceil(largest_share / batch_size)


def batches(
    split: Split, *, size: int, preprocess: str, batch_size: int, cache: ImageCache
) -> Iterator[Batch]:
    """Return this process's share of a split once, in order, padded and masked.

    Args:
      split: The split to read.
      size: Side of the square images in pixels.
      preprocess: See `preprocess.resize`.
      batch_size: Rows per batch, B, of this process.
      cache: Keeps decoded images. The first call for a size decodes all of them.
    """
    process, count = processes.process_index(), processes.process_count()
    # Now, because decoding takes long, and not when the first batch is taken.
    held = cache.get(split, size, preprocess, process, count)
    if held is None:
        return _streamed(split, size, preprocess, batch_size)
    share = np.arange(split.num_examples)[process::count]
    return _held(*held, share, num_steps(split.num_examples, batch_size), batch_size)


def _held(
    images: np.ndarray,
    labels: np.ndarray,
    share: np.ndarray,
    steps: int,
    batch_size: int,
) -> Iterator[Batch]:
    for step in range(steps):
        part = slice(step * batch_size, (step + 1) * batch_size)
        yield _padded(images[part], labels[part], share[part], batch_size)


def _streamed(
    split: Split, size: int, preprocess: str, batch_size: int
) -> Iterator[Batch]:
    process, count = processes.process_index(), processes.process_count()
    examples = split.examples(None, process, count, 0)
    parts = stream.batches(
        split, size, preprocess, batch_size=batch_size, examples=examples
    )
    for _ in range(num_steps(split.num_examples, batch_size)):
        part = next(parts, None)
        if part is None:
            index = np.zeros(0, np.int64)
            none = np.zeros((0, size, size, 3), preprocess_lib.DTYPE)
            yield _padded(none, split.label_array([]), index, batch_size)
        else:
            yield _padded(part.images, part.labels, part.index, batch_size)


def training_batches(
    split: Split,
    *,
    size: int,
    preprocess: str,
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
    cache: ImageCache,
) -> Iterator[Batch]:
    """Return this process's part of the training batches of steps [first, last).

    All processes call this together.

    The order depends on (seed, step) alone: row r of step t is the example number
    `t * global_batch + r` in an endless sequence of epochs, and each epoch has an order
    drawn from (seed, epoch). A resumed run therefore gets the same batches.

    Args:
      split: The split to train on.
      size: Side of the square images in pixels.
      preprocess: See `preprocess.resize`.
      batch_size: Rows per batch of this process; the global batch has
        `process_count()` times as many. Every batch is full.
      seed: Seed of the order.
      first_step: First step, from 0.
      last_step: Step after the last one.
      cache: Keeps decoded images, as in `batches`.
    """
    held = processes.sync_errors(lambda: cache.get(split, size, preprocess))
    # The two ways divide a batch among processes differently.
    if all(processes.all_gather(held is not None)) and held is not None:
        positions = np.arange(first_step * batch_size, last_step * batch_size)
        return _shuffled(*held, positions, batch_size, seed)
    return _shuffled_stream(
        split, size, preprocess, batch_size, seed, first_step, last_step
    )


def _shuffled(
    images: np.ndarray,
    labels: np.ndarray,
    positions: np.ndarray,
    batch_size: int,
    seed: int,
) -> Iterator[Batch]:
    process, count = processes.process_index(), processes.process_count()
    rows = _shuffled_rows(len(labels), positions * count + process, seed)
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        yield _padded(images[chosen], labels[chosen], chosen, batch_size)


def _shuffled_stream(
    split: Split,
    size: int,
    preprocess: str,
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
) -> Iterator[Batch]:
    process, count = processes.process_index(), processes.process_count()

    def epochs() -> Iterator[Example]:
        share = len(range(process, split.num_examples, count))
        first, skip = divmod(first_step * batch_size, share)
        for number in itertools.count(first):
            yield from split.examples(_seed(seed, number), process, count, skip)
            skip = 0

    examples = itertools.islice(epochs(), (last_step - first_step) * batch_size)
    for part in stream.batches(
        split, size, preprocess, batch_size=batch_size, examples=examples
    ):
        yield _padded(part.images, part.labels, part.index, batch_size)


Item = TypeVar("Item")


def ahead(items: Iterable[Item], count: int = 2) -> Iterator[Item]:
    """Yield the items of an iterator that runs in a thread, up to `count` ahead.

    Gathering a batch from host memory takes milliseconds during which an accelerator
    would wait. An error of the iterator is raised here, after the items before it.
    """
    ready: queue.Queue[Any] = queue.Queue(count)
    stop = threading.Event()
    end = object()

    def put(value: Any) -> None:
        while not stop.is_set():
            try:
                ready.put(value, timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
            put((end, None))
        except BaseException as error:  # Raised again by the consumer.
            put((end, error))

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()


def _shuffled_rows(num_examples: int, positions: np.ndarray, seed: int) -> np.ndarray:
    """Return the examples at `positions` of the endless sequence of shuffled epochs."""
    epochs, within = np.divmod(positions, num_examples)
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs):
        order = np.random.default_rng(_seed(seed, int(epoch))).permutation(num_examples)
        chosen = epochs == epoch
        rows[chosen] = order[within[chosen]]
    return rows


def _seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def _padded(
    images: np.ndarray, labels: np.ndarray, index: np.ndarray, batch_size: int
) -> Batch:
    missing = batch_size - len(labels)
    mask = np.arange(batch_size) < len(labels)
    if missing:
        images = np.concatenate(
            [images, np.zeros((missing, *images.shape[1:]), images.dtype)]
        )
        zeros = np.zeros((missing, *labels.shape[1:]), labels.dtype)
        labels = np.concatenate([labels, zeros])
        index = np.concatenate([index, np.full(missing, -1, index.dtype)])
    return Batch(images, labels, index.astype(np.int64), mask)
