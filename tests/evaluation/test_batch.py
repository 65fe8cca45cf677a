"""The metrics of many rankings equal those of single ones, which SciPy computes."""

import numpy as np
import pytest

from rankckpt_jax import evaluation
from rankckpt_jax.evaluation import batch


@pytest.mark.parametrize("levels", [2, 4, 1000])
@pytest.mark.parametrize("n", [1, 2, 7, 41])
def test_evaluate_matches_score_ranking(levels, n):
    rng = np.random.default_rng(n)
    s = rng.integers(levels, size=(10, n)) / levels
    a = rng.integers(levels, size=(10, n)) / levels
    result = batch.evaluate(s, a)
    assert set(result) == set(batch.METRICS)
    for i in range(len(s)):
        expected = evaluation.score_ranking(s[i], a[i])
        for name, values in result.items():
            # float64 sums in another order than SciPy's.
            np.testing.assert_allclose(values[i], expected[name], atol=1e-12)


def test_kendall_does_not_depend_on_the_block_size(monkeypatch):
    rng = np.random.default_rng(0)
    s, a = rng.normal(size=(2, 30, 6))
    expected = batch.kendall(s, a)
    monkeypatch.setattr(batch, "_BLOCK_ELEMENTS", 100)
    np.testing.assert_array_equal(batch.kendall(s, a), expected)


def test_evaluate_of_no_checkpoints_is_nan():
    empty = np.zeros((3, 0))
    assert all(np.isnan(v).all() for v in batch.evaluate(empty, empty).values())
