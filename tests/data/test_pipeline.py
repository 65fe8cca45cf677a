import numpy as np
import pytest

from rankckpt_jax.data import image_cache, pipeline, tasks
from rankckpt_jax.devices import processes

CACHED, STREAMED = pytest.param("", id="cached"), pytest.param("off", id="streamed")


@pytest.fixture
def split():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (23, 8, 8, 3), dtype=np.uint8)
    return tasks.array_split("train", images, np.arange(23) % 5)


def share(monkeypatch, process, count):
    monkeypatch.setattr(processes, "process_index", lambda: process)
    monkeypatch.setattr(processes, "process_count", lambda: count)


@pytest.mark.parametrize("directory", [CACHED, STREAMED])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_batches_yields_every_example_in_equally_many_steps(
    split, directory, count, monkeypatch
):
    seen, steps = [], []
    for process in range(count):
        share(monkeypatch, process, count)
        cache = image_cache.open_cache(directory)
        batches = list(
            pipeline.batches(
                split, size=16, preprocess="vtab", batch_size=6, cache=cache
            )
        )
        steps.append(len(batches))
        for batch in batches:
            assert batch.images.shape == (6, 16, 16, 3)
            assert batch.images.dtype == np.uint8
            assert (batch.index[~batch.mask] == -1).all()
            np.testing.assert_array_equal(
                batch.labels[batch.mask], batch.index[batch.mask] % 5
            )
            seen.extend(batch.index[batch.mask])
    assert sorted(seen) == list(range(23))
    assert set(steps) == {pipeline.num_steps(23, 6)}


@pytest.mark.parametrize("directory", [CACHED, STREAMED])
def test_training_batches_resumes_at_any_step(split, directory):
    def indices(first, last):
        cache = image_cache.open_cache(directory)
        return [
            batch.index.tolist()
            for batch in pipeline.training_batches(
                split,
                size=8,
                preprocess="vtab",
                batch_size=4,
                seed=3,
                first_step=first,
                last_step=last,
                cache=cache,
            )
        ]

    complete = indices(0, 20)
    assert len(complete) == 20 and all(len(batch) == 4 for batch in complete)
    assert indices(7, 20) == complete[7:]
    flat = np.concatenate(complete)
    for epoch in range(3):
        assert sorted(flat[epoch * 23 : (epoch + 1) * 23]) == list(range(23))
    assert flat[:23].tolist() != flat[23:46].tolist()


@pytest.mark.parametrize("directory", [CACHED, STREAMED])
def test_training_batches_divides_the_global_batch_among_processes(
    split, directory, monkeypatch
):
    def global_batches(count):
        parts = []
        for process in range(count):
            share(monkeypatch, process, count)
            parts.append(
                [
                    batch.index
                    for batch in pipeline.training_batches(
                        split,
                        size=8,
                        preprocess="vtab",
                        batch_size=6 // count,
                        seed=3,
                        first_step=0,
                        last_step=3,
                        cache=image_cache.open_cache(directory),
                    )
                ]
            )
        return [sorted(np.concatenate(step)) for step in zip(*parts, strict=True)]

    assert global_batches(2) == global_batches(1)


def test_batches_are_equal_when_cached_or_streamed(split):
    def images(directory):
        cache = image_cache.open_cache(directory)
        return np.concatenate(
            [
                batch.images
                for batch in pipeline.batches(
                    split, size=13, preprocess="vtab", batch_size=5, cache=cache
                )
            ]
        )

    np.testing.assert_array_equal(images(""), images("off"))


def test_training_batches_stream_if_one_process_cannot_keep_the_images(
    split, monkeypatch
):
    def batches(directory):
        return pipeline.training_batches(
            split,
            size=8,
            preprocess="vtab",
            batch_size=4,
            seed=3,
            first_step=0,
            last_step=12,
            cache=image_cache.open_cache(directory),
        )

    share(monkeypatch, 1, 2)
    monkeypatch.setattr(processes, "all_gather", lambda value: [False, value])
    for cached, streamed in zip(batches(""), batches("off"), strict=True):
        np.testing.assert_array_equal(cached.index, streamed.index)
