"""Odd inputs, tested on every registered measure: a score, or one plain error.

A new measure is included automatically. A score that means nothing must be marked: it
is saturated, or has a warning. Warnings of Python are errors here, and a NaN is refused
by `compute`, so neither can pass.
"""

import functools
import re

import numpy as np
import pytest

from rankckpt_jax import measures
from rankckpt_jax.errors import InputError
from tests.measures.data import FACTS, FROM_IMAGES, NEED_LOGITS, generate, score_of


def _few():
    random = np.random.default_rng(0)
    features = random.normal(size=(20, 2048)).astype(np.float32)
    return features, np.arange(20) % 2, random.normal(size=(20, 6)).astype(np.float32)


def _single():
    features, _, logits = generate()
    return features[:8], np.arange(8), logits[:8]


def _equal():
    features, labels, logits = generate()
    return np.full_like(features, 0.3), labels, np.tile(logits[:1], (240, 1))


def _equal_in_classes():
    features, labels, logits = generate()
    return features[labels], labels, logits[labels]


def _scaled(factor):
    features, labels, logits = generate()
    scale = np.float32(factor)
    return scale * features, labels, scale * logits


def _chance():
    features, labels, logits = generate()
    return features, np.random.default_rng(3).permutation(labels), logits


def _rare_class():
    features, _, logits = generate()
    # The first of four classes has all images but three.
    return features, np.maximum(np.arange(240) - 236, 0), logits


def _many_classes():
    random = np.random.default_rng(0)
    features = random.normal(size=(10_000, 16)).astype(np.float32)
    logits = random.normal(size=(10_000, 6)).astype(np.float32)
    return features, np.arange(10_000) % 5000, logits


CASES = {
    "2 classes, 20 images, 2,048 dimensions": _few,
    "one image per class": _single,
    "equal rows": _equal,
    "equal rows in each class": _equal_in_classes,
    "rows times 1e-4": functools.partial(_scaled, 1e-4),
    "rows times 1e4": functools.partial(_scaled, 1e4),
    "labels at chance": _chance,
    "all but one class of one image": _rare_class,
}
READ_LABELS = sorted({*FROM_IMAGES} - {"energy", "rankme"})
READ_FEATURES = sorted({*FROM_IMAGES} - {*NEED_LOGITS} | {"etran"})


@functools.cache
def _compute(name, case):
    """Return the result, or None after a plain error."""
    try:
        result = measures.compute(name, *case(), facts=FACTS)
    except InputError as error:
        assert re.fullmatch(r"[A-Za-z][^\n]{10,200}", error.what), error.what
        return None
    assert np.isfinite(result.score)
    return result


def _is_marked(result):
    return result is None or bool(result.warning) or "saturated" in result.details


@pytest.mark.parametrize("name", FROM_IMAGES)
@pytest.mark.parametrize("case", CASES)
def test_score_is_finite_or_refused_in_one_sentence(case, name):
    _compute(name, CASES[case])


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_IMAGES)
def test_score_of_5000_classes_is_finite_or_refused_in_one_sentence(name):
    _compute(name, _many_classes)


@pytest.mark.parametrize("name", READ_LABELS)
def test_one_image_per_class_is_refused_or_marked(name):
    assert _is_marked(_compute(name, _single))


@pytest.mark.parametrize("name", READ_FEATURES)
@pytest.mark.parametrize("case", [_equal, _equal_in_classes])
def test_equal_rows_are_refused_or_marked(case, name):
    result = _compute(name, case)
    assert _is_marked(result)
    # LDA warns of features without variance, and so does ETran.
    if case is _equal and result is not None and name != "etran":
        assert result.details["saturated"]


@pytest.mark.parametrize("name", FROM_IMAGES)
def test_small_rows_are_refused_or_marked_unless_scale_does_not_matter(name):
    result = _compute(name, CASES["rows times 1e-4"])
    # Of measures that are invariant: rounding, and a tolerance of iterations.
    expected = pytest.approx(score_of(name), rel=1e-3, abs=1e-3)
    assert _is_marked(result) or result.score == expected


# NCTI's terms are comparable only within a pool; TMI prefers classes that spread.
@pytest.mark.parametrize("name", sorted({*READ_LABELS} - {"ncti", "tmi"}))
def test_labels_at_chance_score_below_true_ones(name):
    result = _compute(name, _chance)
    assert result is not None and result.score < score_of(name)


@pytest.mark.parametrize(
    "name", ["knn", "linear", "cka", "lda_accuracy", "mutual_information"]
)
def test_classes_of_one_image_beside_a_large_one_are_refused_or_marked(name):
    assert _is_marked(_compute(name, _rare_class))


def test_mutual_information_at_chance_is_marked():
    features, labels, _ = _chance()
    result = measures.compute("mutual_information", features, labels)
    assert result.details["saturated"] == "chance"
