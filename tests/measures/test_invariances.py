"""What may be done to features without a measure's noticing, by the measures' theory.

HOLDS says of every registered measure which of these leave its score as it is:

    order     the order of the images
    names     the names of the classes
    rotation  an orthogonal map of the features
    scale     all features times one number
    shift     all features plus one vector

A measure that is not there fails the test, so that who adds one has to think of it; one
that is said to notice has to notice, so that the table stays true.
"""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rankckpt_jax import measures
from tests.measures.test_contract import CONSTANT, FROM_IMAGES, drawn, score

ALL = {"order", "names", "rotation", "scale", "shift"}
HOLDS = {
    # Whitened by the features' own covariance.
    "h_score": ALL,
    "regularized_h_score": ALL,
    # Of distances, or of what is standardized first.
    "knn": ALL,
    "gbc": ALL,
    # Evidence is compared at its maximum over the scales, but not over a shift.
    "logme": ALL - {"shift"},
    # They weigh distances against a constant: scale is part of what they measure.
    "transrate": ALL - {"scale"},
    "sfda": ALL - {"scale"},
    "lda": ALL - {"scale"},
    "pactran": ALL - {"scale"},
    "ncti": ALL - {"scale"},
    "etran": ALL - {"scale"},
    # Correlations over the dimensions of one image: the axes matter, and the features'
    # mean too where it is not taken away first.
    "parc": ALL - {"rotation"},
    "rsa": {"order", "names", "scale"},
    # Read the classifier alone.
    "leep": ALL,
    "nce": ALL,
    "energy": ALL,
    # Random starts or splits follow the order of the images.
    "nleep": ALL - {"order"},
    "mutual_information": ALL - {"order"},
    # Standardizes each dimension.
    "linear": {"names", "scale", "shift"},
}
# Iterations that stop when little moves, and roundings that grow on the way.
TOLERANCES = {"logme": 2e-3, "linear": 2e-2, "mutual_information": 2e-2, "nleep": 2e-2}
CHANGES = {
    "order": lambda random, x, y, z: _reordered(random, x, y, z),
    "names": lambda random, x, y, z: (x, random.permutation(4)[y], z),
    "rotation": lambda random, x, y, z: (x @ _rotation(random, x), y, z),
    "scale": lambda random, x, y, z: (x * 2.0 ** random.uniform(-3, 3), y, z),
    "shift": lambda random, x, y, z: (x + random.normal(0, 2, x.shape[1]), y, z),
}


def _reordered(random, x, y, z):
    order = random.permutation(len(y))
    return x[order], y[order], z[order]


def _rotation(random, x):
    return scipy.stats.ortho_group.rvs(x.shape[1], random_state=random)


def _changed(change, seed, separation=1.0):
    features, labels, logits = drawn(separation, seed=seed)
    random = np.random.default_rng(seed)
    x, y, z = CHANGES[change](random, features.astype(np.float64), labels, logits)
    return x.astype(np.float32), y, z


CASES = [(n, c) for n in sorted(HOLDS) for c in sorted(ALL) if c in HOLDS[n]]
NOTICED = [(n, c) for n in sorted(HOLDS) for c in sorted(ALL - HOLDS[n])]
few = settings(max_examples=2, deadline=None, derandomize=True)
many = settings(max_examples=50, deadline=None)


def test_of_every_measure_it_is_said_what_it_notices():
    assert set(HOLDS) == set(FROM_IMAGES)
    assert set(FROM_IMAGES) | set(CONSTANT) == set(measures.names())


def _check(name, change, seed, separation):
    expected = score(name, *drawn(separation, seed=seed))
    found = score(name, *_changed(change, seed, separation))
    tolerance = TOLERANCES.get(name, 5e-4)
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(("name", "change"), CASES)
@few
@given(seed=st.integers(0, 10_000), separation=st.floats(0.2, 2.0))
def test_what_a_measure_does_not_notice(name, change, seed, separation):
    _check(name, change, seed, separation)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), CASES)
@many
@given(seed=st.integers(0, 10_000), separation=st.floats(0.2, 2.0))
def test_what_a_measure_does_not_notice_often(name, change, seed, separation):
    _check(name, change, seed, separation)


@pytest.mark.parametrize(("name", "change"), NOTICED)
def test_what_a_measure_notices(name, change):
    """Once in a few draws at least."""
    differences = [
        abs(score(name, *_changed(change, seed)) - score(name, *drawn(seed=seed)))
        for seed in range(4)
    ]
    assert max(differences) > 1e-5


# Energy does not see the labels, NCTI's terms are comparable only within a pool.
MONOTONE = sorted({*FROM_IMAGES} - {"energy", "ncti"})


@pytest.mark.parametrize("name", MONOTONE)
@few
@given(seed=st.integers(0, 10_000))
def test_the_further_apart_classes_are_the_higher_the_score(name, seed):
    found = [score(name, *drawn(apart, seed=seed)) for apart in (0.1, 0.7, 2.0)]
    assert found == sorted(found) and found[0] < found[-1]
