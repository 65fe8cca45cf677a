"""Batches of images for one process: decoded, resized, padded and masked.

Decoding runs ahead of the consumer in the threads of tf.data, so that it overlaps with
the device's work. Every batch has the same shape: the last one is padded, and its mask
marks the real rows. Every process takes the same number of steps.
"""

from __future__ import annotations

import dataclasses
import math
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from rankckpt_jax.data import corrupt_images, decode, image_headers
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.data.splits import Split
from rankckpt_jax.devices import mapping, processes
from rankckpt_jax.errors import UnreadableImage

# Rows of a batch below which compiling another program takes longer than padding.
_SMALL_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Batch:
    """One process's part of a step.

    Attributes:
      images: float32 [B, S, S, 3] in [0, 255].
      labels: int32 [B]; 0 in padding rows.
      index: int64 [B], the example's position in its split; -1 in padding rows.
      mask: bool [B]; False in padding rows.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    mask: np.ndarray


class ImageCache:
    """Decoded images of the most recently used splits, within a memory budget.

    The checkpoints of a pool often share an image size. Decoding JPEG files once for
    all of them, and once for all epochs of fine-tuning, saves most of the host's work.
    Images are kept in float32, because rounding them would change the features.
    """

    def __init__(self, gigabytes: float):
        """Initialize an empty cache of at most `gigabytes` (1e9 bytes each)."""
        self._budget = gigabytes * 1e9
        self._held: dict[Any, tuple[np.ndarray, np.ndarray]] = {}

    def get(
        self,
        split: Split,
        size: int,
        preprocess: str,
        process: int = 0,
        count: int = 1,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the decoded images of a split, or None if they exceed the budget.

        Args:
          split: The split.
          size: Side of the square images in pixels.
          preprocess: See `preprocess.resize`.
          process: First example to return.
          count: Every `count`-th example from `process` on is returned.

        Returns:
          (images float32 [N, S, S, 3] in [0, 255], labels int32 [N]).
        """
        key = (split.fingerprint, size, preprocess, process, count)
        if key not in self._held:
            needed = _num_bytes(split, size) // count
            if needed > self._budget:
                return None
            while self._held and needed + self._used() > self._budget:
                self._held.pop(next(iter(self._held)))
            self._held[key] = _decode(split, size, preprocess, process, count)
        self._held[key] = self._held.pop(key)  # Most recently used last.
        return self._held[key]

    def _used(self) -> int:
        return sum(images.nbytes for images, _ in self._held.values())


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
    """Yield this process's share of a split once, in order, padded and masked.

    Args:
      split: The split to read.
      size: Side of the square images in pixels.
      preprocess: See `preprocess.resize`.
      batch_size: Rows per batch, B, of this process.
      cache: Keeps decoded images between passes.
    """
    process, count = processes.process_index(), processes.process_count()
    steps = num_steps(split.num_examples, batch_size)
    held = cache.get(split, size, preprocess, process, count)
    if held is not None:
        images, labels = held
        share = np.arange(split.num_examples)[process::count]
        for step in range(steps):
            part = slice(step * batch_size, (step + 1) * batch_size)
            yield _padded(images[part], labels[part], share[part], batch_size)
        return
    stream = _resized(split, size, preprocess, None, process, count, 0)
    iterator = _numpy(split, stream.batch(batch_size))
    for _ in range(steps):
        batch = next(iterator, None)
        if batch is None:
            empty = np.zeros(0, np.int64)
            images = np.zeros((0, size, size, 3), np.float32)
            yield _padded(images, empty, empty, batch_size)
        else:
            yield _padded(batch["image"], batch["label"], batch["index"], batch_size)


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
    """Yield this process's part of the training batches of steps [first, last).

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
      cache: Keeps decoded images.
    """
    process, count = processes.process_index(), processes.process_count()
    held = cache.get(split, size, preprocess)
    positions = np.arange(first_step * batch_size, last_step * batch_size)
    if held is not None:
        images, labels = held
        rows = _shuffled_rows(split.num_examples, positions * count + process, seed)
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            yield _padded(images[chosen], labels[chosen], chosen, batch_size)
        return
    share = len(range(process, split.num_examples, count))
    epoch, skip = divmod(first_step * batch_size, share)
    stream = _resized(split, size, preprocess, _seed(seed, epoch), process, count, skip)
    last_epoch = (last_step * batch_size - 1) // share
    for later in range(epoch + 1, last_epoch + 1):
        stream = stream.concatenate(
            _resized(split, size, preprocess, _seed(seed, later), process, count, 0)
        )
    stream = stream.batch(batch_size, drop_remainder=True)
    for batch in _numpy(split, stream.take(last_step - first_step)):
        yield _padded(batch["image"], batch["label"], batch["index"], batch_size)


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


def _num_bytes(split: Split, size: int) -> int:
    return split.num_examples * size * size * 3 * np.dtype(np.float32).itemsize


def _resized(
    split: Split,
    size: int,
    preprocess: str,
    seed: int | None,
    process: int,
    count: int,
    skip: int,
) -> Any:
    tf = tensorflow()

    def resize(example: Any) -> Any:
        image = preprocess_lib.resize(example["image"], size, preprocess)
        return {**example, "image": image}

    return split.examples(seed, process, count, skip).map(
        resize, num_parallel_calls=tf.data.AUTOTUNE
    )


def _numpy(split: Split, dataset: Any) -> Iterator[Any]:
    tf = tensorflow()
    try:
        yield from dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    except tf.errors.InvalidArgumentError as error:
        raise UnreadableImage(
            "An image cannot be decoded",
            where=f"split {split.name!r}",
            expected=f"{image_headers.READABLE} files of at most "
            f"{decode.MAX_MEGAPIXELS} megapixels",
            found=corrupt_images.reason(error),
        ) from error


def _decode(
    split: Split, size: int, preprocess: str, process: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    share = len(range(process, split.num_examples, count))
    images = np.empty((share, size, size, 3), np.float32)
    labels = np.empty(share, np.int32)
    stream = _resized(split, size, preprocess, None, process, count, 0).batch(64)
    for batch in _numpy(split, stream):
        rows = batch["index"] // count
        images[rows] = batch["image"]
        labels[rows] = batch["label"]
    return images, labels


def _padded(
    images: np.ndarray, labels: np.ndarray, index: np.ndarray, batch_size: int
) -> Batch:
    missing = batch_size - len(labels)
    mask = np.arange(batch_size) < len(labels)
    if missing:
        images = np.concatenate(
            [images, np.zeros((missing, *images.shape[1:]), images.dtype)]
        )
        labels = np.concatenate([labels, np.zeros(missing, labels.dtype)])
        index = np.concatenate([index, np.full(missing, -1, index.dtype)])
    return Batch(images, labels.astype(np.int32), index.astype(np.int64), mask)
