import numpy as np
import pytest

from rankckpt_jax import measures
from tests.benchmarks import published_agreement


@pytest.fixture(scope="module")
def rows():
    return published_agreement.read()


def test_compute_gives_the_committed_result(shared, rows):
    computed = published_agreement.compute(shared / "data")
    assert [(r.pool, r.task, r.measure, r.num_checkpoints) for r in computed] == [
        (r.pool, r.task, r.measure, r.num_checkpoints) for r in rows
    ]
    # The file has four digits.
    for one, other in zip(computed, rows, strict=True):
        assert one.kendall == pytest.approx(other.kendall, abs=1e-4)


@pytest.mark.parametrize("name", measures.names())
def test_evidence_of_measures_is_the_mean_of_the_committed_result(rows, name):
    tau, count = published_agreement.mean(rows, name)
    evidence = measures.get(name).evidence
    if evidence is None:
        assert count == 0
    else:
        assert (evidence.kendall, evidence.num_pairs) == (round(tau, 2), count)


def test_compare_agrees_with_the_means():
    rows = [
        published_agreement.Agreement("pool", str(task), name, 9, tau)
        for name, taus in {"one": [0.5, 0.4, 0.3], "other": [0.2, 0.3, 0.1]}.items()
        for task, tau in enumerate(taus)
    ]
    # Of the 8 ways to choose signs, 2 give a sum at least as far from zero.
    compared = published_agreement.compare(rows, "one", "other")
    assert compared == (pytest.approx(0.2), 2 / 8, 3)
    assert np.isnan(published_agreement.mean(rows, "none")[0])
