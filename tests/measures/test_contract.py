"""What every registered measure must hold to, found by walking the registry."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax import measures
from rankckpt_jax.errors import InputError
from tests.measures import references

FACTS = {
    "name": "a",
    "num_parameters": 1000,
    "source_accuracy": 70.0,
    "early_stop_accuracy": 0.5,
}
# Scores that no image decides.
CONSTANT = ("num_parameters", "feature_dim", "source_accuracy", "static")
CONSTANT += ("early_stopping",)
# Random starts or splits follow the order of the images.
BY_ORDER = ("nleep", "linear", "mutual_information")
RANGES = {
    "nleep": (-np.inf, 0),
    "leep": (-np.inf, 0),
    "nce": (-np.inf, 0),
    "h_score": (0, 3),
    "regularized_h_score": (0, 3),
    "gbc": (-12, 0),
    "parc": (-100, 100),
    "rsa": (-1, 1),
    "sfda": (0, 1),
    "lda": (0, 1),
    "knn": (0, 1),
    "linear": (0, 1),
    "mutual_information": (-np.inf, np.log(4)),
    "pactran": (-np.inf, 0),
}
NAMES = [name for name in measures.names() if name != "static"]
NEED_LOGITS = [n for n in measures.names() if measures.get(n).needs_logits]
FROM_IMAGES = [name for name in NAMES if name not in CONSTANT]


def drawn(separation=1.0, n=240, d=12, classes=4, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    means = random.normal(size=(classes, d))
    features = separation * means[labels] + random.normal(size=(n, d))
    logits = random.normal(size=(n, 6))
    logits[:, :classes] += 1.5 * separation * np.eye(classes)[labels]
    return features.astype(np.float32), labels, logits.astype(np.float32)


def score(name, features, labels, logits, **options):
    found = measures.compute(name, features, labels, logits, facts=FACTS, **options)
    return found.score


@pytest.mark.parametrize("name", NAMES)
def test_score_is_finite_repeatable_and_in_its_range(name):
    found = score(name, *drawn())
    assert type(found) is float
    assert found == score(name, *drawn())
    low, high = RANGES.get(name, (-np.inf, np.inf))
    assert low <= found <= high


@pytest.mark.parametrize("name", FROM_IMAGES)
def test_coding_of_labels_and_kind_of_array_do_not_matter(name):
    features, labels, logits = drawn()
    # As many steps between the codes as there were: ties keep their order.
    coded = 7 * labels - 3
    found = score(name, jnp.asarray(features), jnp.asarray(coded), jnp.asarray(logits))
    assert found == pytest.approx(score(name, features, labels, logits), rel=1e-6)


@pytest.mark.parametrize("name", [n for n in FROM_IMAGES if n not in BY_ORDER])
def test_order_of_images_and_names_of_classes_do_not_matter(name):
    features, labels, logits = drawn()
    order = np.random.default_rng(1).permutation(len(labels))
    renamed = np.array([2, 0, 3, 1])[labels]
    expected = score(name, features, labels, logits)
    found = score(name, features[order], labels[order], logits[order])
    assert found == pytest.approx(expected, rel=1e-4)
    # Energy does not see them, the others count each alike.
    assert score(name, features, renamed, logits) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["linear", "mutual_information"])
def test_drawn_splits_do_not_depend_on_names_of_classes(name):
    features, labels, logits = drawn()
    renamed = np.array([2, 0, 3, 1])[labels]
    found = score(name, features, renamed, logits)
    assert found == pytest.approx(score(name, features, labels, logits), rel=1e-3)


@pytest.mark.parametrize("name", sorted({*FROM_IMAGES} - {"energy", "ncti"}))
def test_better_separated_classes_score_higher(name):
    found = [score(name, *drawn(separation)) for separation in (0.1, 0.6, 2.0)]
    assert found == sorted(found)
    assert found[0] < found[-1]


@pytest.mark.parametrize("name", FROM_IMAGES)
def test_kind_of_number_does_not_matter(name):
    features, labels, logits = drawn()
    # Values that every one of the types holds exactly.
    features, logits = (a.astype(jnp.bfloat16).astype(np.float32) for a in drawn()[::2])
    expected = score(name, features, labels, logits)
    for dtype in (jnp.bfloat16, np.float64):
        found = score(
            name, features.astype(dtype), labels.astype(np.uint8), logits.astype(dtype)
        )
        assert found == expected


@pytest.mark.parametrize("name", measures.names())
def test_documentation_has_its_parts(name):
    told = sys.modules[measures.get(name).compute.__module__].__doc__
    told = " ".join(told.split())
    for part in ("Cost:", "Range:", "igher", "ublished"):
        assert part in told, part
    # Where in its paper the formula stands, or what else it was taken from.
    places = ("equation", "section", "definition", "authors' code", "Published code")
    assert any(place in told for place in places)
    assert name in CONSTANT or "= " in told


CASES = {
    "fewer images than dimensions": lambda: drawn(n=40, d=60),
    "one dimension": lambda: drawn(d=1),
    "a class with one image": lambda: one_image_class(),
    "classes with one image only": lambda: (
        drawn()[0][:8],
        np.arange(8),
        drawn()[2][:8],
    ),
    "a constant column": lambda: with_column(3.0),
    "duplicated images": lambda: tuple(np.repeat(a, 2, axis=0) for a in drawn(n=120)),
    "constant features": lambda: (np.ones((240, 5), np.float32), *drawn()[1:]),
    "one source class": lambda: (*drawn()[:2], drawn()[2][:, :1]),
}
# Which measures are not defined for a case, and what they say; all others are.
REFUSED = {
    "one dimension": {"parc": "at least two features", "rsa": "at least two features"},
    "classes with one image only": {
        "linear": "No class has images enough",
        "mutual_information": "learned on one half and measured on the other",
        "ncti": "classes with images that differ",
        "parc": "pairs of images of one class",
        "rsa": "pairs of images of one class",
    },
    "constant features": {
        "ncti": "classes with images that differ",
        "parc": "No image's features vary",
        "rsa": "No image's features vary",
    },
}


def one_image_class():
    features, labels, logits = drawn(n=241)
    labels[-1] = 4
    return features, labels, logits


def with_column(value):
    features, labels, logits = drawn()
    features[:, 0] = value
    return features, labels, logits


@pytest.mark.parametrize("case", CASES)
def test_defined_or_refused(case):
    features, labels, logits = CASES[case]()
    refused = REFUSED.get(case, {})
    for name in FROM_IMAGES:
        # Five components a class would be more than some cases have images.
        options = {"components_per_class": 1} if name == "nleep" else {}
        if name in refused:
            with pytest.raises(InputError, match=refused[name]):
                score(name, features, labels, logits, **options)
        else:
            found = score(name, features, labels, logits, **options)
            assert np.isfinite(found), name


def test_many_source_classes():
    features, labels, _ = drawn(n=60)
    logits = np.random.default_rng(0).normal(size=(60, 100_000)).astype(np.float32)
    for name in NEED_LOGITS:
        assert np.isfinite(score(name, features, labels, logits)), name


def test_no_classifier_no_score():
    features, labels, _ = drawn()
    for name in NEED_LOGITS:
        with pytest.raises(InputError, match="needs the checkpoint's own classifier"):
            measures.compute(name, features, labels)


@pytest.mark.slow
def test_many_images():
    # N x N single bytes would be 90 GB.
    features, labels, logits = drawn(n=300_000, d=8)
    for name in FROM_IMAGES:
        options = {"num_steps": 5} if name in ("linear", "pactran") else {}
        assert np.isfinite(score(name, features, labels, logits, **options)), name


def test_all_at_once_is_each_alone():
    features, labels, logits = drawn()
    names = ["h_score", "logme", "sfda", "nce", "source_accuracy"]
    found = measures.compute_all(features, labels, logits, names=names)
    assert list(found) == names
    for name in names[:-1]:
        assert found[name].score == score(name, features, labels, logits)
        assert found[name].details["seconds"] >= 0
    assert np.isnan(found["source_accuracy"].score)
    assert "not known" in found["source_accuracy"].warning


@pytest.mark.parametrize("name", FROM_IMAGES)
def test_bootstrap_leaves_the_score_and_gives_its_spread(name):
    found = measures.compute(name, *drawn(0.5), facts=FACTS, num_bootstrap=4)
    assert found.score == score(name, *drawn(0.5))
    assert len(found.details["bootstrap_scores"]) == 4
    assert np.isfinite(found.details["bootstrap_scores"]).all()
    assert found.details["spread"] >= found.details["bootstrap_spread"] > 0


@pytest.mark.parametrize("name", [n for n in CONSTANT if n != "static"])
def test_scores_that_no_image_decides_are_certain(name):
    found = measures.compute(name, *drawn(), facts=FACTS, num_bootstrap=4)
    assert found.details["bootstrap_scores"] == [found.score] * 4
    assert found.details["spread"] == 0


@pytest.mark.parametrize(
    ("name", "options"), [("leep", {}), ("nce", {}), ("nce", {"soft": True})]
)
def test_a_reweighted_image_is_as_many_copies(name, options):
    features, labels, logits = drawn()
    weights = np.random.default_rng(0).integers(0, 4, len(labels)).astype(float)
    rows = np.repeat(np.arange(len(labels)), weights.astype(int))
    result = measures.compute(name, features, labels, logits, **options)
    copied = score(name, features[rows], labels[rows], logits[rows], **options)
    assert result.reweighted(weights) == pytest.approx(copied, rel=1e-5)
    assert result.reweighted(np.ones(240)) == pytest.approx(result.score, rel=1e-6)


@pytest.mark.parametrize("name", ["h_score", "nce", "lda", "energy", "knn"])
def test_bootstrap_spread_is_that_of_other_images(name):
    def fresh(seed):
        means = np.random.default_rng(0).normal(size=(4, 12)) / 2
        random = np.random.default_rng([seed, 7])
        labels = np.arange(240) % 4
        features = means[labels] + random.normal(size=(240, 12))
        logits = random.normal(size=(240, 6)) + np.eye(6)[labels]
        return features.astype(np.float32), labels, logits.astype(np.float32)

    expected = np.std([score(name, *fresh(seed)) for seed in range(30)])
    found = measures.compute(name, *fresh(0), num_bootstrap=30)
    assert expected / 2 < found.details["spread"] < 2 * expected


def test_bootstrap_keeps_classes_of_one_image():
    features, labels, logits = one_image_class()
    for name in ("h_score", "transrate", "gbc", "leep"):
        found = measures.compute(name, features, labels, logits, num_bootstrap=3)
        assert np.isfinite(found.details["spread"])


# kNN finds an image's own copy and MINE learns from it; ranks leave out the pair of an
# image and its copy.
NOT_COPIES = ("knn", "mutual_information", "parc", "rsa")
WEIGHTED = [
    name
    for name in FROM_IMAGES
    if measures.get(name).uses_weights and name not in NOT_COPIES
]


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_is_as_many_copies(name):
    features, labels, logits = drawn()
    weights = np.random.default_rng(0).integers(0, 4, len(labels)).astype(float)
    rows = np.repeat(np.arange(len(labels)), weights.astype(int))
    once = measures.prepare(features, labels, logits)
    once = once.reweight(weights)
    copied = measures.prepare(features[rows], labels[rows], logits[rows])
    found, expected = (measures.compute_prepared(name, i).score for i in (once, copied))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["etran", "ncti"])
def test_scores_relative_to_a_pool(name):
    combine = measures.get(name).combine
    assert measures.get("nleep").combine is None
    terms = [
        measures.compute(name, *drawn(s, seed=3)).details["terms"]
        # From where the classes can be told apart: NCTI's collapse is small before too.
        for s in (0.5, 1.0, 2.0, 4.0)
    ]
    scores = combine(terms)
    assert scores == sorted(scores)
    assert combine(terms[:1]) == [0.0]


def test_etran_is_its_formula():
    pool = [{"energy": e, "lda": d} for e, d in ((1.0, 0.5), (3.0, 0.4), (2.0, 0.9))]
    found = measures.get("etran").combine(pool)
    np.testing.assert_allclose(found, [0.17, 0.15, 0.075 + 0.85])


def test_static_list(tmp_path):
    file = tmp_path / "scores.csv"
    file.write_text("name,score\na,0.25\nb,high\n")
    features, labels, _ = drawn()
    options = {"csv_file": str(file)}
    assert score("static", features, labels, None, **options) == 0.25
    for name in ("b", "c"):
        with pytest.raises(InputError, match=f"no score for {name}"):
            measures.compute(
                "static", features, labels, facts={"name": name}, **options
            )


def test_knn_is_scikit_learns():
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    features, labels, _ = drawn(separation=0.5, n=60)
    expected = cross_val_score(
        KNeighborsClassifier(1), features, labels, cv=LeaveOneOut()
    ).mean()
    assert measures.compute("knn", features, labels).score == pytest.approx(expected)
    votes = measures.compute("knn", features, labels, k=5).score
    five = cross_val_score(
        KNeighborsClassifier(5), features, labels, cv=LeaveOneOut()
    ).mean()
    # Ties between classes are broken otherwise there.
    assert votes == pytest.approx(five, abs=0.1)
    with pytest.raises(InputError, match="more than k images"):
        measures.compute("knn", features, labels, k=60)


def test_pairs_of_several_tiles():
    features, labels, _ = drawn(separation=0.5, n=1300, d=5)
    x = features.astype(float)
    for k in (1, 5):
        expected = references.knn(x, labels, k)
        found = measures.compute("knn", features, labels, k=k)
        # Where the places add up alike too, rounding decides.
        assert found.score == pytest.approx(expected, abs=1e-3 if k == 1 else 4e-3)
    expected = references.parc(x, labels)
    found = measures.compute("parc", features, labels)
    assert found.score == pytest.approx(100 * expected, rel=1e-3)
    some = measures.compute("knn", features, labels, max_queries=600)
    assert some.details["num_queries"] == 600
    assert some.score == pytest.approx(references.knn(x, labels), abs=0.06)


def test_rsa_is_spearmans_correlation():
    import scipy.stats

    features, labels, _ = drawn(n=80)
    features = features.round(1)  # With ties.
    lower = np.tril_indices(80, -1)
    expected = scipy.stats.spearmanr(
        (1 - np.corrcoef(features))[lower],
        (1 - np.corrcoef(np.eye(4)[labels]))[lower],
    ).statistic
    assert measures.compute("rsa", features, labels).score == pytest.approx(
        expected, abs=1e-4
    )
    fewer = measures.compute("rsa", features, labels, max_images=50)
    # The same share of each class, rounded.
    assert 46 <= fewer.details["num_images"] <= 50


def test_logistic_regression_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    from rankckpt_jax.measures.statistics import logistic

    features, labels, _ = drawn(separation=0.5)
    found = logistic.fit(
        jnp.asarray(features),
        labels,
        np.ones(len(labels)),
        4,
        features.var(axis=0),
        np.array([1e-2, 1e-1]),
        max_steps=100,
    )
    for i, ridge in enumerate((1e-2, 1e-1)):
        reference = LogisticRegression(C=1 / (ridge * len(labels)), max_iter=1000)
        expected = reference.fit(features, labels).predict_proba(features)
        scores = logistic.logits(features, found.kernel[i], found.bias[i])
        posterior = jax.nn.softmax(scores, axis=1)
        np.testing.assert_allclose(posterior, expected, atol=2e-3)


def test_information_in_noise_is_about_nothing():
    features, labels, logits = drawn(separation=0.0)
    found = score("mutual_information", features, labels, logits)
    assert abs(found) < 0.1
    separated = score("mutual_information", *drawn(separation=4.0))
    assert separated > 0.8 * np.log(4)
