"""Changes of the features that leave a score unchanged, by the theory of each measure.

HOLDS lists for every measure the changes that do not affect its score:

    order     the order of the images
    names     the names of the classes
    rotation  an orthogonal map of the features
    scale     multiplication of all features by a number
    shift     addition of a vector to all features

A new measure must be added to HOLDS. A change that is not listed must affect the score,
so that the table stays true.
"""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.measures.data import FROM_IMAGES, generate, score, score_of

ALL = {"order", "names", "rotation", "scale", "shift"}
HOLDS = {
    # Whitened by the features' own covariance.
    "h_score": ALL,
    "regularized_h_score": ALL,
    # Computed from distances, or standardized first.
    "knn": ALL,
    "gbc": ALL,
    "cka": ALL,
    # The evidence is maximized over scales, but not over shifts.
    "logme": ALL - {"shift"},
    # These compare distances with a constant.
    "transrate": ALL - {"scale"},
    "sfda": ALL - {"scale"},
    "lda": ALL - {"scale"},
    "pactran": ALL - {"scale"},
    "ncti": ALL - {"scale"},
    "etran": ALL - {"scale"},
    # The maximum norm depends on the axes, and an entropy on the scale.
    "tmi": {"order", "names", "shift"},
    # Columns are scaled to [0, 1].
    "concept_variation": ALL - {"rotation"},
    # Computed from principal components.
    "disco": ALL,
    # Not centered, and without labels.
    "rankme": ALL - {"shift"},
    # The order of the images selects the folds.
    "lda_accuracy": ALL - {"order"},
    # Correlations over the dimensions of one image depend on the axes, and on the mean
    # unless features are centered first.
    "parc": ALL - {"rotation"},
    "rsa": {"order", "names", "scale"},
    # Computed from logits alone.
    "leep": ALL,
    "nce": ALL,
    "energy": ALL,
    # Random starts and splits depend on the order of the images.
    "nleep": ALL - {"order"},
    "mutual_information": ALL - {"order"},
    # Standardizes each dimension.
    "linear": {"names", "scale", "shift"},
}
# Iterations stop at a tolerance, and rounding errors grow on the way.
TOLERANCES = {"linear": 2e-2, "mutual_information": 2e-2, "nleep": 2e-2}


def _change(change, seed, separation=1.0):
    x, y, z = generate(separation, seed=seed)
    x = x.astype(np.float64)
    random = np.random.default_rng(seed)
    if change == "order":
        order = random.permutation(len(y))
        x, y, z = x[order], y[order], z[order]
    elif change == "names":
        y = random.permutation(4)[y]
    elif change == "rotation":
        x = x @ scipy.stats.ortho_group.rvs(x.shape[1], random_state=random)
    elif change == "scale":
        x = x * 2.0 ** random.uniform(-3, 3)
    else:
        x = x + random.normal(0, 2, x.shape[1])
    return x.astype(np.float32), y, z


def _check_invariant(name, change, seed, separation):
    changed = score(name, *_change(change, seed, separation))
    tolerance = TOLERANCES.get(name, 5e-4)
    expected = score_of(name, separation, seed)
    assert changed == pytest.approx(expected, rel=tolerance, abs=tolerance)


HOLDING = [(n, c) for n in sorted(HOLDS) for c in sorted(HOLDS[n])]
CHANGING = [(n, c) for n in sorted(HOLDS) for c in sorted(ALL - HOLDS[n])]


def test_table_lists_every_measure():
    assert set(HOLDS) == set(FROM_IMAGES)


@pytest.mark.parametrize(("name", "change"), HOLDING)
@pytest.mark.parametrize(("separation", "seed"), [(0.7, 3), (2.0, 4)])
def test_score_is_invariant(name, change, separation, seed):
    _check_invariant(name, change, seed, separation)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), HOLDING)
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), separation=st.floats(0.2, 2.0))
def test_score_is_invariant_for_random_seeds(name, change, seed, separation):
    _check_invariant(name, change, seed, separation)


@pytest.mark.parametrize(("name", "change"), CHANGING)
def test_score_is_not_invariant(name, change):
    differences = (
        abs(score(name, *_change(change, seed)) - score_of(name, seed=seed))
        for seed in range(4)
    )
    assert any(difference > 1e-5 for difference in differences)
