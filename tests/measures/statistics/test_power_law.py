import numpy as np
import pytest

from rankckpt_jax.measures.statistics import power_law

HEAVY = np.random.default_rng(0).standard_t(3, (300, 100)) / np.sqrt(300)
NOISE = np.random.default_rng(1).normal(size=(300, 100)) / np.sqrt(300)


# Values of weightwatcher 0.7.7, in float64 throughout.
@pytest.mark.parametrize(
    ("weights", "alpha", "distance", "x_min", "tail"),
    [
        (HEAVY, 6.3892149275, 0.0718522614, 5.4226075988, 12),
        (NOISE, 12.9650933183, 0.1220941291, 1.9267218676, 9),
    ],
)
def test_fit_matches_weightwatcher(weights, alpha, distance, x_min, tail):
    law = power_law.fit(power_law.eigenvalues(weights[None]))
    assert law.alpha == pytest.approx(alpha, rel=1e-9)
    assert law.distance == pytest.approx(distance, rel=1e-8)
    assert law.x_min == pytest.approx(x_min, rel=1e-9)
    assert law.tail == tail


def test_fit_matches_the_formulas_of_one_start_at_a_time():
    x = np.sort(np.random.default_rng(2).pareto(1.5, 50) + 1)
    fits = []
    for i in range(49):
        tail = x[i:] / x[i]
        alpha = 1 + len(tail) / np.log(tail).sum()
        gaps = 1 - tail ** (1 - alpha) - np.arange(len(tail)) / len(tail)
        fits.append((np.abs(gaps).max(), alpha, x[i], len(tail)))
    distance, alpha, x_min, tail = min(fits)
    law = power_law.fit(x)
    assert (law.x_min, law.tail) == (x_min, tail)
    np.testing.assert_allclose([law.distance, law.alpha], [distance, alpha], rtol=1e-12)


def test_fit_is_the_same_in_blocks_of_any_size(monkeypatch):
    x = power_law.eigenvalues(HEAVY[None])
    expected = power_law.fit(x)
    monkeypatch.setattr(power_law, "_BLOCK", 730)
    assert power_law.fit(x) == expected


def test_fit_recovers_the_exponent_of_a_power_law():
    x = np.sort(np.random.default_rng(3).pareto(1.5, 3000) + 1)
    # The standard error of alpha is (alpha - 1) / sqrt(3000) = 0.03.
    assert power_law.fit(x).alpha == pytest.approx(2.5, abs=0.1)


@pytest.mark.parametrize("scale", [1e-2, 1e4])
def test_alpha_does_not_depend_on_the_scale(scale):
    x = power_law.eigenvalues(HEAVY[None])
    # Not the weights: small eigenvalues would be dropped.
    assert power_law.fit(scale * x).alpha == pytest.approx(6.3892149275, rel=1e-9)


@pytest.mark.parametrize(
    "matrices",
    [
        np.eye(50)[None],
        # Orthogonal to float32 precision.
        np.linalg.qr(HEAVY[:50, :50])[0].astype(np.float32)[None],
        np.zeros((1, 50, 50)),
        HEAVY[None, :, :7],
        # Of rank 5.
        (HEAVY[:, :5] @ HEAVY[:5])[None],
    ],
)
def test_fit_of_equal_or_few_eigenvalues_is_none(matrices):
    assert power_law.fit(power_law.eigenvalues(matrices)) is None


def test_fit_ignores_tails_of_equal_eigenvalues():
    x = np.sort(
        np.concatenate([np.full(20, 3.0), 1 + np.random.default_rng(4).uniform(size=5)])
    )
    law = power_law.fit(x)
    assert np.isfinite(law.alpha) and law.tail > 20
