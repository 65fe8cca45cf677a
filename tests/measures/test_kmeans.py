import numpy as np
import pytest
from sklearn.cluster import KMeans

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import kmeans


def test_its_inertia_is_that_of_scikit_learn(few_per_component):
    x, _ = few_per_component
    ours = [float(kmeans.fit(x, 100, seed).inertia) for seed in range(10)]
    theirs = [
        KMeans(100, n_init=1, random_state=seed).fit(x).inertia_ for seed in range(10)
    ]
    # One start scatters by several percent here; the medians of ten do not.
    assert np.median(ours) <= 1.05 * np.median(theirs)
    assert len(set(ours)) == 10


def test_the_result_is_a_fixed_point(few_per_component):
    x, _ = few_per_component
    found = kmeans.fit(x, 30, seed=1)
    assignments = np.asarray(found.assignments)
    distances = ((x[:, None] - np.asarray(found.centres)) ** 2).sum(-1)
    assert (distances.argmin(1) == assignments).mean() > 0.998
    for cluster in range(30):
        np.testing.assert_allclose(
            found.centres[cluster], x[assignments == cluster].mean(0), atol=1e-4
        )


def test_no_cluster_stays_empty_while_there_are_points_to_give():
    random = np.random.default_rng(0)
    x = np.concatenate([np.zeros((50, 3)), random.normal(size=(7, 3))])
    found = kmeans.fit(x.astype(np.float32), 8)
    assert len(np.unique(found.assignments)) == 8
    assert float(found.inertia) == pytest.approx(0, abs=1e-5)


def test_more_clusters_than_points_is_refused():
    with pytest.raises(InputError, match="More clusters"):
        kmeans.fit(np.zeros((3, 2), np.float32), 4)
