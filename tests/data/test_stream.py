import threading
import time

import numpy as np
import pytest

from rankckpt_jax.data import decode, splits, stream
from rankckpt_jax.errors import UnreadableImage


def example(index, read=None):
    pixels = np.full((6, 8, 3), index, np.uint8)
    return splits.Example(index, index % 3, read or (lambda: pixels))


def split():
    return splits.Split("train", 10, lambda: "", lambda *order: iter(()))


def batches(examples, batch_size=4):
    return stream.batches(split(), 5, "vtab", batch_size=batch_size, examples=examples)


def test_batches_keep_the_order_and_all_examples():
    found = list(batches(example(i) for i in range(10)))
    assert [len(batch.labels) for batch in found] == [4, 4, 2]
    index = np.concatenate([batch.index for batch in found])
    np.testing.assert_array_equal(index, np.arange(10))
    np.testing.assert_array_equal(
        np.concatenate([batch.labels for batch in found]), np.arange(10) % 3
    )
    for batch in found:
        assert batch.images.shape[1:] == (5, 5, 3) and batch.images.dtype == np.uint8
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.index)


def test_batches_raise_unreadable_image_after_the_images_before_it():
    def fail():
        raise decode.UnusableImage("cut short")

    examples = [example(i, fail if i == 6 else None) for i in range(10)]
    found = batches(examples)
    assert next(found).index.tolist() == [0, 1, 2, 3]
    with pytest.raises(UnreadableImage, match="cut short"):
        next(found)


def test_batches_do_not_hide_other_errors():
    def fail():
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        list(batches([example(0, fail)]))


def test_map_ahead_takes_no_more_items_than_it_may_hold():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    results = stream.map_ahead(lambda i: -i, items(), 8)
    for i in range(50):
        assert next(results) == -i
        assert len(taken) <= i + 8
    results.close()
    assert len(taken) <= 60


def test_map_ahead_computes_while_the_consumer_waits():
    done = []
    results = stream.map_ahead(lambda i: done.append(i), range(100), 8)
    next(results)
    deadline = time.monotonic() + 10
    while len(done) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(done) == 8


def test_map_ahead_ends_its_threads_when_it_is_left():
    before = threading.active_count()
    started = []

    def slow(i):
        started.append(i)
        time.sleep(0.02)

    results = stream.map_ahead(slow, range(1000), 200)
    next(results)
    results.close()
    assert threading.active_count() == before
    # What had not started was canceled.
    assert len(started) < 200
