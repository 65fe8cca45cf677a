"""Measures compared with published code and plain implementations in float64.

Figures from the authors' published code are in tests/golden/measures/small.json, for
generated features, and in the fixture `shared`, for real features. Where none exist,
`references` has an implementation in NumPy, SciPy and scikit-learn.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from rankckpt_jax import measures
from rankckpt_jax.errors import InputError
from tests.measures import recent_references, references
from tests.measures.data import generate, score, score_of

# Keys of *_reference_scores.json and the names of the measures.
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
PUBLISHED = ("leep", "nce", "h_score", "regularized_h_score", "logme", "transrate")
PUBLISHED += ("gbc", "sfda", "lda", "parc", "cka", "knn", "tmi")
PUBLISHED += ("lda_accuracy", "rankme", "disco", "concept_variation")
LFC = ("lfc", "lfc_cosine", "lfc_correlation", "lfc_uncentered")
# Key in small.json, measure, options.
SMALL = [(name, name, {}) for name in PUBLISHED]
SMALL += [
    ("nce_soft", "nce", {"soft": True}),
    ("gbc_diagonal", "gbc", {"covariance": "diagonal", "dimensions": 0}),
    ("logme", "logme", {"published": True}),
    *((variant, "cka", {"variant": variant}) for variant in LFC),
    ("tmi_published", "tmi", {"variant": "published"}),
    ("tmi_published_1", "tmi", {"variant": "published", "k": 1}),
    ("knn_cosine", "knn", {"metric": "cosine"}),
    ("knn_5", "knn", {"k": 5}),
    ("knn_5_cosine", "knn", {"k": 5, "metric": "cosine"}),
    ("knn_20", "knn", {"k": 20}),
    ("knn_20_cosine", "knn", {"k": 20, "metric": "cosine"}),
]


@pytest.mark.parametrize(("key", "name", "options"), SMALL)
def test_measure_matches_published_code(small, key, name, options):
    arrays = small.features, small.labels, small.logits
    expected = small.expected[key]
    assert score(name, *arrays, **options) == pytest.approx(expected, rel=1e-4)
    # References have ten digits, LogME's eight; PARC's correlations are in 2^16 bins.
    tolerance = 1e-6 if name == "parc" else 1e-8
    with jax.enable_x64(True):
        exact = score(name, *arrays, **options)
    assert exact == pytest.approx(expected, rel=tolerance, abs=5e-9)


@pytest.mark.shared
def test_measures_match_published_code_on_real_features(real):
    arrays = real.features, real.labels, real.logits
    results = measures.compute_all(*arrays, names=[*REAL.values(), "knn"])
    with jax.enable_x64(True):
        exact = measures.compute_all(
            real.features.astype(float),
            real.labels,
            real.logits.astype(float),
            names=REAL.values(),
        )
    for key, name in REAL.items():
        expected = real.scores[key]
        tolerance = 1e-3 if name == "parc" else 1e-4
        assert results[name].score == pytest.approx(expected, rel=tolerance), name
        # PARC's reference breaks ties of label dissimilarities by rounding errors. The
        # published LogME stops before the maximum of the evidence.
        tolerance = {"parc": 1e-4, "logme": 2e-6}.get(name, 1e-8)
        assert exact[name].score == pytest.approx(expected, rel=tolerance), name
    with jax.enable_x64(True):
        stopped = score(
            "logme", real.features.astype(float), *arrays[1:], published=True
        )
    expected = real.scores["logme fixed-point (thuml/LogME)"]
    assert stopped == pytest.approx(expected, rel=1e-8)
    expected = real.scores["knn k=1 loo (dbolya)"]
    assert 100 * results["knn"].score == pytest.approx(expected, rel=1e-3)
    parc = measures.compute("parc", *arrays[:2], dimensions=32)
    expected = real.scores["parc n_dims=32 (TencentARC)"]
    assert parc.score == pytest.approx(expected, rel=2e-2)


def _unbalanced(n, d):
    """Five classes, one of them a single image; columns of very different scales."""
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
def test_measures_match_references_for_unbalanced_classes(n, d):
    features, labels, logits = _unbalanced(n, d)
    x, z = features.astype(float), logits.astype(float)
    expected = {
        "h_score": references.h_score(x, labels),
        "regularized_h_score": references.regularized_h_score(x, labels),
        "transrate": references.transrate(x, labels),
        "gbc": references.gbc(x, labels, "spherical"),
        "sfda": references.sfda(x, labels),
        "lda": references.lda(x, labels),
        "parc": 100 * references.parc(x, labels),
        "rsa": references.parc(x, labels, standardize=False),
        "knn": references.knn(x, labels),
        "cka": recent_references.cka(x, labels),
        "tmi": recent_references.tmi(x, labels),
        "rankme": recent_references.rankme(x),
        "disco": recent_references.disco(x, labels),
        "concept_variation": -recent_references.concept_variation(x, labels),
        "nce": references.nce(z, labels),
        "leep": references.leep(z, labels),
        "energy": references.energy(z),
    }
    inputs = measures.prepare(features, labels, logits)
    for name, value in expected.items():
        result = measures.compute_prepared(name, inputs).score
        tolerance = 1e-3 if name in ("parc", "rsa") else 1e-4
        assert result == pytest.approx(value, rel=tolerance), name
    result = measures.compute_prepared("logme", inputs, published=True).score
    assert result == pytest.approx(references.logme(x, labels), rel=1e-4)
    result = measures.compute_prepared("gbc", inputs, covariance="diagonal").score
    assert result == pytest.approx(references.gbc(x, labels, "diagonal"), rel=1e-4)
    for variant in LFC:
        result = measures.compute_prepared("cka", inputs, variant=variant).score
        assert result == pytest.approx(
            recent_references.lfc(x, labels, variant), rel=1e-4
        )
    result = measures.compute_prepared("knn", inputs, k=3, metric="cosine").score
    assert result == references.knn(x, labels, 3, "cosine")


def test_h_score_ignores_directions_without_variance(small):
    x = small.features
    x = np.concatenate([x, x, x[:, :1], np.ones((len(x), 2))], axis=1)
    result = measures.compute("h_score", x, small.labels)
    assert result.score == pytest.approx(small.expected["h_score"], rel=1e-4)
    assert result.details["rank"] == 12


def test_h_score_ignores_scale_and_offset(few_per_component):
    features, labels = few_per_component
    expected = references.h_score(features.astype(np.float64), labels)
    for scale, offset in ((1, 0), (1e-3, 0), (1e3, 50)):
        result = score("h_score", scale * features + offset, labels, None)
        assert result == pytest.approx(expected, rel=1e-3)


def test_regularized_h_score_without_noise_does_not_shrink():
    labels = np.repeat([0, 1], 4)
    x = np.random.default_rng(0).normal(size=(2, 6))[labels].astype(np.float32)
    # All variance is between the two classes; the factor is N / (N - 1).
    result = measures.compute("regularized_h_score", x, labels)
    assert result.score == pytest.approx(8 / 7, rel=1e-5)
    assert result.details["shrinkage"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1, 1e4, 1e8])
def test_logme_is_the_maximum_of_the_evidence_at_any_scale(small, scale):
    # Published code returns -0.477 at 1e4 times the scale.
    features, labels = (scale * small.features).astype(np.float32), small.labels
    expected = references.logme_maximum(small.features, labels)
    assert expected == pytest.approx(small.expected["logme"], abs=1e-8)
    result = measures.compute("logme", features, labels)
    assert result.score == pytest.approx(expected, abs=1e-7)
    assert result.details["num_unconverged"] == 0


@pytest.mark.parametrize("offset", [10, 1e3, 1e6])
def test_logme_keeps_its_digits_for_features_with_an_offset(small, offset):
    # LogME has no intercept, so an offset changes its value, to -0.2053 for 1e6.
    features = small.features + offset
    expected = references.logme_maximum(features, small.labels)
    with jax.enable_x64(True):
        exact = score("logme", features, small.labels, None)
    assert exact == pytest.approx(expected, abs=1e-9)
    rounded = features.astype(np.float32)
    expected = references.logme_maximum(rounded.astype(float), small.labels)
    assert score("logme", rounded, small.labels, None) == pytest.approx(
        expected, abs=1e-7
    )


def test_logme_of_noise_and_of_constant_features_is_finite():
    labels = np.arange(60) % 3
    noise = np.random.default_rng(0).normal(size=(60, 200))
    for features in (noise, np.ones((60, 5)), np.zeros((60, 5))):
        result = measures.compute("logme", features.astype(np.float32), labels)
        assert np.isfinite(result.score)


def test_transrate_with_classes_of_very_different_sizes():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), [700, 9, 8, 8])
    x = random.normal(size=(4, 30))[labels] + random.normal(size=(len(labels), 30))
    expected = references.transrate(x, labels)
    assert score("transrate", x, labels, None) == pytest.approx(expected, rel=1e-4)


def test_leep_of_confident_classifier_survives_underflow():
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 400)
    logits = 40 * random.normal(size=(400, 20)) + 90 * np.eye(20)[labels]
    result = measures.compute("leep", logits, labels, logits)
    assert result.score == pytest.approx(references.leep(logits, labels), abs=1e-5)
    assert result.details["num_source_classes"] == 20


@pytest.mark.parametrize("scale", [1, 0.1])
def test_ncti_terms_match_scikit_learn(small, scale):
    # A tenth of the scale has shrinkage, which uses another solver of scikit-learn.
    x = scale * small.features
    expected = references.ncti_terms(x, small.labels)
    terms = measures.compute("ncti", x, small.labels).details["terms"]
    assert terms == pytest.approx(expected, rel=1e-5)


@pytest.mark.shared
def test_ncti_terms_match_scikit_learn_on_real_features(real):
    expected = references.ncti_terms(real.features.astype(float), real.labels)
    terms = measures.compute("ncti", real.features, real.labels).details["terms"]
    assert terms == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("factors", [(10, 100), (1, 10)])
def test_pactran_is_at_the_minimum_of_scipy(small, factors):
    expected = references.pactran(small.features, small.labels, *factors)
    options = {"prior_factor": factors[0], "variance_factor": factors[1]}
    arrays = small.features, small.labels, None
    assert score("pactran", *arrays, **options) == pytest.approx(expected, rel=1e-4)
    with jax.enable_x64(True):
        exact = score("pactran", *arrays, **options)
    assert exact == pytest.approx(expected, rel=1e-8)


def test_rsa_matches_spearman_correlation():
    features, labels, _ = generate(n=80)
    features = features.round(1)  # With ties.
    lower = np.tril_indices(80, -1)
    expected = scipy.stats.spearmanr(
        (1 - np.corrcoef(features))[lower],
        (1 - np.corrcoef(np.eye(4)[labels]))[lower],
    ).statistic
    result = score("rsa", features, labels, None)
    assert result == pytest.approx(expected, abs=1e-4)
    subset = measures.compute("rsa", features, labels, max_images=50)
    # The same fraction of each class, rounded.
    assert 46 <= subset.details["num_images"] <= 50


def test_rsa_with_target_matches_spearman_correlation(small):
    random = np.random.default_rng(2)
    target = small.features[:, :4] + 0.1 * random.normal(size=(240, 4))
    upper = np.triu_indices(240, 1)
    pairs = (np.corrcoef(x)[upper] for x in (small.features, target))
    expected = scipy.stats.spearmanr(*pairs).statistic
    result = score("rsa", small.features, small.labels, None, target=target)
    assert result == pytest.approx(expected, rel=1e-4)


def test_mutual_information_is_a_lower_bound():
    random = np.random.default_rng(5)
    labels = np.arange(2000) % 4
    means = 1.5 * random.normal(size=(4, 6))
    x = means[labels] + random.normal(size=(2000, 6))
    squares = np.sum((x[:, None] - means) ** 2, axis=2)
    logs = scipy.special.log_softmax(-squares / 2, axis=1)
    # The information of these images under the densities that generated them.
    truth = np.log(4) + logs[np.arange(2000), labels].mean()
    result = measures.compute("mutual_information", x, labels)
    assert truth - 0.1 < result.score < truth
    assert result.details["spread"] < 0.05


def test_mutual_information_of_noise_is_about_zero():
    assert abs(score_of("mutual_information", 0.0)) < 0.1
    assert score_of("mutual_information", 4.0) > 0.8 * np.log(4)


def test_mutual_information_matches_numpy(small):
    x, labels = small.features, small.labels
    with jax.enable_x64(True):
        result = score("mutual_information", x, labels, None)
        expected = references.mutual_information(x, labels)
    assert result == pytest.approx(expected, rel=1e-8)
    x = x.astype(np.float32)
    expected = references.mutual_information(x, labels)
    result = score("mutual_information", x, labels, None)
    assert result == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_knn_matches_scikit_learn(k, metric):
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    features, labels, _ = generate(separation=0.5, n=60)
    features[7] = 0
    model = KNeighborsClassifier(k, metric=metric)
    expected = cross_val_score(model, features, labels, cv=LeaveOneOut()).mean()
    result = score("knn", features, labels, None, k=k, metric=metric)
    assert result == pytest.approx(expected, abs=1e-6)


def test_knn_refuses_impossible_options():
    features, labels, _ = generate(n=60)
    with pytest.raises(InputError, match="k must be smaller"):
        score("knn", features, labels, None, k=60)
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        score("knn", features, labels, None, metric="cosin")


def test_concept_variation_with_several_tiles_and_a_subset():
    features, labels, _ = generate(separation=0.5, n=1300, d=5)
    expected = -recent_references.concept_variation(features.astype(float), labels)
    result = score("concept_variation", features, labels, None)
    assert result == pytest.approx(expected, rel=1e-5)
    subset = measures.compute("concept_variation", features, labels, max_images=600)
    assert subset.details["num_images"] == 600
    assert subset.score == pytest.approx(expected, rel=0.02)


def test_rankme_of_equal_singular_values_is_their_number():
    x = np.eye(6, dtype=np.float32)[np.arange(60) % 6]
    result = score("rankme", x, np.arange(60) % 2, None)
    assert result == pytest.approx(6, rel=1e-5)


def test_cka_of_random_labels_is_its_chance():
    features, labels, _ = generate(n=40, d=60)
    random = np.random.default_rng(0)
    scores = [
        score("cka", features, random.permutation(labels), None) for _ in range(40)
    ]
    details = measures.compute("cka", features, labels).details
    # The mean of 40 scores has a standard deviation of 0.5 %.
    assert np.mean(scores) == pytest.approx(details["chance"], rel=0.02)


def test_knn_and_parc_with_several_tiles():
    features, labels, _ = generate(separation=0.5, n=1300, d=5)
    x = features.astype(float)
    # With five neighbors, rounding decides some ties.
    for k, tolerance in ((1, 1e-3), (5, 4e-3)):
        expected = references.knn(x, labels, k)
        result = score("knn", features, labels, None, k=k)
        assert result == pytest.approx(expected, abs=tolerance)
    expected = 100 * references.parc(x, labels)
    assert score("parc", features, labels, None) == pytest.approx(expected, rel=1e-3)
    subset = measures.compute("knn", features, labels, max_queries=600)
    assert subset.details["num_queries"] == 600
    assert subset.score == pytest.approx(references.knn(x, labels), abs=0.06)


def test_logistic_fit_matches_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    from rankckpt_jax.measures.statistics import logistic

    features, labels, _ = generate(separation=0.5)
    ridges = np.array([1e-2, 1e-1])
    solution = logistic.fit(
        jnp.asarray(features),
        labels,
        4,
        features.var(axis=0),
        ridges,
        max_steps=100,
    )
    for i, ridge in enumerate(ridges):
        reference = LogisticRegression(C=1 / (ridge * len(labels)), max_iter=1000)
        expected = reference.fit(features, labels).predict_proba(features)
        scores = logistic.logits(features, solution.kernel[i], solution.bias[i])
        posterior = jax.nn.softmax(scores, axis=1)
        np.testing.assert_allclose(posterior, expected, atol=2e-3)


def test_linear_orders_equal_accuracies_by_likelihood():
    # The same images with more and less distance between the classes.
    results = [
        measures.compute("linear", *generate(separation)[:2])
        for separation in (4.0, 8.0, 16.0)
    ]
    assert [result.details["accuracy"] for result in results] == [1.0] * 3
    scores = [result.score for result in results]
    likelihoods = [result.details["log_likelihood"] for result in results]
    assert scores == sorted(scores) and len(set(scores)) == 3
    assert likelihoods == sorted(likelihoods)
    # The likelihood weighs a thousandth of one of 48 images.
    assert scores[2] - scores[0] < 1e-3 / results[0].details["num_held_out"]
    tolerance = measures.tolerance("linear")
    assert not tolerance.allows(scores[0], scores[1])


@pytest.mark.parametrize("name", ["linear", "mutual_information"])
def test_held_out_images_depend_on_the_order_within_each_class_only(name):
    features, labels, _ = generate(0.7)
    expected = measures.compute(name, features, labels)
    # One class after the other, each in its order.
    rows = np.argsort(labels, kind="stable")
    result = measures.compute(name, features[rows], labels[rows])
    assert result.score == pytest.approx(expected.score, abs=1e-3)
