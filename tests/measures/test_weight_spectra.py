import numpy as np
import pytest

from rankckpt_jax import measures
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import weight_spectra

NAMES = ("alpha", "weighted_alpha", "log_alpha_norm", "log_spectral_norm")
DENSE = np.random.default_rng(0).standard_t(3, (300, 100)) / np.sqrt(300)
CONVOLUTION = np.random.default_rng(1).standard_t(3, (9, 64, 128)) / np.sqrt(576)
NOISE = np.random.default_rng(1).normal(size=(300, 100)) / np.sqrt(300)


def _compute(name, kernels):
    facts = {weight_spectra.FACT: weight_spectra.summarize(kernels)}
    features = np.eye(4, dtype=np.float32)
    return measures.compute(name, features, [0, 0, 1, 1], facts=facts, num_bootstrap=2)


# Values of weightwatcher 0.7.7, whose logarithms of eigenvalues have an error of 1e-8.
@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        ([("k", CONVOLUTION)], (5.16775724, 1.90366469, 2.16946075, 0.36837347)),
        ([("a", DENSE)], (6.3892149275, 6.9910128929, 7.0664456653, 1.0941896575)),
        (
            [("k", CONVOLUTION), ("a", DENSE)],
            (5.77848611, 4.44733882, 4.61795324, 0.73128157),
        ),
    ],
)
def test_scores_match_weightwatcher(kernels, expected):
    for name, value in zip(NAMES, expected, strict=True):
        result = _compute(name, kernels)
        assert result.score == pytest.approx(-value, rel=2e-8, abs=2e-8), name
        assert result.details["spread"] == 0


def test_scores_do_not_depend_on_the_order_of_in_and_out():
    other = [("k", CONVOLUTION.transpose(0, 2, 1)), ("a", DENSE.T)]
    for name in NAMES:
        score = _compute(name, [("k", CONVOLUTION), ("a", DENSE)]).score
        # Rounding of the decomposition in float64.
        assert _compute(name, other).score == pytest.approx(score, rel=1e-12)


@pytest.mark.parametrize(("scale", "changes"), [(8.0, True), (1.0, False)])
def test_only_alpha_ignores_the_scale_of_weights(scale, changes):
    for name in NAMES:
        one = _compute(name, [("a", DENSE)]).score
        other = _compute(name, [("a", scale * DENSE)]).score
        same = other == pytest.approx(one, rel=1e-9)
        assert same == (name == "alpha" or not changes)


def test_summarize_lists_layers_without_a_spectrum():
    kernels = {
        "dense": DENSE,
        "depthwise": CONVOLUTION[:, :1],
        "equal": np.eye(30),
        "small": DENSE[:, :5],
        "infinite": np.full((30, 30), np.inf),
    }
    summary = weight_spectra.summarize(kernels.items())
    assert [layer["name"] for layer in summary["layers"]] == ["dense"]
    assert summary["left_out"] == ["depthwise", "equal", "small", "infinite"]
    assert summary["layers"][0]["eigenvalues"] == 100
    assert summary["layers"][0]["tail"] == 12


@pytest.mark.parametrize("name", NAMES)
def test_compute_names_the_reason_of_no_score(name):
    with pytest.raises(InputError, match="no layer to fit: none of its 1 kernels"):
        _compute(name, [("equal", np.eye(30))])
    with pytest.raises(InputError, match="no layer to fit: none of its 0 kernels"):
        _compute(name, [])
    with pytest.raises(InputError, match="needs the weights of the checkpoint"):
        measures.compute(name, np.eye(4), [0, 0, 1, 1])


def test_compute_warns_if_most_layers_are_noise():
    for name in NAMES:
        reads_alpha = name != "log_spectral_norm"
        # The tail of NOISE has 9 eigenvalues, and the alpha of DENSE is above 6.
        warning = _compute(name, [("g", NOISE), ("a", DENSE)]).warning
        assert ("2 of 2 layers have no power law" in warning) == reads_alpha
        assert not _compute(name, [("g", NOISE), ("k", CONVOLUTION)]).warning


def test_summarize_is_finite_for_nearly_equal_eigenvalues():
    weights = np.diag(10 * (1 + 1e-4 * np.arange(30.0)))
    (layer,) = weight_spectra.summarize([("near", weights)])["layers"]
    assert layer["alpha"] > 100
    assert np.isfinite(layer["log_alpha_norm"])
