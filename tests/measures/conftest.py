"""Inputs shared by the tests of measures."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest


@dataclasses.dataclass(frozen=True)
class Task:
    """Float64 features [N, D] and logits [N, V], labels [N], and expected scores."""

    features: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    expected: dict[str, float]


@pytest.fixture(scope="session")
def small() -> Task:
    """Four Gaussian classes, generated as for tests/golden/measures/small.json."""
    rng = np.random.default_rng(0)
    classes, n, d = 4, 240, 12
    labels = np.arange(n) % classes
    features = rng.normal(size=(classes, d))[labels] + rng.normal(size=(n, d))
    logits = rng.normal(size=(n, 6))
    logits[:, :classes] += 1.5 * np.eye(classes)[labels]
    file = pathlib.Path(__file__).parents[1] / "golden" / "measures" / "small.json"
    expected = json.loads(file.read_text())
    assert features.sum() == pytest.approx(expected["features_sum"], abs=1e-8)
    return Task(features, labels, logits, {**expected["scores"], **expected["options"]})


@pytest.fixture(scope="session")
def few_per_component() -> tuple[np.ndarray, np.ndarray]:
    """Features [600, 40] and labels of 20 classes; six images in each of 100 clusters.

    As in a real benchmark, components have fewer points than dimensions.
    """
    rng = np.random.default_rng(1)
    clusters, classes, d = 100, 20, 40
    scale = np.geomspace(3, 0.3, d)
    means = rng.normal(size=(clusters, d)) * scale
    members = np.repeat(np.arange(clusters), 6)
    features = means[members] + 0.4 * scale * rng.normal(size=(len(members), d))
    labels = members % classes
    wrong = rng.random(len(labels)) < 0.2
    labels = np.where(wrong, rng.integers(0, classes, len(labels)), labels)
    return features.astype(np.float32), labels


@dataclasses.dataclass(frozen=True)
class Real:
    """Real features, labels and logits with reference scores and mixtures.

    Attributes:
      arrays: Reference results of k-means and EM, see the keys of the .npz file.
      scores: Scores from published code.
    """

    features: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    arrays: dict[str, np.ndarray]
    scores: dict[str, float]


@pytest.fixture(scope="session")
def real(shared) -> Real:
    """Caltech101 features of a real MobileNet, with float64 references."""
    folder, name = shared / "golden" / "measures", "caltech101_mobilenet_v1_0.25_128"
    with np.load(folder / f"{name}.npz") as file:
        arrays = dict(file)
    with np.load(folder / f"{name}_logits.npz") as file:
        logits = file["logits"]
    scores = json.loads((folder / f"{name}_reference_scores.json").read_text())
    return Real(arrays["features"], arrays["labels"], logits, arrays, scores["scores"])


@pytest.fixture
def double():
    """Enable float64 in JAX."""
    with jax.enable_x64(True):
        yield
