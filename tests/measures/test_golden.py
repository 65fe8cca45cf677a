"""Real features against float64 references; see the fixture `shared` for where."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax import measures
from rankckpt_jax.measures.mixture import fitting, gmm, prediction
from rankckpt_jax.measures.statistics import pca

pytestmark = pytest.mark.shared

_NAME = "caltech101_mobilenet_v1_0.25_128"


@pytest.fixture(scope="module")
def golden(shared: pathlib.Path) -> dict[str, np.ndarray]:
    folder = shared / "golden" / "measures"
    with np.load(folder / f"{_NAME}.npz") as arrays:
        golden = dict(arrays)
    with np.load(folder / f"{_NAME}_logits.npz") as arrays:
        golden["logits"] = arrays["logits"]
    scores = json.loads((folder / f"{_NAME}_reference_scores.json").read_text())
    golden["h_score"] = np.asarray(scores["scores"]["h_score (tllib)"])
    return golden


def _check_nleep(golden, covariance_type, dtype, tolerance):
    features = jnp.asarray(golden["features"], dtype)
    projected = pca.transform(pca.fit(features), features)
    assert projected.shape[1] == golden["pca_dim"]
    fitted = fitting.fit(
        projected,
        int(golden["init_labels"].max()) + 1,
        covariance_type=covariance_type,
        init_labels=golden["init_labels"],
    )
    mixture = gmm.of_fitted(fitted)
    expected = float(golden[f"{covariance_type}_nleep"])
    num_classes = int(golden["labels"].max()) + 1
    posterior = gmm.responsibilities(mixture, projected)
    for found in (
        prediction.of_mixture(fitted, golden["labels"], num_classes),
        prediction.likelihood(posterior, jnp.asarray(golden["labels"]), num_classes),
    ):
        assert found.log == pytest.approx(expected, abs=tolerance)
    same = np.argmax(posterior, axis=1) == golden[f"{covariance_type}_assign"]
    assert np.mean(same) >= 0.999
    assert mixture.num_iterations == golden[f"{covariance_type}_n_iter"]
    return mixture


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_nleep_from_the_reference_start(golden, covariance_type):
    _check_nleep(golden, covariance_type, jnp.float32, 1e-3)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_nleep_from_the_reference_start_in_double_precision(golden, covariance_type):
    mixture = _check_nleep(golden, covariance_type, jnp.float64, 1e-6)
    expected = golden[f"{covariance_type}_lower_bounds"]
    np.testing.assert_allclose(mixture.lower_bounds, expected, rtol=1e-8, atol=1e-8)


def test_nleep_from_its_own_start_is_within_the_spread_of_starts(golden):
    result = measures.compute("nleep", golden["features"], golden["labels"])
    # From ten starts of scikit-learn's k-means: 0.013 standard deviation.
    assert abs(float(result) - golden["diag_nleep_seeds"].mean()) < 0.05
    assert "singular" in result.warning


def test_leep_and_h_score(golden):
    found = measures.compute(
        "leep", golden["features"], golden["labels"], logits=golden["logits"]
    )
    assert float(found) == pytest.approx(float(golden["leep"]), abs=1e-5)
    found = measures.compute("h_score", golden["features"], golden["labels"])
    assert float(found) == pytest.approx(float(golden["h_score"]), rel=1e-4)
