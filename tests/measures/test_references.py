"""Every measure against a reference that nobody here wrote.

On four drawn classes (tests/golden/measures/small.json, from the authors' published
code) and on real features, see the fixture `shared`.
"""

import json

import jax
import numpy as np
import pytest

from rankckpt_jax import measures
from tests.measures import references

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


# What is expected, the measure, its options.
DRAWN = [(name, name, {}) for name in EXACT]
DRAWN += [
    ("nce_soft", "nce", {"soft": True}),
    ("gbc_diagonal", "gbc", {"covariance": "diagonal", "dimensions": 0}),
]


@pytest.mark.parametrize(("key", "name", "options"), DRAWN)
def test_drawn_classes(small, key, name, options):
    found = measures.compute(
        name, small.features, small.labels, small.logits, **options
    )
    assert found.score == pytest.approx(small.expected[key], rel=1e-4)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("key", "name", "options"), DRAWN)
def test_drawn_classes_in_double_precision(small, key, name, options):
    found = measures.compute(
        name, small.features, small.labels, small.logits, **options
    )
    # The references are given to ten digits, LogME to eight; PARC's ranks are those of
    # values in 2^16 bins.
    tolerance = 1e-6 if name == "parc" else 1e-8
    assert found.score == pytest.approx(small.expected[key], rel=tolerance, abs=5e-9)


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


def _unbalanced(n, d):
    """Five classes of many sizes, one of them an image; columns of many scales."""
    random = np.random.default_rng(0)
    labels = np.minimum(random.geometric(0.4, n) - 1, 4)
    labels[:5] = np.arange(5)
    labels[labels == 4] = 0
    labels[0] = 4
    features = random.normal(size=(5, d))[labels] + 0.8 * random.normal(size=(n, d))
    features = np.maximum(features, 0) * np.geomspace(3, 0.01, d)
    logits = random.normal(size=(n, 9)) + np.eye(9)[labels]
    return features.astype(np.float32), labels, logits.astype(np.float32)


@pytest.mark.parametrize(("n", "d"), [(150, 20), (40, 70)])
def test_other_shapes(n, d):
    features, labels, logits = _unbalanced(n, d)
    x, p = features.astype(float), logits.astype(float)
    expected = {
        "h_score": references.h_score(x, labels),
        "regularized_h_score": references.regularized_h_score(x, labels),
        "logme": references.logme(x, labels),
        "transrate": references.transrate(x, labels),
        "gbc": references.gbc(x, labels, "spherical"),
        "sfda": references.sfda(x, labels),
        "lda": references.lda(x, labels),
        "parc": 100 * references.parc(x, labels),
        "rsa": references.parc(x, labels, standardize=False),
        "knn": references.knn(x, labels),
        "nce": references.nce(p, labels),
        "leep": references.leep(p, labels),
        "energy": references.energy(p),
    }
    for name, figure in expected.items():
        found = measures.compute(name, features, labels, logits).score
        tolerance = 1e-3 if name in ("parc", "rsa") else 1e-4
        assert found == pytest.approx(figure, rel=tolerance), name
    diagonal = measures.compute("gbc", features, labels, covariance="diagonal").score
    assert diagonal == pytest.approx(references.gbc(x, labels, "diagonal"), rel=1e-4)


@pytest.mark.parametrize("scale", [1, 0.1])
def test_terms_of_ncti_are_scikit_learns(small, scale):
    # Both of its solvers: at a tenth of the scale there is shrinkage to speak of.
    x = scale * small.features
    expected = references.ncti_terms(x, small.labels)
    found = measures.compute("ncti", x, small.labels).details["terms"]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.shared
def test_terms_of_ncti_on_real_features(real):
    features, labels, _, _ = real
    expected = references.ncti_terms(features.astype(float), labels)
    found = measures.compute("ncti", features, labels).details["terms"]
    assert found == pytest.approx(expected, rel=1e-4)


def test_pactran_is_at_scipys_minimum(small):
    for factors in ((10, 100), (1, 10)):
        expected = references.pactran(small.features, small.labels, *factors)
        options = {"prior_factor": factors[0], "variance_factor": factors[1]}
        found = measures.compute("pactran", small.features, small.labels, **options)
        assert found.score == pytest.approx(expected, rel=1e-4)
        with jax.enable_x64(True):
            found = measures.compute("pactran", small.features, small.labels, **options)
        assert found.score == pytest.approx(expected, rel=1e-8)


def test_rsa_with_a_target_representation(small):
    import scipy.stats

    random = np.random.default_rng(2)
    target = small.features[:, :4] + 0.1 * random.normal(size=(240, 4))
    upper = np.triu_indices(240, 1)
    pairs = (np.corrcoef(x)[upper] for x in (small.features, target))
    expected = scipy.stats.spearmanr(*pairs).statistic
    found = measures.compute("rsa", small.features, small.labels, target=target)
    assert found.score == pytest.approx(expected, rel=1e-4)


def test_mutual_information_is_below_the_truth():
    import scipy.special

    random = np.random.default_rng(5)
    labels = np.arange(2000) % 4
    means = 1.5 * random.normal(size=(4, 6))
    x = means[labels] + random.normal(size=(2000, 6))
    squares = np.sum((x[:, None] - means) ** 2, axis=2)
    logs = scipy.special.log_softmax(-squares / 2, axis=1)
    # The information of these images, from the densities that they were drawn from.
    truth = np.log(4) + logs[np.arange(2000), labels].mean()
    found = measures.compute("mutual_information", x, labels)
    assert truth - 0.1 < found.score < truth
    assert found.details["spread"] < 0.05


def test_mutual_information_learns_as_numpy_does(small):
    x, labels = small.features, small.labels
    with jax.enable_x64(True):
        found = measures.compute("mutual_information", x, labels)
        expected = references.mutual_information(x, labels)
    assert found.score == pytest.approx(expected, rel=1e-8)
    x = x.astype(np.float32)
    found = measures.compute("mutual_information", x, labels)
    expected = references.mutual_information(x, labels)
    assert found.score == pytest.approx(expected, rel=1e-4)


def test_images_at_two_points_have_no_noise_to_shrink():
    labels = np.repeat([0, 1], 4)
    x = np.random.default_rng(0).normal(size=(2, 6))[labels].astype(np.float32)
    # The one direction that varies is all between the classes, over N and N - 1.
    found = measures.compute("regularized_h_score", x, labels)
    assert found.score == pytest.approx(8 / 7, rel=1e-5)
    assert found.details["shrinkage"] == pytest.approx(0, abs=1e-6)


def test_classes_of_very_different_sizes():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), [700, 9, 8, 8])
    x = random.normal(size=(4, 30))[labels] + random.normal(size=(len(labels), 30))
    found = measures.compute("transrate", x, labels)
    assert found.score == pytest.approx(references.transrate(x, labels), rel=1e-4)
