"""Pictures for the page: what they say of features, and that images are the task's."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from rankckpt_jax.data import tasks
from rankckpt_jax.features import views


def drawn(classes, separation, n=280, d=10):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    means = separation * rng.normal(size=(classes, d))
    return means[labels] + rng.normal(size=(n, d)) * np.geomspace(2, 0.2, d), labels


def test_the_spectrum_is_scikit_learns_and_the_share_between_is_anovas():
    features, labels = drawn(4, 1.0)
    view = views.summarize("net", features, labels, ["a", "b", "c", "d"])
    expected = np.cumsum(PCA().fit(features).explained_variance_ratio_)
    shown = len(view.cumulative)
    np.testing.assert_allclose(view.cumulative, expected[:shown], atol=1e-5)
    assert view.dimensions == 1 + int(np.argmax(expected > views.ENERGY))
    total = ((features - features.mean(0)) ** 2).sum()
    groups = [features[labels == c] for c in range(4)]
    within = sum(((group - group.mean(0)) ** 2).sum() for group in groups)
    assert view.between == pytest.approx(1 - within / total, abs=1e-5)
    assert view.classes == ("a", "b", "c", "d")


def test_classes_far_apart_are_islands_in_the_plane():
    view = views.summarize("net", *drawn(9, 8.0))
    # Of many classes and images some.
    assert len(view.classes) == 6 and view.classes[0] == "class 0"
    points, labels = np.array(view.points), np.array(view.labels)
    assert points.shape == (len(labels), 2) and np.bincount(labels).max() <= 40
    centers = np.stack([points[labels == c].mean(0) for c in range(6)])
    nearest = ((points[:, None] - centers) ** 2).sum(2).argmin(1)
    assert np.mean(nearest == labels) > 0.95


def test_features_that_do_not_vary_have_a_view():
    view = views.summarize("net", np.ones((12, 3)), np.arange(12) % 2)
    assert view.between == 0 and np.isfinite(view.points).all()


def test_samples_are_the_tasks_images_at_the_networks_size(image_folder):
    task = tasks.from_folder(str(image_folder))
    found = views.samples(
        task.splits["train"], task.class_names, size=24, preprocess="vtab", count=5
    )
    assert len(found) == 5
    for sample in found:
        image = np.asarray(Image.open(io.BytesIO(sample.jpeg)))
        assert image.shape == (24, 24, 3) and sample.size == 24
        # Each class has a channel that is the brightest.
        brightest = image.mean((0, 1)).argmax()
        assert ("red", "green", "blue")[brightest] == sample.class_name
