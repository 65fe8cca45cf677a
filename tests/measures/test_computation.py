import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from rankckpt_jax import measures
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import registry
from tests.measures.data import generate, score_of


def test_prepare_gives_equal_inputs_for_any_coding_and_dtype():
    # Measures read nothing but these inputs, so their scores are equal too.
    features, labels, logits = generate()
    # Values that every dtype represents exactly.
    features, logits = (
        a.astype(jnp.bfloat16).astype(np.float32) for a in (features, logits)
    )
    expected = measures.prepare(features, labels, logits)
    for convert, code in (
        (jnp.asarray, labels.astype(np.uint8)),
        (lambda a: a.astype(jnp.bfloat16), 7 * labels - 3),
        (lambda a: a.astype(np.float64), np.array([-9, -3, 41, 700])[labels]),
    ):
        inputs = measures.prepare(convert(features), code, convert(logits))
        for name in ("features", "labels", "logits"):
            array = getattr(inputs, name)
            assert array.dtype == getattr(expected, name).dtype
            np.testing.assert_array_equal(array, getattr(expected, name))
        assert inputs.num_classes == 4


@pytest.mark.parametrize("dtype", [jnp.float16, np.int32])
def test_prepare_converts_to_float32(dtype):
    features = np.arange(8).reshape(4, 2).astype(dtype)
    assert measures.prepare(features, [0, 0, 1, 1]).features.dtype == np.float32


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.zeros(4), [0, 0, 1, 1], "must be a matrix"),
        (np.zeros((4, 0)), [0, 0, 1, 1], "must be a matrix"),
        (np.full((4, 2), np.nan), [0, 0, 1, 1], "8 NaN or infinite"),
        (np.full((4, 2), np.inf), [0, 0, 1, 1], "must be finite"),
        (np.zeros((4, 2)), [0, 0, 1], "one integer per row"),
        (np.zeros((4, 2)), [0.5, 0.0, 1.0, 1.0], "not real numbers"),
        (np.zeros((4, 2)), [5, 5, 5, 5], "at least two classes"),
    ],
)
def test_prepare_raises_for_bad_input(features, labels, message):
    with pytest.raises(InputError, match=message):
        measures.prepare(features, labels)


def test_prepare_raises_for_logits_of_other_images():
    with pytest.raises(InputError, match="different numbers of rows"):
        measures.prepare(np.zeros((4, 2)), [0, 0, 1, 1], np.zeros((3, 2)))


@pytest.mark.parametrize("name", ["nleep", "leep", "h_score"])
def test_compute_returns_plain_details(name):
    result = measures.compute(name, *generate())
    assert float(result) == result.score
    assert json.loads(json.dumps(dict(result.details))) == result.details


def test_compute_all_matches_compute():
    names = ["h_score", "logme", "sfda", "nce", "source_accuracy"]
    results = measures.compute_all(*generate(), names=names)
    assert list(results) == names
    for name in names[:-1]:
        assert results[name].score == score_of(name)
        assert results[name].details["seconds"] >= 0
    assert np.isnan(results["source_accuracy"].score)
    assert "not known" in results["source_accuracy"].warning


@pytest.mark.parametrize(
    ("bounds", "score", "allowed"),
    [
        ((0.0, 1.0), 1.0004, True),
        ((0.0, 1.0), 1.2, False),
        ((0.0, 1.0), -0.1, False),
        ((-np.inf, 0.0), -1e9, True),
        (lambda options: (0.0, options["most"]), 2.0, True),
        (lambda options: (0.0, options["most"]), 3.0, False),
    ],
)
def test_compute_raises_for_score_outside_bounds(monkeypatch, bounds, score, allowed):
    monkeypatch.setattr(registry, "_REGISTRY", {})

    @measures.register("wrong", bounds=bounds)
    def wrong(inputs, most=0.0):
        return measures.Result(score)

    features, labels, _ = generate()
    if allowed:
        assert measures.compute("wrong", features, labels, most=2.0).score == score
    else:
        with pytest.raises(InputError, match="outside its possible range"):
            measures.compute("wrong", features, labels, most=2.0)


@pytest.mark.parametrize("name", ["etran", "ncti"])
def test_combine_increases_with_class_separation(name):
    combine = measures.get(name).combine
    # NCTI's collapse term is also low for classes that cannot be separated.
    terms = [
        measures.compute(name, *generate(separation, seed=3)).details["terms"]
        for separation in (0.5, 1.0, 2.0, 4.0)
    ]
    scores = combine(terms)
    assert scores == sorted(scores)
    assert combine(terms[:1]) == [0.0]


def test_etran_combines_rescaled_terms():
    pool = [{"energy": e, "lda": d} for e, d in ((1.0, 0.5), (3.0, 0.4), (2.0, 0.9))]
    scores = measures.get("etran").combine(pool)
    np.testing.assert_allclose(scores, [0.17, 0.15, 0.075 + 0.85])


def test_static_reads_csv_file(tmp_path):
    file = tmp_path / "scores.csv"
    file.write_text("name,score\na,0.25\nb,\n")
    inputs = measures.prepare(*generate()[:2], facts={"name": "a"})
    options = {"csv_file": str(file)}
    assert measures.compute_prepared("static", inputs, **options).score == 0.25
    for name in ("b", "c"):
        inputs = measures.prepare(*generate()[:2], facts={"name": name})
        with pytest.raises(InputError, match=f"no score for {name}"):
            measures.compute_prepared("static", inputs, **options)


@pytest.mark.parametrize("error", [np.linalg.LinAlgError, ZeroDivisionError])
def test_compute_all_turns_any_exception_into_a_warning(error, monkeypatch, caplog):
    def broken(inputs):
        raise error("Singular matrix\nmore")

    record = registry.Measure("broken", broken)
    monkeypatch.setitem(registry._REGISTRY, "broken", record)
    results = measures.compute_all(*generate(), names=["broken", "h_score"])
    assert np.isnan(results["broken"].score)
    assert f"{error.__name__}: Singular matrix. " in results["broken"].warning
    assert results["h_score"].score == score_of("h_score")
    assert "Traceback" in caplog.text and "in broken" in caplog.text


@pytest.mark.parametrize(("n", "d"), [(8, 20), (8, 4), (54, 256)])
def test_sfda_of_classes_with_one_image_is_1(n, d):
    features = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    result = measures.compute_all(features, np.arange(n), names=["sfda"])["sfda"]
    assert result.score == pytest.approx(1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_probabilities_are_used_as_probabilities(dtype):
    # A second softmax gave LEEP -1.06 for -0.32.
    features, labels, logits = generate(2.0)
    probabilities = scipy.special.softmax(3 * logits.astype(float), axis=1)
    probabilities[0] = np.eye(6)[labels[0]]
    for name in ("leep", "nce"):
        expected = measures.compute(name, features, labels, 3 * logits)
        result = measures.compute(name, features, labels, probabilities.astype(dtype))
        assert result.score == pytest.approx(expected.score, rel=2e-2)
        assert "used as probabilities" in result.warning
        assert result.details["classifier_output"] == "probabilities"
        assert expected.details["classifier_output"] == "logits"
        assert not expected.warning


@pytest.mark.parametrize("name", ["energy", "etran"])
@pytest.mark.parametrize("log", [False, True])
def test_energy_of_probabilities_raises(name, log):
    features, labels, logits = generate()
    given = scipy.special.softmax(logits, axis=1)
    given = np.log(given) if log else given
    with pytest.raises(InputError, match="energy needs logits"):
        measures.compute(name, features, labels, given)


@pytest.mark.parametrize("change", [lambda p: 2 * p, lambda p: p - 0.01])
def test_logits_that_are_no_probabilities_are_used_as_logits(change):
    features, labels, logits = generate()
    given = change(scipy.special.softmax(logits, axis=1))
    result = measures.compute("leep", features, labels, given)
    assert result.details["classifier_output"] == "logits"
