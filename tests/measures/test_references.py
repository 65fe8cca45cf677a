"""Every measure against a reference that nobody here wrote.

On four drawn classes (tests/golden/measures/small.json, from the authors' published
code) and on real features, see the fixture `shared`.
"""

import json

import jax
import numpy as np
import pytest

from rankckpt_jax import measures

# Names in golden/measures/*_reference_scores.json, and what they are called here.
REAL = {
    "h_score (tllib)": "h_score",
    "regularized_h_score (tllib)": "regularized_h_score",
    "transrate eps=1e-4 (tllib)": "transrate",
    "logme fixed-point (thuml/LogME)": "logme",
    "leep (tllib)": "leep",
    "nce source=argmax (tllib)": "nce",
    "sfda (TencentARC)": "sfda",
    "parc no reduction (dbolya)": "parc",
    "energy mean logsumexp all (ETran)": "energy",
    "lda score (ETran)": "lda",
}
EXACT = ("leep", "nce", "h_score", "regularized_h_score", "logme", "transrate")
EXACT += ("gbc", "sfda", "lda", "parc")


@pytest.mark.parametrize("name", EXACT)
def test_drawn_classes(small, name):
    found = measures.compute(name, small.features, small.labels, logits=small.logits)
    assert found.score == pytest.approx(small.expected[name], rel=1e-4)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", EXACT)
def test_drawn_classes_in_double_precision(small, name):
    found = measures.compute(name, small.features, small.labels, logits=small.logits)
    # The references are given to ten digits, LogME to eight.
    assert found.score == pytest.approx(small.expected[name], rel=1e-8, abs=5e-9)


def test_options_of_published_code(small):
    found = measures.compute(
        "nce", small.features, small.labels, small.logits, soft=True
    )
    assert found.score == pytest.approx(-1.2124548399, rel=1e-4)
    found = measures.compute(
        "gbc", small.features, small.labels, covariance="diagonal", dimensions=0
    )
    assert found.score == pytest.approx(-1.1528189711, rel=1e-4)


@pytest.fixture(scope="module")
def real(shared):
    folder, name = shared / "golden" / "measures", "caltech101_mobilenet_v1_0.25_128"
    with np.load(folder / f"{name}.npz") as arrays:
        features, labels = arrays["features"], arrays["labels"]
    with np.load(folder / f"{name}_logits.npz") as arrays:
        logits = arrays["logits"]
    expected = json.loads((folder / f"{name}_reference_scores.json").read_text())
    return features, labels, logits, expected["scores"]


@pytest.mark.shared
def test_real_features(real):
    features, labels, logits, expected = real
    found = measures.compute_all(features, labels, logits, names=REAL.values())
    for theirs, name in REAL.items():
        tolerance = 1e-3 if name == "parc" else 1e-4
        assert found[name].score == pytest.approx(expected[theirs], rel=tolerance), name
    knn = measures.compute("knn", features, labels)
    assert 100 * knn.score == pytest.approx(expected["knn k=1 loo (dbolya)"], rel=1e-3)
    parc = measures.compute("parc", features, labels, dimensions=32)
    reference = expected["parc n_dims=32 (TencentARC)"]
    assert parc.score == pytest.approx(reference, rel=2e-2)


@pytest.mark.shared
def test_real_features_in_double_precision(real):
    features, labels, logits, expected = real
    with jax.enable_x64(True):
        found = measures.compute_all(
            features.astype(float), labels, logits.astype(float), names=REAL.values()
        )
    for theirs, name in REAL.items():
        # The reference's label dissimilarities are equal but for rounding.
        tolerance = 1e-4 if name == "parc" else 1e-8
        assert found[name].score == pytest.approx(expected[theirs], rel=tolerance), name
