"""Batches of images for one process: decoded, resized, padded, masked.

Decoding runs in tf.data's threads ahead of the consumer, so that it overlaps with the
device's work. Every batch has the same shape; the last is padded and its mask says
which rows are real, and every process takes the same number of steps.
"""

from __future__ import annotations

import dataclasses
import math
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from rankckpt_jax.data import corrupt_images as readable
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.data.lazy_tensorflow import tensorflow
from rankckpt_jax.data.splits import Split
from rankckpt_jax.devices import processes
from rankckpt_jax.errors import UnreadableImage


@dataclasses.dataclass(frozen=True)
class Batch:
    """One process's part of a step.

    Attributes:
      images: float32 [B, S, S, 3] in [0, 255].
      labels: int32 [B]; 0 where padded.
      index: int64 [B], the example's position in its split; -1 where padded.
      mask: bool [B]; False where padded.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    mask: np.ndarray


class ImageCache:
    """Decoded images of the splits last used, within a budget of memory.

    A pool's checkpoints often share an image size; decoding JPEG files once for all
    of them, and once for all epochs of fine-tuning, saves most of the host's work.
    Images are kept as float32, as resized: rounding them would change the features.
    """

    def __init__(self, gigabytes: float):
        """Makes an empty cache that holds at most `gigabytes` (1e9 bytes)."""
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
        """Returns a split decoded, or None where it is above the budget.

        Args:
          split: Its images in all processes' shares.
          size: Side of the square images.
          preprocess: See `preprocess.resize`.
          process: Which share of the examples to return, in their order: that which
            begins with this one
          count: and takes each so many-th; by default all.

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
        self._held[key] = self._held.pop(key)  # The most recently used stands last.
        return self._held[key]

    def _used(self) -> int:
        return sum(images.nbytes for images, _ in self._held.values())


def num_steps(num_examples: int, batch_size: int) -> int:
    """Steps every process takes so that all together see each example once."""
    largest_share = math.ceil(num_examples / processes.process_count())
    return math.ceil(largest_share / batch_size)


def batches(
    split: Split, *, size: int, preprocess: str, batch_size: int, cache: ImageCache
) -> Iterator[Batch]:
    """Yields this process's share of a split once, in order, padded and masked.

    Args:
      split: What to read.
      size: Side of the square images.
      preprocess: See `preprocess.resize`.
      batch_size: Rows of a batch, B, for this process.
      cache: Where decoded images are kept between passes.
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
    """Yields this process's part of the training batches of steps [first, last).

    The order is a function of (seed, step) alone: example `t * global_batch + r` of
    an endless row of epochs, each in an order drawn from (seed, epoch). A run that
    was stopped goes on with the very batches it would have seen.

    Args:
      split: What to train on.
      size: Side of the square images.
      preprocess: See `preprocess.resize`.
      batch_size: Rows for this process; the global batch is `process_count()` times
        that. Every batch is full.
      seed: Decides the order.
      first_step: Step to begin with, from 0.
      last_step: Step to stop before.
      cache: Where decoded images are kept.
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
    """Yields the items, made in a thread of their own up to `count` ahead.

    Gathering a batch out of host memory takes milliseconds that an accelerator would
    spend waiting. What the items' iterator raises is raised here, in its turn.
    """
    made: queue.Queue[Any] = queue.Queue(count)
    enough = threading.Event()
    end = object()

    def put(value: Any) -> None:
        while not enough.is_set():
            try:
                made.put(value, timeout=0.1)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put((item, None))
                if enough.is_set():
                    return
            put((end, None))
        except BaseException as error:  # Raised anew where the items are taken.
            put((end, error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        enough.set()
        thread.join()


def _shuffled_rows(num_examples: int, positions: np.ndarray, seed: int) -> np.ndarray:
    """Examples at `positions` of the endless row of shuffled epochs."""
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
            expected="JPEG, PNG, BMP or GIF files of at most "
            f"{preprocess_lib.MAX_MEGAPIXELS} megapixels",
            found=readable.why(error),
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
