"""The contract of all measures, tested on every registered one.

A new measure is included automatically. Add its bounds to RANGES if the registered ones
are wider than the theory, and the inputs for which it is not defined to REFUSED;
`test_invariances` asks for one more line.
"""

import sys

import numpy as np
import pytest

from rankckpt_jax import measures
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import registry
from tests.measures.data import (
    CONSTANT,
    FACTS,
    FROM_IMAGES,
    NAMES,
    NEED_LOGITS,
    generate,
    score,
    score_of,
)

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
    "cka": (0, 1),
    "lda_accuracy": (0, 1),
    "rankme": (1, 12.1),
    "disco": (0, 1),
    "concept_variation": (-1, 0),
    "linear": (0, 1),
    "mutual_information": (-np.inf, np.log(4)),
    "pactran": (-np.inf, 0),
}


@pytest.mark.parametrize("name", NAMES)
def test_score_is_repeatable_and_in_range(name):
    result = score(name, *generate())
    assert type(result) is float
    assert result == score_of(name)
    low, high = RANGES.get(name, (-np.inf, np.inf))
    assert low <= result <= high
    assert np.isfinite(result)


# Energy and RankMe do not read the labels; NCTI's terms are comparable only within a
# pool; TMI does not depend on the distances between classes.
OTHERS = {"energy", "ncti", "rankme", "tmi"}


@pytest.mark.parametrize("name", sorted({*FROM_IMAGES} - OTHERS))
@pytest.mark.parametrize("seed", [0, 3, 4])
def test_score_increases_with_class_separation(name, seed):
    scores = [score_of(name, separation, seed) for separation in (0.1, 0.7, 2.0)]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]


@pytest.mark.parametrize("name", measures.names())
def test_docstring_has_formula_cost_range_and_source(name):
    text = sys.modules[measures.get(name).compute.__module__].__doc__
    text = " ".join(text.split())
    for part in ("Cost:", "Range:", "igher", "ublished"):
        assert part in text, part
    places = ("equation", "section", "definition", "authors' code", "Published code")
    assert any(place in text for place in places)
    assert name in (*CONSTANT, "static") or "= " in text
    assert measures.get(name).cost


def _with_single_image_class():
    features, _, logits = generate(classes=3)
    # Four classes, as in other cases, whose compiled programs are used again.
    labels = np.where(np.arange(240) == 239, 3, np.arange(240) % 3)
    return features, labels, logits


def _with_constant_column():
    features, labels, logits = generate()
    features[:, 0] = 3.0
    return features, labels, logits


EDGE_CASES = {
    "fewer images than dimensions": lambda: generate(n=40, d=60),
    "one dimension": lambda: generate(d=1),
    "a class with one image": _with_single_image_class,
    "only classes with one image": lambda: (
        generate()[0][:8],
        np.arange(8),
        generate()[2][:8],
    ),
    "a constant column": _with_constant_column,
    "duplicate images": lambda: tuple(np.repeat(a, 2, axis=0) for a in generate(n=120)),
    "constant features": lambda: (np.ones((240, 12), np.float32), *generate()[1:]),
    "one source class": lambda: (*generate()[:2], generate()[2][:, :1]),
}
# The measures that are not defined for an edge case, with part of the message.
REFUSED = {
    "one dimension": {"parc": "at least two features", "rsa": "at least two features"},
    "only classes with one image": {
        "lda_accuracy": "two folds and a class with two images",
        "linear": "two classes with at least three images",
        "mutual_information": "a class with at least four images",
        "ncti": "a class with images that differ",
        "parc": "pairs within a class",
        "rsa": "pairs within a class",
        "tmi": "a class with more than k = 3 images",
    },
    "constant features": {
        "cka": "All rows of the features are equal",
        "disco": "All rows of the features are equal",
        "ncti": "a class with images that differ",
        "parc": "All features of each image are equal",
        "rsa": "All features of each image are equal",
        "tmi": "Each image has k = 3 copies in its class",
    },
}


@pytest.mark.parametrize("case", EDGE_CASES)
def test_score_is_finite_or_refused_for_edge_case(case):
    features, labels, logits = EDGE_CASES[case]()
    refused = REFUSED.get(case, {})
    names = NEED_LOGITS if case == "one source class" else FROM_IMAGES
    for name in names:
        # Some cases have fewer images than the default number of components.
        options = {"components_per_class": 1} if name == "nleep" else {}
        if name in refused:
            with pytest.raises(InputError, match=refused[name]):
                score(name, features, labels, logits, **options)
        else:
            assert np.isfinite(score(name, features, labels, logits, **options)), name


@pytest.mark.parametrize("name", NEED_LOGITS)
def test_measure_of_logits_with_many_classes_or_without_logits(name):
    features, labels, _ = generate(n=60)
    logits = np.random.default_rng(0).normal(size=(60, 100_000)).astype(np.float32)
    assert np.isfinite(score(name, features, labels, logits))
    with pytest.raises(InputError, match="needs the checkpoint's own classifier"):
        measures.compute(name, features, labels)


@pytest.mark.slow
def test_compute_with_many_images():
    # N x N single bytes would take 90 GB.
    features, labels, logits = generate(n=300_000, d=8)
    for name in FROM_IMAGES:
        options = {"num_steps": 5} if name in ("linear", "pactran") else {}
        assert np.isfinite(score(name, features, labels, logits, **options)), name


@pytest.mark.parametrize("name", FROM_IMAGES)
def test_halves_keep_score_and_add_spread(name):
    result = measures.compute(name, *generate(), facts=FACTS, num_bootstrap=3)
    assert result.score == score_of(name)
    halves = np.array(result.details["half_scores"])
    assert halves.shape == (3,) and np.isfinite(halves).all()
    spread = halves.std(ddof=1)
    random_starts = measures.compute(name, *generate(), facts=FACTS).details
    total = np.hypot(spread, random_starts.get("spread", 0))
    assert result.details["spread"] == pytest.approx(total) and spread > 0
    assert result.details["growth"] == pytest.approx(result.score - halves.mean())


@pytest.mark.parametrize("name", CONSTANT)
def test_halves_of_baseline_have_its_score(name):
    result = measures.compute(name, *generate(), facts=FACTS, num_bootstrap=4)
    assert result.details["half_scores"] == [result.score] * 4
    assert result.details["spread"] == result.details["growth"] == 0


def _fresh(seed, n=240, d=12):
    means = np.random.default_rng(0).normal(size=(4, d)) / 2
    random = np.random.default_rng([seed, 7])
    labels = np.arange(n) % 4
    features = means[labels] + random.normal(size=(n, d))
    logits = random.normal(size=(n, 6)) + np.eye(6)[labels]
    return features.astype(np.float32), labels, logits.astype(np.float32)


# The others take more than a second for 60 scores.
FAST = ("h_score", "regularized_h_score", "logme", "gbc", "sfda", "lda", "rsa")
FAST += ("nce", "energy", "knn")


@pytest.mark.parametrize("name", FAST)
def test_spread_over_halves_matches_spread_over_fresh_images(name):
    expected = np.std([score(name, *_fresh(seed)) for seed in range(30)])
    result = measures.compute(name, *_fresh(0), num_bootstrap=30)
    assert expected / 2 < result.details["spread"] < 2 * expected


def test_spread_of_transrate_with_few_images_per_dimension():
    # A bootstrap has a mean of 86.8 for a score of 47.2, and a deviation of 2.3.
    expected = np.std([score("transrate", *_fresh(i, 120, 40)) for i in range(12)])
    result = measures.compute("transrate", *_fresh(0, 120, 40), num_bootstrap=12)
    assert expected / 2 < result.details["spread"] < 2 * expected
    assert result.details["growth"] < 0


def test_halves_warn_if_one_is_not_defined():
    features, labels, _ = generate(n=12)
    # Two images of a class have a pair, and its halves have none.
    labels = np.arange(12) // 2

    @measures.register("pairs")
    def pairs(inputs):
        if inputs.statistics.sizes.min() < 2:
            raise InputError("pairs needs two images of a class")
        return measures.Result(1.0)

    try:
        result = measures.compute("pairs", features, labels, num_bootstrap=5)
    finally:
        del registry._REGISTRY["pairs"]
    assert result.score == 1.0
    assert "spread" not in result.details
    assert "unknown. pairs needs two images" in result.warning


def test_halves_keep_classes_with_one_image():
    inputs = measures.prepare(*_with_single_image_class())
    for name in ("h_score", "transrate", "gbc", "leep"):
        result = measures.compute_prepared(name, inputs, num_bootstrap=3)
        assert np.isfinite(result.details["spread"])


@pytest.mark.parametrize("count", [-1, 1])
def test_compute_raises_for_a_number_of_halves_without_deviation(count):
    with pytest.raises(InputError, match="needs the scores of two halves"):
        measures.compute("gbc", *generate(), num_bootstrap=count)
