import io

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from rankckpt_jax.data import tasks
from rankckpt_jax.features import views


def make_features(classes, separation, n=280, d=10):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % classes
    means = separation * rng.normal(size=(classes, d))
    return means[labels] + rng.normal(size=(n, d)) * np.geomspace(2, 0.2, d), labels


def test_summarize_matches_scikit_learn_and_anova():
    features, labels = make_features(4, 1.0)
    summary = views.summarize("net", features, labels, ["a", "b", "c", "d"])
    expected = np.cumsum(PCA().fit(features).explained_variance_ratio_)
    count = len(summary.cumulative)
    np.testing.assert_allclose(summary.cumulative, expected[:count], atol=1e-5)
    assert summary.dimensions == 1 + int(np.argmax(expected > views.ENERGY))
    total = ((features - features.mean(0)) ** 2).sum()
    groups = [features[labels == c] for c in range(4)]
    within = sum(((group - group.mean(0)) ** 2).sum() for group in groups)
    assert summary.between == pytest.approx(1 - within / total, abs=1e-5)
    assert summary.classes == ("a", "b", "c", "d")


def test_summarize_separates_distant_classes():
    summary = views.summarize("net", *make_features(9, 8.0))
    # At most 6 classes, and 40 images of each.
    assert len(summary.classes) == 6 and summary.classes[0] == "class 0"
    points, labels = np.array(summary.points), np.array(summary.labels)
    assert points.shape == (len(labels), 2) and np.bincount(labels).max() <= 40
    centers = np.stack([points[labels == c].mean(0) for c in range(6)])
    nearest = ((points[:, None] - centers) ** 2).sum(2).argmin(1)
    assert np.mean(nearest == labels) > 0.95


def test_summarize_accepts_constant_features():
    summary = views.summarize("net", np.ones((12, 3)), np.arange(12) % 2)
    assert summary.between == 0 and np.isfinite(summary.points).all()


def test_samples_returns_resized_images_of_the_task(image_folder):
    task = tasks.from_folder(str(image_folder))
    samples = views.samples(
        task.splits["train"], task.class_names, size=24, preprocess="vtab", count=5
    )
    assert len(samples) == 5
    for sample in samples:
        image = np.asarray(Image.open(io.BytesIO(sample.jpeg)))
        assert image.shape == (24, 24, 3) and sample.size == 24
        # The brightest channel of an image is the color that names its class.
        brightest = image.mean((0, 1)).argmax()
        assert ("red", "green", "blue")[brightest] == sample.class_name
