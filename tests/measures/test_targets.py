"""Measures of several labels or a number per image."""

import jax
import numpy as np
import pytest
from sklearn import datasets, metrics

from rankckpt_jax import measures
from rankckpt_jax.data import targets
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.mixture import fitting, label_prediction, prediction
from rankckpt_jax.measures.statistics import goodness
from tests.measures import references, target_references
from tests.measures.data import FACTS

KINDS = ("multi_label", "regression")
NAMES = [name for name in measures.names() if name != "static"]
DEFINED = [(n, k) for n in NAMES for k in KINDS if k in measures.get(n).targets]
OF_LABELS = [(n, k) for n, k in DEFINED if measures.get(n).reads_images]
WITHOUT_LABELS = ("energy", "early_stopping", "rankme")
OF_LABELS = [pair for pair in OF_LABELS if pair[0] not in WITHOUT_LABELS]


def generate(kind, n=240, d=12, seed=0):
    """Features [n, d], labels of a kind that depend on them, and logits [n, 6].

    They have the shapes of `tests.measures.data`, to share compiled programs.
    """
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, d)) @ np.diag(np.linspace(2, 0.5, d)) + 1
    logits = x[:, :6] + random.normal(size=(n, 6))
    y = x[:, :4] @ random.normal(size=(4, 4)) + random.normal(size=(n, 4))
    if kind == "multi_label":
        # Of common to rare, and images without a label.
        labels = y > np.quantile(y, [0.3, 0.5, 0.7, 0.9], axis=0).diagonal()
    else:
        labels = 250 + 30 * y[:, 0]
    return x, labels, logits


def score(name, kind, data, **options):
    x, labels, logits = data
    return measures.compute(
        name, x, labels, logits, facts=FACTS, target=kind, **options
    ).score


def _per_label(reference):
    """Return the mean over the labels of a reference for two classes."""
    return lambda given, labels: np.mean([reference(given, t) for t in labels.T])


# float32 has 1e-7 of relative rounding, which the fixed points and the steps of
# optimizers enlarge; ranks in 2^16 bins differ by less than 1e-4.
TOLERANCES = {"linear": 5e-3, "parc": 2e-2, "logme": 1e-5, "rsa": 2e-4}
FROM_LOGITS = {"leep": references.leep, "nce": references.nce}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "kind"), OF_LABELS)
def test_measure_matches_plain_statement(name, kind, dtype):
    x, labels, logits = generate(kind)
    x, logits = x.astype(np.float32), logits.astype(np.float32)
    exact, exact_logits = x.astype(np.float64), logits.astype(np.float64)
    if name in FROM_LOGITS:
        expected = _per_label(FROM_LOGITS[name])(exact_logits, labels)
    elif name == "linear":
        strata = np.zeros(len(x), int)
        if kind == "multi_label":
            strata = targets.rarest_label(labels)
        expected = target_references.linear(exact, labels, strata)
    elif name == "nleep":
        pytest.skip("compared with scikit-learn's mixture below")
    else:
        expected = getattr(target_references, name)(exact, labels)
    with jax.enable_x64(dtype == "float64"):
        result = score(name, kind, (x.astype(dtype), labels, logits.astype(dtype)))
    tolerance = TOLERANCES.get(name, 2e-6)
    assert result == pytest.approx(expected, rel=tolerance, abs=tolerance)


REAL = ("logme", "h_score", "regularized_h_score", "cka", "rsa", "knn")


@pytest.mark.parametrize("name", REAL)
def test_measure_of_diabetes_progression_matches_plain_statement(name):
    """Ten numbers of 442 patients, and the progression of their disease."""
    x, number = datasets.load_diabetes(return_X_y=True)
    expected = getattr(target_references, name)(x, number)
    result = score(name, "regression", (x, number, None))
    assert result == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", REAL)
def test_measure_of_traits_of_digits_matches_plain_statement(name):
    """Images of 8 x 8 pixels: is the digit even, prime, large, and has it a loop?"""
    x, digits = datasets.load_digits(return_X_y=True)
    x, digits = (
        x[:400] + 1e-3 * np.random.default_rng(0).random((400, 64)),
        digits[:400],
    )
    traits = [np.isin(digits, d) for d in ([0, 2, 4, 6, 8], [2, 3, 5, 7], [0, 6, 8, 9])]
    labels = np.stack([*traits, digits > 4], axis=1)
    expected = getattr(target_references, name)(x, labels)
    result = score(name, "multi_label", (x, labels, None))
    # Features with little variance lose digits in float32.
    assert result == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_nleep_of_labels_matches_scikit_learn_up_to_random_starts():
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    x, labels, _ = generate("multi_label")
    projected = PCA(0.8, svd_solver="full").fit_transform(x)
    # Five components per label.
    posteriors = [
        GaussianMixture(20, random_state=seed).fit(projected).predict_proba(projected)
        for seed in range(3)
    ]
    expected = [_per_label(references.nleep)(p, labels) for p in posteriors]
    result = measures.compute("nleep", x, labels, target="multi_label", num_restarts=3)
    assert result.details["num_components"] == 20
    spread = np.std(expected) + np.std(result.details["scores"])
    assert abs(np.mean(expected) - result.score) < 2 * spread


# With few points per component, responsibilities are lists instead of blocks.
@pytest.mark.parametrize(("n", "d", "count"), [(240, 7, 20), (40, 20, 4)])
def test_nleep_predicts_each_label_like_two_classes(n, d, count):
    x, labels, _ = generate("multi_label", n=n)
    points = np.tile(x, 2)[:, :d].astype(np.float32)
    fitted = fitting.fit(points, count, init_labels=np.arange(n) % count)
    assert (fitted.sparse is not None) == (n / count < d)
    result = label_prediction.of_mixture(fitted, labels)
    each = [prediction.of_mixture(fitted, y.astype(int), 2) for y in labels.T]
    for field in ("log", "probability", "log_floored", "entropy"):
        expected = np.mean([getattr(one, field) for one in each])
        # Both are sums of float32.
        assert getattr(result, field) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    "name", ["h_score", "regularized_h_score", "leep", "nce", "rsa"]
)
def test_one_label_is_like_two_classes(name):
    x, labels, logits = generate("multi_label")
    one = score(name, "multi_label", (x, labels[:, :1], logits))
    two = score(name, "classes", (x, labels[:, 0], logits))
    assert one == pytest.approx(two, rel=2e-5)


@pytest.mark.parametrize("name", ["parc", "rsa", "cka", "transrate"])
def test_one_label_per_image_is_like_classes(name):
    x, _, _ = generate("multi_label")
    classes = np.random.default_rng(0).integers(0, 4, len(x))
    one_hot = classes[:, None] == np.arange(4)
    x[:, :4] += 2 * one_hot
    one = score(name, "multi_label", (x, one_hot, None))
    two = score(name, "classes", (x, classes, None))
    assert one == pytest.approx(two, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("name", "kind"), DEFINED)
def test_score_is_finite_or_refused_for_odd_data(name, kind):
    x, labels, logits = generate(kind)
    cases = {
        "few images": generate(kind, n=40, d=60),
        "duplicates": tuple(np.repeat(a[:120], 2, axis=0) for a in (x, labels, logits)),
        "constant features": (np.ones_like(x), labels, logits),
    }
    if name == "linear":
        # Its program takes seconds to compile for each number of training images.
        del cases["duplicates"]
    for case, data in cases.items():
        options = {"components_per_class": 1} if name == "nleep" else {}
        try:
            assert np.isfinite(score(name, kind, data, **options)), case
        except InputError:
            assert case == "constant features"
            assert name in ("parc", "rsa", "cka")


@pytest.mark.parametrize(("name", "kind"), OF_LABELS)
def test_score_is_near_chance_for_unrelated_labels(name, kind):
    x, labels, logits = generate(kind)
    order = np.random.default_rng(1).permutation(len(x))
    related = score(name, kind, (x, labels, logits))
    unrelated = measures.compute(
        name, x, labels[order], logits, target=kind, facts=FACTS
    )
    # TransRate compares clusters, and these labels are half-spaces.
    assert unrelated.score < related or name == "transrate"
    if (name, kind) == ("knn", "regression"):
        assert "that of always predicting the mean" in unrelated.warning
    if name in ("leep", "nce") and unrelated.details.get("saturated"):
        assert "label frequencies" in unrelated.warning


@pytest.mark.parametrize(("name", "kind"), OF_LABELS)
def test_halves_keep_score_and_add_spread(name, kind):
    x, labels, logits = generate(kind)
    result = measures.compute(name, x, labels, logits, target=kind, num_bootstrap=3)
    assert result.score == score(name, kind, (x, labels, logits))
    assert np.isfinite(result.details["half_scores"]).all()
    assert result.details["spread"] > 0


FAST = [("h_score", k) for k in KINDS] + [("logme", k) for k in KINDS]
FAST += [("knn", k) for k in KINDS] + [("cka", "multi_label"), ("leep", "multi_label")]


@pytest.mark.parametrize(("name", "kind"), FAST)
def test_spread_over_halves_matches_spread_over_fresh_images(name, kind):
    many = generate(kind, n=240 * 30)
    fresh = [
        score(name, kind, tuple(a[i : i + 240] for a in many))
        for i in range(0, 240 * 30, 240)
    ]
    x, labels, logits = (a[:240] for a in many)
    result = measures.compute(name, x, labels, logits, target=kind, num_bootstrap=30)
    assert np.std(fresh) / 2 < result.details["spread"] < 2 * np.std(fresh)


def test_score_does_not_depend_on_the_unit_of_the_number():
    x, celsius, _ = generate("regression")
    for name in ("logme", "h_score", "cka", "knn", "linear", "rsa"):
        expected = score(name, "regression", (x, celsius, None))
        for other in (1.8 * celsius + 32, 1e-200 * celsius, 1e200 * celsius):
            result = score(name, "regression", (x, other, None))
            assert result == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("kind", KINDS)
def test_measure_that_is_not_defined_says_why(kind):
    x, labels, logits = generate(kind)
    undefined = [name for name in NAMES if (name, kind) not in DEFINED]
    assert "gbc" in undefined
    results = measures.compute_all(x, labels, logits, undefined, target=kind)
    for name, result in results.items():
        assert np.isnan(result.score)
        reason = f"not defined for {targets.TARGETS[kind]} per image"
        assert result.warning.startswith(name) and reason in result.warning
    with pytest.raises(InputError, match="classes or labels") as raised:
        measures.compute("leep", x, x[:, 0], logits, target="regression")
    assert "use logme, linear, knn" in str(raised.value)


X = np.arange(12.0).reshape(4, 3) ** 2
LABELS = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("multi_label", LABELS[:, 0], r"one column per label[\s\S]*shape \[4\]"),
        ("multi_label", LABELS[:3], r"one column per label[\s\S]*shape \[3, 2\]"),
        ("multi_label", LABELS[:, :0], "one column per label"),
        ("multi_label", LABELS * 2, r"must be 0 or 1[\s\S]*4 other values, such as 2"),
        ("multi_label", LABELS * np.nan, r"must be 0 or 1[\s\S]*unknown"),
        ("multi_label", LABELS & [1, 0], r"No image has a label[\s\S]*column 1"),
        ("multi_label", LABELS | [1, 0], r"Every image has a label[\s\S]*column 0"),
        ("multi_label", [["a"], ["b"], ["a"], ["b"]], "real numbers"),
        ("regression", LABELS, r"one number per row[\s\S]*shape \[4, 2\]"),
        ("regression", [1.0, 2.0, 3.0], "one number per row"),
        ("regression", [1.0, np.nan, 3.0, np.inf], "2 NaN or infinite values"),
        ("regression", [2.5] * 4, r"same number[\s\S]*2.5 for each of 4 images"),
        ("regression", [0.0] * 4, "same number"),
        ("regression", ["a", "b", "c", "d"], "real numbers"),
        ("regresion", [1, 2, 3, 4], "did you mean 'regression'"),
        ("classes", LABELS, "target='multi_label'"),
        ("classes", [0.5, 1.5, 2.0, 3.0], "target='regression'"),
    ],
)
def test_prepare_refuses_labels_of_another_kind(kind, labels, message):
    with pytest.raises(InputError, match=message):
        measures.prepare(X, labels, target=kind)


@pytest.mark.parametrize("labels", [LABELS, LABELS > 0, LABELS * 1.0, LABELS.tolist()])
def test_prepare_accepts_labels_in_any_coding(labels):
    inputs = measures.prepare(X, labels, target="multi_label")
    assert inputs.labels.dtype == bool
    np.testing.assert_array_equal(inputs.labels, LABELS > 0)
    assert inputs.num_classes == 2
    # One stratum of each label, and one of the image without a label.
    assert inputs.statistics.num_classes == 3


def test_prepare_accepts_whole_numbers():
    inputs = measures.prepare(X, [[3], [1], [4], [1]], target="regression")
    np.testing.assert_array_equal(inputs.labels, [3.0, 1, 4, 1])


def test_strata_keep_rare_labels_in_halves():
    x, labels, _ = generate("multi_label", n=60)
    labels = np.concatenate([labels, np.arange(60)[:, None] == 7], axis=1)
    result = measures.compute(
        "h_score", x, labels, target="multi_label", num_bootstrap=20
    )
    assert np.isfinite(result.details["half_scores"]).all()


def test_mean_average_precision_matches_scikit_learn():
    random = np.random.default_rng(0)
    truth = random.random((50, 4)) < [0.5, 0.2, 0.1, 0.9]
    # With equal scores.
    scores = (truth + random.normal(size=(50, 4))).round(1)
    expected = metrics.average_precision_score(truth, scores)
    found = goodness.mean_average_precision(truth, scores)
    assert found == pytest.approx(expected, rel=1e-12)
    assert np.isnan(goodness.mean_average_precision(truth[:, :1] >= 0, scores[:, :1]))


def test_r2_matches_scikit_learn():
    random = np.random.default_rng(0)
    truth, predicted = random.normal(size=(2, 50))
    expected = metrics.r2_score(truth, predicted)
    assert goodness.r2(truth, predicted) == pytest.approx(expected, rel=1e-12)
    assert np.isnan(goodness.r2(np.ones(3), predicted[:3]))


def test_rank_correlation_of_labels_with_several_tiles():
    for kind in KINDS:
        x, labels, _ = generate(kind, n=700, d=6)
        expected = target_references.rsa(x, labels)
        assert score("rsa", kind, (x, labels, None)) == pytest.approx(
            expected, abs=2e-4
        )


def test_rsa_takes_features_as_its_option_target():
    x, labels, logits = generate("multi_label")
    inputs = measures.prepare(x, labels, target="multi_label")
    expected = measures.compute("rsa", x, labels[:, 0], target=logits).score
    result = measures.compute_prepared("rsa", inputs, target=logits).score
    assert result == pytest.approx(expected, abs=1e-6)
