import json

import jax.numpy as jnp
import numpy as np
import pytest

from rankckpt_jax import measures
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import registry


def test_names_are_known_and_nleep_is_the_first():
    assert measures.names()[0] == "nleep"
    assert {"nleep", "leep", "h_score"} <= set(measures.names())


def test_only_measures_of_the_classifier_require_logits():
    assert measures.get("leep").needs_logits
    assert not measures.get("nleep").needs_logits
    with pytest.raises(InputError, match="Unknown measure"):
        measures.get("no such")


@pytest.mark.parametrize("name", ["nleep", "leep", "h_score"])
def test_result_is_plain_and_the_same_for_any_coding_of_the_labels(small, name):
    plain = measures.compute(name, small.features, small.labels, logits=small.logits)
    coding = np.array([9, -3, 700, 41])
    coded = measures.compute(
        name,
        jnp.asarray(small.features),
        jnp.asarray(coding[small.labels]),
        logits=jnp.asarray(small.logits),
    )
    assert float(plain) == plain.score == pytest.approx(float(coded), abs=1e-6)
    assert json.loads(json.dumps(dict(plain.details))) == plain.details


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'nleep'"):
        measures.compute("nlep", np.zeros((4, 2)), [0, 0, 1, 1])
    with pytest.raises(InputError, match="Unknown option.*componets(.|\n)*components_"):
        measures.compute("nleep", np.zeros((4, 2)), [0, 0, 1, 1], componets=3)


def test_no_logits_no_leep():
    with pytest.raises(InputError, match="needs the checkpoint's own classifier"):
        measures.compute("leep", np.zeros((4, 2)), [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.zeros(4), [0, 0, 1, 1], "must be a matrix"),
        (np.zeros((4, 0)), [0, 0, 1, 1], "must be a matrix"),
        (np.full((4, 2), np.nan), [0, 0, 1, 1], "8 NaN or infinite"),
        (np.full((4, 2), np.inf), [0, 0, 1, 1], "must be finite"),
        (np.zeros((4, 2)), [0, 0, 1], "one integer per row"),
        (np.zeros((4, 2)), [0.0, 0.0, 1.0, 1.0], "one integer per row"),
        (np.zeros((4, 2)), [5, 5, 5, 5], "at least two classes"),
    ],
)
def test_bad_input_is_one_clear_message(features, labels, message):
    with pytest.raises(InputError, match=message):
        measures.compute("h_score", features, labels)


@pytest.mark.parametrize(
    ("bounds", "score", "fits"),
    [
        ((0.0, 1.0), 1.0004, True),
        ((0.0, 1.0), 1.2, False),
        ((0.0, 1.0), -0.1, False),
        ((-np.inf, 0.0), -1e9, True),
        (lambda options: (0.0, options["most"]), 2.0, True),
        (lambda options: (0.0, options["most"]), 3.0, False),
    ],
)
def test_a_score_outside_its_range_is_refused(small, monkeypatch, bounds, score, fits):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @measures.register("wrong", bounds=bounds)
    def wrong(inputs, most=0.0):
        return measures.Result(score)

    if fits:
        found = measures.compute("wrong", small.features, small.labels, most=2.0)
        assert found.score == score
    else:
        with pytest.raises(InputError, match="outside its possible range"):
            measures.compute("wrong", small.features, small.labels, most=2.0)


def test_import_all_adds_a_measure_from_one_file(small, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(measures, "__path__", [*measures.__path__, str(tmp_path)])
    (tmp_path / "spread.py").write_text(
        '"""Spread of the features."""\n'
        "from rankckpt_jax.measures.registry import Inputs, Result, register\n"
        "@register('spread')\n"
        "def spread(inputs: Inputs, power: float = 1.0) -> Result:\n"
        "    return Result(float(inputs.features.std()) ** power)\n"
    )
    measures.import_all(measures.__path__, measures.__name__)
    assert "spread" in measures.names()
    assert measures.get("spread").about == "Spread of the features."
    result = measures.compute("spread", small.features, small.labels, power=2.0)
    assert result.score == pytest.approx(small.features.var(), rel=1e-5)
    with pytest.raises(InputError, match="did you mean 'power'"):
        measures.compute("spread", small.features, small.labels, powr=2.0)
