import tracemalloc

import jax
import numpy as np
import pytest

from rankckpt_jax import measures
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.statistics import remappings
from rankckpt_jax.measures.statistics.class_statistics import Statistics

NAMES = ("sfda", "logme", "lda")


def _vector(dtype=np.float64):
    random = np.random.default_rng(0)
    labels = np.arange(240) % 4
    means = random.normal(size=(4, 12))
    features = means[labels] + random.normal(size=(240, 12))
    return features.astype(dtype), labels


# Values of published code, for "sa" with the spread and the direction of the paper.
@pytest.mark.parametrize(
    ("remap", "expected"),
    [
        ("none", (0.7211455937, -0.25877382, 0.9310778432)),
        ("ped", (0.7289266147, -0.2530064058, 0.9348790122)),
        ("sa", (0.5709556164, -0.3989678984, 0.8673531700)),
    ],
)
# Published LogME stops at its 1e-3; float32 rounds features.
@pytest.mark.parametrize(("dtype", "tolerance"), [(float, 1e-8), (np.float32, 2e-6)])
def test_scores_match_published_code(remap, expected, dtype, tolerance):
    with jax.enable_x64(dtype is float):
        for name, value in zip(NAMES, expected, strict=True):
            options = {"published": True} if name == "logme" else {}
            features, labels = _vector(dtype)
            result = measures.compute(name, features, labels, remap=remap, **options)
            assert result.score == pytest.approx(value, rel=tolerance)


@pytest.mark.parametrize(
    ("radius", "sfda", "logme"),
    [(0.3, 0.7211455937, -0.25877382), (2.0, 0.8624688339, -0.1388211733)],
)
def test_ped_matches_published_code_for_other_radii(radius, sfda, logme):
    features, labels = _vector()
    moved = remappings.apply(Statistics(features, labels, 4), "ped", radius).features
    with jax.enable_x64(True):
        assert measures.compute("sfda", moved, labels).score == pytest.approx(sfda)
        result = measures.compute("logme", moved, labels, published=True)
        assert result.score == pytest.approx(logme, rel=1e-8)


def test_ped_changes_nothing_if_no_classes_overlap():
    features, labels = _vector()
    features[:, :4] += 100 * np.eye(4)[labels]
    moved = remappings.apply(Statistics(features, labels, 4), "ped").features
    np.testing.assert_array_equal(moved, features)


def test_sa_spreads_images_and_moves_distant_classes_together():
    features, labels = _vector()
    features[:, :4] += 20 * np.eye(4)[labels]
    statistics = Statistics(features, labels, 4)
    spread = remappings._spread(statistics)
    moved = remappings.apply(statistics, "sa")
    lengths = np.linalg.norm(spread.features - features, axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-12)
    before, after = (s.class_means for s in (spread, moved))
    assert np.linalg.norm(after) < np.linalg.norm(before)


@pytest.mark.parametrize("remap", ["ped", "sa"])
@pytest.mark.parametrize("name", NAMES)
def test_equal_means_and_equal_rows_give_a_score(name, remap):
    features, labels = _vector(np.float32)
    equal = np.concatenate([features, features]), np.repeat([0, 1], 240)
    constant = np.ones_like(features), labels
    for inputs in (equal, constant):
        assert np.isfinite(measures.compute(name, *inputs, remap=remap).score)


def test_sa_keeps_64_components():
    random = np.random.default_rng(0)
    features = random.normal(size=(90, 70)).astype(np.float32)
    moved = remappings.apply(Statistics(features, np.arange(90) % 3, 3), "sa")
    assert moved.features.shape == (90, 64)


def test_pairs_of_classes_are_streamed(monkeypatch):
    random = np.random.default_rng(0)
    means, radii = random.normal(size=(1500, 8)), random.uniform(size=1500)
    expected = remappings._move(means, radii, np.tanh)
    direct = np.zeros(8)
    for b in range(1, 1500):
        distance = np.linalg.norm(means[0] - means[b])
        push = np.tanh(distance - radii[0] - radii[b])
        direct += (means[0] - means[b]) / distance * push
    # Distances are differences of squares, with an error of 1e-15 of the squares.
    np.testing.assert_allclose(expected[0], direct, rtol=1e-10, atol=1e-10)
    monkeypatch.setattr(remappings, "_PAIRS", 1 << 15)
    tracemalloc.start()
    moves = remappings._move(means, radii, np.tanh)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(moves, expected, rtol=1e-12, atol=1e-12)
    assert peak < 1500**2 * 8 / 4


@pytest.mark.parametrize("remap", ["ped", "sa"])
def test_numbers_are_refused(remap):
    features, _ = _vector()
    with pytest.raises(InputError, match="moves classes"):
        measures.compute(
            "logme", features, features[:, 0], target="regression", remap=remap
        )


@pytest.mark.parametrize("name", NAMES)
def test_unknown_remap_is_refused(name):
    with pytest.raises(InputError, match="remap"):
        measures.compute(name, *_vector(), remap="spread")
