import numpy as np
import pytest
from sklearn.cluster import KMeans

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.mixture import kmeans
from rankckpt_jax.measures.statistics import pca


def check_inertia(x, num_clusters, tolerance):
    """Assert that ten seeds have scikit-learn's median inertia."""
    clusterings = kmeans.fit_many(x, num_clusters, tuple(range(10)))
    inertias = [float(clustering.inertia) for clustering in clusterings]
    expected = [
        KMeans(num_clusters, n_init=1, random_state=seed).fit(x).inertia_
        for seed in range(10)
    ]
    assert len(set(inertias)) == 10
    assert np.median(inertias) == pytest.approx(np.median(expected), rel=tolerance)
    return clusterings


def test_inertia_matches_scikit_learn():
    # Without clusters, inertias of different seeds differ by 0.3 % only.
    x = np.random.default_rng(0).normal(size=(1000, 20)).astype(np.float32)
    check_inertia(x, 30, 0.01)


def test_inertia_matches_scikit_learn_for_separated_clusters(few_per_component):
    # Both have a standard deviation of 3 %; medians of thirty seeds differ by 0.3 %.
    x, _ = few_per_component
    clustering = check_inertia(x, 100, 0.05)[0]
    # The result is a fixed point of Lloyd's iteration.
    distances = ((x[:, None] - clustering.centers) ** 2).sum(-1)
    assert (distances.argmin(1) == clustering.assignments).mean() > 0.998
    for cluster in range(100):
        mean = x[clustering.assignments == cluster].mean(0)
        np.testing.assert_allclose(clustering.centers[cluster], mean, atol=1e-4)


@pytest.mark.shared
def test_inertia_matches_scikit_learn_on_real_features(real):
    x = np.asarray(pca.transform(pca.fit(real.features), real.features))
    # A third of the images, as many for each cluster as with five clusters per class.
    check_inertia(x[::3], 170, 0.01)


def test_empty_clusters_are_filled():
    random = np.random.default_rng(0)
    x = np.concatenate([np.zeros((50, 3)), random.normal(size=(7, 3))])
    clustering = kmeans.fit(x.astype(np.float32), 8)
    assert len(np.unique(clustering.assignments)) == 8
    assert float(clustering.inertia) == pytest.approx(0, abs=1e-5)


def test_fit_raises_for_more_clusters_than_points():
    with pytest.raises(InputError, match="more clusters than points"):
        kmeans.fit(np.zeros((3, 2), np.float32), 4)
