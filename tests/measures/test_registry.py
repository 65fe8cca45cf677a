import math

import pytest

from rankckpt_jax import measures
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import registry


@pytest.fixture
def empty_registry(monkeypatch):
    """A copy of the registry, to which a test may add measures."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def test_names_start_with_nleep():
    assert measures.names()[0] == "nleep"
    assert {"nleep", "leep", "h_score"} <= set(measures.names())


def test_get_returns_record():
    leep = measures.get("leep")
    assert leep.name == "leep" and leep.needs_logits
    assert leep.about.startswith("LEEP (Nguyen et al. 2020")
    assert leep.targets == ("classes", "multi_label")
    # The first line of the function, because the file holds several measures.
    assert measures.get("feature_dim").about.startswith("D, the width")
    assert not measures.get("nleep").needs_logits
    assert measures.get("nleep").combine is None
    assert measures.get("nce").options == ("soft",)


def test_bounds_depend_on_options():
    nleep = measures.get("nleep")
    assert nleep.bounds_for({}) == (-math.inf, 0.0)
    assert nleep.bounds_for({"variant": "sfda"}) == (0.0, 1.0)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(InputError, match="did you mean 'nleep'"):
        measures.get("nlep")
    with pytest.raises(InputError, match="Unknown option.*componets(.|\n)*components_"):
        measures.get("nleep").check_options({"componets": 3})
    with pytest.raises(InputError, match="expected: no options"):
        measures.get("leep").check_options({"soft": True})


def test_register_raises_for_existing_name(empty_registry):
    with pytest.raises(ValueError, match="registered twice"):
        measures.register("nleep")(lambda inputs: measures.Result(0.0))


def test_import_all_adds_a_measure_from_one_file(
    small, empty_registry, monkeypatch, tmp_path
):
    monkeypatch.setattr(measures, "__path__", [*measures.__path__, str(tmp_path)])
    (tmp_path / "spread.py").write_text(
        '"""Spread of the features."""\n'
        "from rankckpt_jax.measures.registry import Inputs, Result, register\n"
        "@register('spread', bounds=(0.0, 100.0))\n"
        "def spread(inputs: Inputs, power: float = 1.0) -> Result:\n"
        "    return Result(float(inputs.features.std()) ** power)\n"
    )
    measures.import_all(measures.__path__, measures.__name__)
    assert "spread" in measures.names()
    assert measures.get("spread").about == "Spread of the features."
    result = measures.compute("spread", small.features, small.labels, power=2.0)
    assert result.score == pytest.approx(small.features.var(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "scores", "ranks"),
    [
        # Four real networks on 54 images of 6 classes.
        ("h_score", [5.000000000000003, 4.9999999999999964, 5.0, 4.99], [1, 1, 1, 4]),
        ("nleep", [0.0, -1.9e-8, -1e-3], [1, 1, 3]),
        ("leep", [-0.6931472, -0.69314715, -0.6931], [2, 2, 1]),
        ("knn", [53 / 54, 1 - 1 / 54, 1.0], [2, 2, 1]),
        ("gbc", [-3e-15, 0.0, -1e-9], [1, 1, 3]),
        ("num_parameters", [math.log10(23_508_032), math.log10(23_508_033)], [2, 1]),
        ("not registered", [1.0, 1.0 + 1e-9, 1.1], [2, 2, 1]),
    ],
)
def test_tolerance_resolves_rounding_noise(name, scores, ranks):
    resolved = measures.tolerance(name).resolve(scores)
    assert [1 + sum(o > s for o in resolved) for s in resolved] == ranks
    assert set(resolved) <= set(scores)
    assert resolved[scores.index(max(scores))] == max(scores)


def test_tolerance_is_transitive_and_idempotent():
    tolerance = registry.Tolerance(relative=0.0, absolute=1.0)
    # The ends of the chain 0, 0.9, 1.8 are equal, although they differ by more than 1.
    resolved = tolerance.resolve([1.8, 5.0, 0.0, 0.9, 2.9])
    assert resolved == [1.8, 5.0, 1.8, 1.8, 2.9]
    assert tolerance.resolve(resolved) == resolved
    assert tolerance.resolve([]) == []
