import json
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from rankckpt_jax import measures
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import nleep
from rankckpt_jax.measures.mixture import fitting, gmm, kmeans, prediction
from rankckpt_jax.measures.statistics import pca
from tests.measures import device_scores, references
from tests.processes import with_devices


def generate(separation=0.5, n=600, classes=6, d=24):
    random = np.random.default_rng(0)
    labels = np.arange(n) % classes
    means = random.normal(size=(classes, d))
    features = separation * means[labels] + random.normal(size=(n, d))
    return features.astype(np.float32), labels


@pytest.mark.parametrize(
    ("variant", "num_components"),
    [
        ("paper", 30),
        ("stable_transfer", 30),
        ("sfda", 30),
        ("pactran", 60),  # max(min(6, 600 / 5), 600 / 10)
        ("spherical", 30),
    ],
)
def test_nleep_variant_matches_scikit_learn(variant, num_components, monkeypatch):
    x, labels = generate()
    projected = PCA(0.8, svd_solver="full").fit_transform(x.astype(np.float64))
    start = KMeans(num_components, n_init=1, random_state=0).fit_predict(projected)

    def same_start(points, count, seeds):
        assert count == num_components
        return [kmeans.KMeans(points[:count], start, 0.0, 1) for _ in seeds]

    monkeypatch.setattr(nleep.kmeans, "fit_many", same_start)
    result = measures.compute("nleep", x, labels, variant=variant)
    assert result.details["variant"] == variant
    kind, ridge = ("spherical", 1e-5) if variant == "spherical" else ("full", 1e-6)
    mixture = references.mixture(projected, start, kind, reg_covar=ridge)
    posterior = mixture.predict_proba(projected)
    joint = np.stack([posterior[labels == c].sum(0) for c in range(6)])
    predicted = ((joint / joint.sum(0))[labels] * posterior).sum(1)
    if variant == "sfda":
        expected = predicted.mean()
    else:
        expected = np.log(predicted + 1e-10 * (variant == "pactran")).mean()
    assert result.score == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("separation", [0.4, 0.8])
def test_nleep_matches_scikit_learn_up_to_random_starts(separation):
    x, labels = generate(separation)
    projected = PCA(0.8, svd_solver="full").fit_transform(x)
    posteriors = [
        GaussianMixture(30, random_state=seed).fit(projected).predict_proba(projected)
        for seed in range(5)
    ]
    expected = [references.nleep(posterior, labels) for posterior in posteriors]
    scores = measures.compute("nleep", x, labels, num_restarts=5).details["scores"]
    spread = np.std(expected) + np.std(scores)
    assert abs(np.mean(expected) - np.mean(scores)) < 2 * spread


def test_nleep_restarts_are_independent_and_averaged():
    x, labels = generate()
    result = measures.compute("nleep", x, labels, num_restarts=4)
    scores = result.details["scores"]
    assert len(set(scores)) == 4
    assert result.score == pytest.approx(np.mean(scores))
    # The score is a mean of four, whose standard deviation is half that of one.
    assert result.details["spread"] == pytest.approx(np.std(scores, ddof=1) / 2)
    for name in ("num_iterations", "converged", "lower_bound", "posterior_entropy"):
        assert len(result.details[name]) == 4
    assert all(0 <= e <= np.log(30) for e in result.details["posterior_entropy"])


def test_nleep_details_and_warning(few_per_component):
    x, labels = generate()
    result = measures.compute("nleep", x, labels, components_per_class=2)
    assert result.details["num_components"] == 12
    assert 1 <= result.details["dimensions"] <= 24
    assert result.details["converged"] and not result.warning
    result = measures.compute("nleep", *few_per_component)
    dimensions = result.details["dimensions"]
    assert result.warning == (
        f"Too few images per mixture component (6 in {dimensions} dimensions): the "
        "covariances are singular, so the score mostly reflects the k-means "
        "initialization. Lower `components_per_class` or add images."
    )
    assert np.isfinite(result.score)


def test_nleep_pactran_limits_images(monkeypatch):
    assert nleep._PACTRAN_IMAGES == 8000
    monkeypatch.setattr(nleep, "_PACTRAN_IMAGES", 80)
    x, labels = generate(n=90, classes=2, d=2)
    result = measures.compute("nleep", x, labels, variant="pactran")
    assert result.details["num_images"] == 80
    assert result.details["num_components"] == 8


def test_nleep_spherical_limits_components():
    result = measures.compute("nleep", *generate(n=28), variant="spherical")
    assert result.details["num_components"] == 24


def test_nleep_with_one_dimension_and_a_class_of_one_image():
    random = np.random.default_rng(0)
    labels = np.append(np.arange(60) % 3, 3)
    x = (3 * labels + random.normal(size=61)).astype(np.float32)[:, None]
    result = measures.compute("nleep", x, labels, components_per_class=2)
    assert result.details["dimensions"] == 1
    assert -1.5 < result.score <= 0


def test_nleep_of_constant_features_is_chance():
    x, labels = np.ones((60, 5), np.float32), np.arange(60) % 3
    result = measures.compute("nleep", x, labels, components_per_class=1)
    assert result.score == pytest.approx(-np.log(3), abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "papr"}, "Unknown variant of NLEEP 'papr'(.|\n)*mean 'paper'"),
        ({"num_restarts": 0}, "num_restarts must be at least 1"),
        ({"energy": 0}, "energy must be in"),
        ({}, "more mixture components than images(.|\n)*5 components x 6 classes"),
    ],
)
def test_nleep_raises_for_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        measures.compute("nleep", *generate(n=24), **options)


@pytest.mark.shared
@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-6)])
def test_nleep_matches_reference_start_on_real_features(
    real, covariance_type, dtype, tolerance
):
    start, num_classes = real.arrays["init_labels"], int(real.labels.max()) + 1
    num_components = int(start.max()) + 1
    options = {"covariance_type": covariance_type, "init_labels": start}
    with jax.enable_x64(dtype == "float64"):
        features = jnp.asarray(real.features, dtype)
        projected = pca.transform(pca.fit(features), features)
        assert projected.shape[1] == real.arrays["pca_dim"]
        fitted = fitting.fit(projected, num_components, **options)
        mixture = gmm.from_fitted(fitted)
        posterior = gmm.responsibilities(mixture, projected)
        labels = jnp.asarray(real.labels)
        predictions = (
            prediction.of_mixture(fitted, real.labels, num_classes),
            prediction.of_assignments(posterior, labels, num_classes),
        )
    expected = float(real.arrays[f"{covariance_type}_nleep"])
    for predicted in predictions:
        assert predicted.log == pytest.approx(expected, abs=tolerance)
    same = np.argmax(posterior, axis=1) == real.arrays[f"{covariance_type}_assign"]
    assert np.mean(same) >= 0.999
    assert mixture.num_iterations == real.arrays[f"{covariance_type}_n_iter"]
    if dtype == "float64":
        bounds = real.arrays[f"{covariance_type}_lower_bounds"]
        np.testing.assert_allclose(mixture.lower_bounds, bounds, rtol=1e-8, atol=1e-8)


@pytest.mark.shared
def test_nleep_on_real_features_is_within_the_spread_of_starts(real):
    result = measures.compute("nleep", real.features, real.labels)
    # Ten starts of scikit-learn's k-means have a standard deviation of 0.013.
    assert abs(result.score - real.arrays["diag_nleep_seeds"].mean()) < 0.05
    assert "singular" in result.warning


@pytest.fixture(scope="module")
def one_device():
    return device_scores.compute()


# tests/test_launch.py compares whole runs of one and of two processes.
@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("local_devices", "processes"), [(2, 1), (4, 1), (8, 1), (2, 2)]
)
def test_scores_do_not_depend_on_number_of_devices(
    local_devices, processes, one_device
):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    total = local_devices * processes
    command = [sys.executable, "-m", "tests.measures.device_scores"]
    started = [
        subprocess.Popen(
            [*command, *map(str, (total, processes, rank, port))],
            stdout=subprocess.PIPE,
            text=True,
            env=with_devices(local_devices),
        )
        for rank in range(processes)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in started]
    assert all(process.returncode == 0 for process in started)
    # Gloo writes its own lines first.
    scores = json.loads(outputs[0].splitlines()[-1])
    np.testing.assert_allclose(scores, one_device, rtol=1e-5, atol=1e-5)
