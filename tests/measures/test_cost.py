import math

import pytest

from rankckpt_jax import measures
from rankckpt_jax.measures import cost
from rankckpt_jax.measures.cost import Sizes

SIZES = Sizes(images=3060, dimensions=2048, classes=102, source_classes=1001)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h_score", 2 * (3060 * 2048**2 + 2048**3)),
        ("leep", 2 * 3060 * 1001 * 102),
        ("knn", 2 * 3060**2 * 2048),
        ("tmi", 2 * 3060**2 * 2048 / 102),
        ("linear", 2 * 3060 * 2048 * 102 * cost.STEPS),
        ("num_parameters", 0),
        ("early_stopping", 0),
    ],
)
def test_flop_follows_the_cost_of_a_measure(name, expected):
    assert cost.flop(name, SIZES) == expected


def test_flop_reads_the_cost_of_every_measure():
    free = {n for n in measures.names() if not cost.flop(n, SIZES)}
    stated = {n for n in measures.names() if measures.get(n).cost in cost.FREE}
    assert free == stated
    # No term is ignored: each one is a product of known symbols, or EM.
    known = {"N", "D", "C", "V", "steps", "EM"}
    for name in set(measures.names()) - free:
        words = measures.get(name).cost.replace("+", " ").replace("/", " ").split()
        assert {word.partition("^")[0] for word in words} <= known


def test_flop_is_zero_without_the_logits_that_a_measure_needs():
    without = Sizes(images=3060, dimensions=2048, classes=102)
    assert cost.flop("leep", without) == 0 < cost.flop("leep", SIZES)


def test_flop_of_nleep_follows_the_formulas():
    few = Sizes(images=1000, dimensions=16, classes=2)
    # 100 images per component in 16 dimensions: dense EM.
    pairs = 2 * 1000 * 10 * 16
    clustering = pairs * (2 + math.log(10) + cost.EM_ITERATIONS)
    iterations = cost.EM_ITERATIONS * (2 * pairs * 16 + 2 * 10 * 16**3)
    pca = 2 * 1000 * 16**2
    expected = pca + clustering + iterations
    assert cost.flop("nleep", few) == pytest.approx(expected)
    three = cost.flop("nleep", few, {"num_restarts": 3})
    assert three == pytest.approx(pca + 3 * (clustering + iterations))


def test_flop_of_nleep_is_small_with_few_images_per_component():
    # 6 images per component in 128 dimensions.
    dense = 4 * 3060 * 510 * 128**2 * cost.EM_ITERATIONS
    without_pca = cost.flop("nleep", SIZES) - 2 * 3060 * 2048**2
    assert dense / 100 < without_pca < dense / 10


def test_mixture_has_at_most_the_assumed_dimensions():
    assert cost.mixture(SIZES, {}) == (510, cost.PCA_DIMENSIONS)
    narrow = Sizes(images=100, dimensions=16, classes=3)
    assert cost.mixture(narrow, {"components_per_class": 2}) == (6, 16)


def test_memory_holds_the_arrays():
    arrays = 4 * 3060 * (2048 + 1001)
    assert arrays < cost.memory("h_score", SIZES) < 4 * arrays
    assert cost.memory("num_parameters", SIZES) == 0
