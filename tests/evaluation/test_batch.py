"""Many rankings at once equal one at a time, which SciPy computes."""

import numpy as np
import pytest

from rankckpt_jax import evaluation
from rankckpt_jax.evaluation import batch


@pytest.mark.parametrize("levels", [2, 4, 1000])
@pytest.mark.parametrize("n", [1, 2, 7, 41])
def test_equals_one_ranking_at_a_time(levels, n):
    rng = np.random.default_rng(n)
    s = rng.integers(levels, size=(20, n)) / levels
    a = rng.integers(levels, size=(20, n)) / levels
    together = batch.evaluate(s, a)
    assert set(together) == set(batch.METRICS)
    for i in range(len(s)):
        alone = evaluation.score_ranking(s[i], a[i])
        for name, values in together.items():
            # Rounding of float64 sums in another order than SciPy's.
            np.testing.assert_allclose(values[i], alone[name], atol=1e-12)


def test_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    s, a = rng.normal(size=(2, 30, 6))
    whole = batch.kendall(s, a)
    monkeypatch.setattr(batch, "_BLOCK_ELEMENTS", 100)
    np.testing.assert_array_equal(batch.kendall(s, a), whole)


def test_no_checkpoints_are_undefined():
    empty = np.zeros((3, 0))
    assert all(np.isnan(v).all() for v in batch.evaluate(empty, empty).values())
