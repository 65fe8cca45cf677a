"""Scores that are saturated or need care, and their sentences."""

import numpy as np
import pytest

from rankckpt_jax import measures
from tests.measures.data import FACTS, generate


def _few(n=54, d=256, classes=6, seed=0):
    """Random features of so few images that a linear map gives them any labels."""
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)).astype(np.float32), np.arange(n) % classes


def _copied(first=12, times=10):
    features, _ = _few(first, 64)
    # Copies of one image have several labels.
    return np.repeat(features, times, axis=0), np.arange(first * times) % 4


def _doubled():
    features, labels, _ = generate(n=120)
    return np.repeat(features, 2, axis=0), np.repeat(labels, 2)


def _flat_logits(n=200):
    """Logits that differ as little as those of images of ten pixels."""
    random = np.random.default_rng(0)
    labels = np.arange(n) % 2
    return *_few(n, 8), 0.01 * random.normal(size=(n, 5)), labels


SEPARATED = lambda: generate(separation=50.0)[:2]  # noqa: E731
ONE_EACH = lambda d: (_few(8, d)[0], np.arange(8))  # noqa: E731

SATURATED = [
    ("h_score", _few(), {}, "interpolation", 5.0),
    ("h_score", _few(seed=1), {}, "interpolation", 5.0),
    ("h_score", _few(13, 12, 3), {}, "interpolation", 2.0),
    ("h_score", _copied(), {}, "interpolation", None),
    ("h_score", ONE_EACH(4), {}, "maximum", 4.0),
    ("regularized_h_score", ONE_EACH(4), {}, "shrinkage", 0.0),
    ("lda", _few(), {}, "interpolation", 1.0),
    ("sfda", _few(), {}, "interpolation", 1.0),
    ("sfda", SEPARATED(), {}, "maximum", 1.0),
    ("knn", SEPARATED(), {}, "maximum", 1.0),
    ("knn", ONE_EACH(20), {}, "no neighbors", 0.0),
    ("knn", _few(12, 4, 3), {"k": 11}, "no neighbors", 0.0),
    ("cka", ONE_EACH(4), {}, "single images", None),
    ("cka", (_few(200, 8)[0], np.arange(200) % 2), {}, "chance", None),
    ("gbc", SEPARATED(), {}, "maximum", 0.0),
    ("lda_accuracy", SEPARATED(), {}, "maximum", 1.0),
    ("disco", ONE_EACH(4), {}, "maximum", 1.0),
    ("concept_variation", ONE_EACH(4), {}, "single images", -1.0),
    ("nleep", SEPARATED(), {"components_per_class": 1}, "maximum", 0.0),
]


@pytest.mark.parametrize(("name", "inputs", "options", "regime", "score"), SATURATED)
def test_compute_names_the_regime_of_a_saturated_score(
    name, inputs, options, regime, score
):
    result = measures.compute(name, *inputs, **options)
    assert result.details["saturated"] == regime
    assert "cannot order checkpoints" in result.warning
    if score is not None:
        assert result.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(("name", "options"), [("leep", {}), ("nce", {"soft": True})])
def test_compute_names_chance(name, options):
    features, _, logits, labels = _flat_logits()
    result = measures.compute(name, features, labels, logits, **options)
    assert result.score == pytest.approx(np.log(1 / 2), abs=1e-3)
    assert result.details["saturated"] == "chance"
    assert "class frequencies, -0.6931" in result.warning
    informative = logits + np.eye(5)[labels]
    result = measures.compute(name, features, labels, informative, **options)
    assert not result.warning and "saturated" not in result.details


def test_nleep_is_at_chance_unless_its_variant_is_a_probability():
    (regime,) = measures.get("nleep").regimes
    inputs = measures.prepare(*generate()[:2])
    for variant, score, is_chance in (
        ("paper", np.log(1 / 4), True),
        ("paper", np.log(1 / 4) + 1 / 240, False),
        ("sfda", 1 / 4, False),
    ):
        result = measures.Result(float(score), {"variant": variant})
        assert bool(regime.describe(inputs, result)) == is_chance


@pytest.mark.parametrize(
    ("name", "inputs", "text"),
    [
        ("transrate", _few(), "no more images (54) than feature dimensions"),
        ("cka", generate(n=40, d=60)[:2], "no more images (40) than feature dimen"),
        ("tmi", generate()[:2], "contains the logarithm of the scale"),
        (
            "tmi",
            generate(n=40, d=60)[:2],
            "no more images (40) than feature dimensions",
        ),
        ("tmi", _doubled(), "Only 120 of 240 images have features of their own"),
        ("lda_accuracy", (_few(60, 3, 2)[0], np.arange(60) // 58), "most frequent"),
        ("lda_accuracy", _doubled(), "Only 120 of 240 images have features of their"),
        ("rankme", generate(n=40, d=60)[:2], "no more images (40) than feature dim"),
        ("disco", generate(n=40, d=60)[:2], "no more images (40) than feature dim"),
        ("disco", (_few(200, 8)[0], np.arange(200) % 2), "not above that of random"),
        ("concept_variation", _few(200, 8), "so it is at chance"),
        ("concept_variation", _doubled(), "images have copies with the largest"),
        ("logme", ONE_EACH(20), "Each class has one image"),
        ("gbc", (_few(8, 4)[0] / 1e3, np.arange(8)), "Each class has one image"),
        ("knn", (_few(60, 3, 2)[0], np.arange(60) // 58), "most frequent class"),
        ("knn", _copied(30, 4), "Only 30 of 120 images have features of their own"),
    ],
)
def test_compute_warns_in_a_regime_that_does_not_saturate(name, inputs, text):
    result = measures.compute(name, *inputs)
    assert text in result.warning
    assert "saturated" not in result.details


def test_compute_says_nothing_in_an_ordinary_regime():
    features, labels, logits = generate()
    results = measures.compute_all(features, labels, logits, facts=FACTS)
    for name, result in results.items():
        # TMI always depends on the scale of the features.
        if np.isfinite(result.score) and name != "tmi":
            assert not result.warning, name
            assert "saturated" not in result.details, name


def test_measures_that_need_more_images_than_dimensions_warn_without_them():
    features, labels, logits = generate(n=54, d=256)
    results = measures.compute_all(features, labels, logits, facts=FACTS)
    for name, result in results.items():
        warns = "feature dimensions" in result.warning
        assert warns == measures.get(name).needs_more_images_than_dimensions, name


@pytest.mark.parametrize(
    ("name", "can_saturate"),
    [("logme", False), ("h_score", True), ("knn", True), ("etran", False)],
)
def test_can_saturate_follows_from_bounds_and_regimes(name, can_saturate):
    assert measures.get(name).can_saturate == can_saturate


@pytest.mark.parametrize("name", measures.names())
def test_regimes_have_distinct_names(name):
    regimes = measures.get(name).regimes
    assert len({regime.name for regime in regimes}) == len(regimes)


def test_resolve_ties_scores_of_a_regime_and_those_between_them():
    tolerance = measures.Tolerance()
    scores = [-0.6930, -0.3, -0.6932, -0.6931, -0.7]
    levels = ["chance", "", "chance", "", ""]
    expected = [-0.6930, -0.3, -0.6930, -0.6930, -0.7]
    assert tolerance.resolve(scores, levels) == expected
    # Different regimes are not ties.
    assert tolerance.resolve([0.0, -0.69], ["maximum", "chance"]) == [0.0, -0.69]
