"""The number of programs that a pool of checkpoints compiles."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax.devices import mapping
from rankckpt_jax.measures.mixture import em, fitting, kmeans
from rankckpt_jax.measures.statistics import blocks

# Principal components with 80 % of the variance of 41 checkpoints: networks of 64 to
# 4096 features, supervised, self-supervised and generative.
DIMENSIONS = (
    *(9, 14, 21, 26, 33, 38, 47, 55, 61, 68, 72, 77, 83, 88, 94, 99, 105, 112, 118),
    *(123, 127, 131, 138, 144, 149, 156, 163, 171, 178, 186, 195, 207, 219, 231, 248),
    *(262, 279, 295, 312, 331, 340),
)


@pytest.mark.slow
def test_pool_of_41_checkpoints_compiles_few_programs(caplog):
    assert len(DIMENSIONS) == 41
    random = np.random.default_rng(0)
    # Programs are kept by shape, and this shape is that of no other test.
    num_images, count = 91, 23
    # EM's own choice needs fewer images per component than dimensions.
    with caplog.at_level(logging.DEBUG, logger=mapping.__name__):
        for dimensions in DIMENSIONS:
            x = random.normal(size=(num_images, dimensions)).astype(np.float32)
            # The seeds of three restarts.
            for clusters in kmeans.fit_many(x, count, (0, 1, 2)):
                start = clusters.assignments
                fitted = fitting.fit(x, count, init_labels=start, max_iter=2)
                assert fitted.sparse is not None
    traced = [record.getMessage().split()[1] for record in caplog.records]
    assert traced.count("measures.mixture.kmeans.program.fit_one") == 1
    assert traced.count("measures.mixture.fitting.run_sparse.run") == 3
    assert len(traced) == 4


def test_padding_of_a_pool_adds_less_than_half():
    padded = [blocks.pad_dimensions(np.zeros((1, d))).shape[1] for d in DIMENSIONS]
    assert set(padded) == {96, 192, 384}
    assert sum(padded) <= 1.5 * sum(DIMENSIONS)
    # Groups of columns that are padding are skipped.
    ends = kmeans.group_ends(max(DIMENSIONS))
    columns = [min(end for end in ends if end >= d) for d in DIMENSIONS]
    assert sum(columns) <= 1.5 * sum(DIMENSIONS)


def test_groups_of_k_means_end_at_the_widths_of_em():
    assert kmeans.group_ends(3) == kmeans.group_ends(384) == [96, 192, 384]
    assert kmeans.group_ends(385) == [96, 192, 384, 768]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("num_images", "is_sparse"),
    [pytest.param(60, True, marks=pytest.mark.slow), (600, False)],
)
def test_padding_of_dimensions_is_exact(num_images, is_sparse, monkeypatch):
    random = np.random.default_rng(0)
    labels = np.arange(num_images) % 10
    x = random.normal(size=(10, 20))[labels] + random.normal(size=(num_images, 20))
    results = []
    for smallest in (32, 64):
        monkeypatch.setattr(blocks, "_DIMENSIONS", (smallest, 2, 32))
        results.append(fitting.fit(x, 10, init_labels=labels))
        assert (results[-1].sparse is not None) == is_sparse
    bounds = [fitted.lower_bounds for fitted in results]
    # Sums of other zeros may be rounded differently.
    np.testing.assert_allclose(*bounds, rtol=1e-12)
    for first, second in zip(*(f.parameters() for f in results), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "dimensions", "width"),
    [
        ("full", 9, 64),
        ("full", 64, 64),
        ("full", 65, 80),
        ("full", 96, 96),
        ("diag", 9, 96),
    ],
)
def test_by_width_takes_the_smallest_width(kind, dimensions, width):
    def compute(number):
        return em._by_width(kind, jnp.int32, number, 96)

    assert jax.jit(compute)(np.float32(dimensions)) == width
