import numpy as np
import pytest
from sklearn.cluster import KMeans

from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.mixture import kmeans
from rankckpt_jax.measures.statistics import pca


def inertias(x, num_clusters):
    """Of ten starts of ours and of scikit-learn's."""
    ours = [float(kmeans.fit(x, num_clusters, seed).inertia) for seed in range(10)]
    theirs = [
        KMeans(num_clusters, n_init=1, random_state=seed).fit(x).inertia_
        for seed in range(10)
    ]
    assert len(set(ours)) == 10
    return ours, theirs


def test_its_inertia_is_that_of_scikit_learn():
    # Without clusters to be missed starts differ by 0.3 %, and medians can be compared.
    x = np.random.default_rng(0).normal(size=(1000, 20)).astype(np.float32)
    ours, theirs = inertias(x, 30)
    assert np.median(ours) == pytest.approx(np.median(theirs), rel=0.01)


def test_where_starts_scatter_it_scatters_as_scikit_learn_does(few_per_component):
    x, _ = few_per_component
    ours, theirs = inertias(x, 100)
    # Both have a standard deviation of 3 %; thirty starts have medians 0.3 % apart.
    assert np.median(ours) == pytest.approx(np.median(theirs), rel=0.05)


@pytest.mark.shared
def test_its_inertia_on_real_features(shared):
    file = "caltech101_mobilenet_v1_0.25_128.npz"
    with np.load(shared / "golden" / "measures" / file) as golden:
        features = golden["features"]
    x = np.asarray(pca.transform(pca.fit(features), features))
    ours, theirs = inertias(x, 510)
    assert np.median(ours) == pytest.approx(np.median(theirs), rel=0.01)


def test_the_result_is_a_fixed_point(few_per_component):
    x, _ = few_per_component
    found = kmeans.fit(x, 30, seed=1)
    assignments = np.asarray(found.assignments)
    distances = ((x[:, None] - np.asarray(found.centers)) ** 2).sum(-1)
    assert (distances.argmin(1) == assignments).mean() > 0.998
    for cluster in range(30):
        np.testing.assert_allclose(
            found.centers[cluster], x[assignments == cluster].mean(0), atol=1e-4
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
