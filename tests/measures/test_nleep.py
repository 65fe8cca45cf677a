import json
import socket
import subprocess
import sys

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from rankckpt_jax import measures
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import nleep
from rankckpt_jax.measures.mixture import kmeans
from tests.processes import with_devices


def separated(separation, seed=0, n=600, classes=6, d=24):
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    means = random.normal(size=(classes, d))
    return separation * means[labels] + random.normal(size=(n, d)), labels


def statement(x, labels, classes, seed):
    """NLEEP written straight from its definition, with scikit-learn in float64."""
    projected = PCA(0.8, svd_solver="full").fit_transform(x)
    mixture = GaussianMixture(5 * classes, random_state=seed).fit(projected)
    posterior = mixture.predict_proba(projected)
    joint = np.stack([posterior[labels == c].sum(0) for c in range(classes)])
    conditional = joint / joint.sum(0)
    return np.log((conditional[labels] * posterior).sum(1)).mean()


def reference_posterior(x, start, covariance_type, reg_covar):
    """scikit-learn's posteriors in float64 from a hard start."""
    count = start.max() + 1
    members = [x[start == k] for k in range(count)]
    moments = np.stack([np.cov(m.T, bias=True) for m in members])
    if covariance_type == "full":
        precisions = np.linalg.inv(moments + reg_covar * np.eye(x.shape[1]))
    else:
        precisions = 1 / (np.einsum("kdd->kd", moments).mean(axis=1) + reg_covar)
    mixture = GaussianMixture(
        count,
        covariance_type=covariance_type,
        reg_covar=reg_covar,
        weights_init=np.array([len(m) for m in members]) / len(x),
        means_init=np.stack([m.mean(0) for m in members]),
        precisions_init=precisions,
    )
    return mixture.fit(x).predict_proba(x)


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
def test_each_variant_is_its_definition(variant, num_components, monkeypatch):
    x, labels = separated(0.5)
    x = x.astype(np.float32)
    projected = PCA(0.8, svd_solver="full").fit_transform(x.astype(np.float64))
    start = KMeans(num_components, n_init=1, random_state=0).fit_predict(projected)

    def same_start(points, count, seeds):
        assert count == num_components
        return [kmeans.KMeans(points[:count], start, 0.0, 1) for _ in seeds]

    monkeypatch.setattr(nleep.kmeans, "fit_many", same_start)
    result = measures.compute("nleep", x, labels, variant=variant)
    posterior = (
        reference_posterior(projected, start, "spherical", 1e-5)
        if variant == "spherical"
        else reference_posterior(projected, start, "full", 1e-6)
    )
    joint = np.stack([posterior[labels == c].sum(0) for c in range(6)])
    predicted = ((joint / joint.sum(0))[labels] * posterior).sum(1)
    expected = {
        "sfda": predicted.mean(),
        "pactran": np.log(predicted + 1e-10).mean(),
    }.get(variant, np.log(predicted).mean())
    assert result.score == pytest.approx(expected, abs=1e-3)
    assert result.details["variant"] == variant


def test_pactran_takes_8000_images_at_most():
    random = np.random.default_rng(0)
    labels = np.arange(9000) % 2
    x = (labels[:, None] + random.normal(size=(9000, 2))).astype(np.float32)
    result = measures.compute("nleep", x, labels, variant="pactran", max_iter=2)
    assert result.details["num_images"] == 8000
    assert result.details["num_components"] == 800


def test_spherical_lowers_its_components_below_the_images():
    x, labels = separated(0.5, n=28)
    result = measures.compute("nleep", x, labels, variant="spherical")
    assert result.details["num_components"] == 24


def test_restarts_are_independent_and_their_mean_is_the_score():
    x, labels = separated(0.5)
    result = measures.compute("nleep", x, labels, num_restarts=4)
    scores = result.details["scores"]
    assert len(set(scores)) == 4
    assert result.score == pytest.approx(np.mean(scores))
    assert result.details["spread"] == pytest.approx(np.std(scores, ddof=1))
    for name in ("num_iterations", "converged", "lower_bound", "posterior_entropy"):
        assert len(result.details[name]) == 4
    assert all(0 <= e <= np.log(30) for e in result.details["posterior_entropy"])


@pytest.mark.parametrize("separation", [0.4, 0.8])
def test_it_is_the_definition_up_to_its_random_start(separation):
    x, labels = separated(separation)
    expected = [statement(x, labels, 6, seed) for seed in range(5)]
    found = [measures.compute("nleep", x, labels, seed=seed).score for seed in range(5)]
    spread = np.std(expected) + np.std(found)
    assert abs(np.mean(expected) - np.mean(found)) < 2 * spread


def test_better_separated_classes_score_higher():
    scores = [
        measures.compute("nleep", *separated(separation)).score
        for separation in (0.0, 0.3, 0.6, 1.2)
    ]
    assert scores == sorted(scores)
    assert scores[-1] <= 0 and scores[-1] > -0.2


def test_details_tell_what_was_done():
    x, labels = separated(0.5)
    result = measures.compute("nleep", x, 7 * labels - 3, components_per_class=2)
    assert result.details["num_components"] == 12
    assert 1 <= result.details["dimensions"] <= 24
    assert result.details["converged"] and not result.warning
    again = measures.compute("nleep", x, labels, components_per_class=2)
    assert again.score == result.score


def test_singular_covariances_are_warned_of(few_per_component):
    result = measures.compute("nleep", *few_per_component)
    assert "singular" in result.warning
    assert np.isfinite(result.score)


def test_fewer_images_than_components_are_refused():
    x, labels = separated(0.5, n=24)
    with pytest.raises(InputError, match="more mixture components than images"):
        measures.compute("nleep", x, labels)


def test_one_dimension_and_classes_of_one_image_are_defined():
    random = np.random.default_rng(0)
    labels = np.append(np.arange(60) % 3, 3)
    x = (3 * labels + random.normal(size=61)).astype(np.float32)[:, None]
    result = measures.compute("nleep", x, labels, components_per_class=2)
    assert result.details["dimensions"] == 1
    assert -1.5 < result.score <= 0


def test_constant_features_score_as_chance():
    x = np.ones((60, 5), np.float32)
    labels = np.arange(60) % 3
    result = measures.compute("nleep", x, labels, components_per_class=1)
    assert result.score == pytest.approx(-np.log(3), abs=0.05)


def test_unknown_variants_and_restarts_are_refused():
    x, labels = separated(0.5, n=60)
    with pytest.raises(InputError, match="Unknown variant of NLEEP 'papr'"):
        measures.compute("nleep", x, labels, variant="papr")
    with pytest.raises(InputError, match="num_restarts must be at least 1"):
        measures.compute("nleep", x, labels, num_restarts=0)


SCORES = """
import json, sys, jax, numpy as np
devices, processes, rank, port = map(int, sys.argv[1:5])
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", processes, rank)
from rankckpt_jax import measures
from rankckpt_jax.measures.mixture import fitting, gmm, prediction, sparse_em
assert jax.device_count() == devices
random = np.random.default_rng(0)
labels = np.arange(601) % 6  # Not divisible by any number of devices.
means = random.normal(size=(6, 24))
dense = (0.5 * means[labels] + random.normal(size=(601, 24))).astype("f4")
sparse = dense.copy()
found = [measures.compute("nleep", dense, labels, components_per_class=1).score]
found += [measures.compute("nleep", sparse, labels, components_per_class=10).score]
mixture = gmm.fit(dense, 6, "tied", init_labels=labels)
found += [float(mixture.lower_bounds[-1]), float(np.abs(mixture.covariances).sum())]
few = np.arange(601) % 200  # Three or four points for each: low rank.
assert sparse_em.width(4, 24) == 8
fitted = fitting.fit(dense, 200, init_labels=few)
assert fitted.lists is not None
found += [float(fitted.lower_bounds[-1]), float(np.abs(fitted.parameters[2]).sum())]
found += [prediction.of_mixture(fitted, labels, 6).log]
if rank == 0:
    print(json.dumps(found))
"""


def _scores(local_devices, processes):
    """What SCORES finds on so many devices in each of so many processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    total = local_devices * processes
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCORES, *map(str, (total, processes, rank, port))],
            stdout=subprocess.PIPE,
            text=True,
            env=with_devices(local_devices),
        )
        for rank in range(processes)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in started]
    assert all(process.returncode == 0 for process in started)
    return json.loads(outputs[0].splitlines()[-1])  # After what Gloo tells.


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("local_devices", "processes"),
    [
        pytest.param(2, 1, marks=pytest.mark.slow),
        pytest.param(4, 1, marks=pytest.mark.slow),
        (8, 1),
        (2, 2),
    ],
)
def test_the_number_of_devices_does_not_matter(local_devices, processes, one_device):
    found = _scores(local_devices, processes)
    np.testing.assert_allclose(found, one_device, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def one_device():
    return _scores(1, 1)
