import numpy as np
import pytest

from rankckpt_jax import measures
from rankckpt_jax.api import rank_features
from rankckpt_jax.configs import features as features_config
from rankckpt_jax.errors import InputError
from rankckpt_jax.run import run as run_lib
from rankckpt_jax.run import scoring
from tests.measures.test_targets import generate

KINDS = ("multi_label", "regression")


def pool(kind):
    """Features of two networks; the second one has more noise."""
    x, labels, logits = generate(kind)
    noise = np.random.default_rng(1).normal(size=x.shape)
    return {
        "good": (x.astype(np.float32), labels, logits),
        "poor": ((x + 6 * noise).astype(np.float32), labels, logits),
    }


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("classes", "nleep,gbc", "nleep,gbc"),
        ("multi_label", "nleep,leep,h_score", "nleep,leep,h_score"),
        ("multi_label", "logme,gbc", "logme"),
        ("regression", "nleep,leep,h_score", "logme,linear,knn,h_score"),
        ("regression", "h_score,nleep", "h_score"),
        ("regression", "nleep,knn,logme", "logme,linear,knn"),
    ],
)
def test_for_target_leaves_out_measures(kind, given, expected, caplog):
    given, expected = given.split(","), tuple(expected.split(","))
    settings = scoring.for_target(scoring.Settings(tuple(given)), kind)
    assert settings.measures == expected
    left_out = [name for name in given if name not in expected]
    assert len(caplog.records) == bool(left_out)
    for name in left_out:
        assert (
            name in caplog.text and f"{expected[0]} orders the ranking" in caplog.text
        )


@pytest.mark.parametrize("kind", KINDS)
def test_rank_features_ranks_by_default_measures(kind, caplog):
    ranking = rank_features(pool(kind), target=kind)
    first = {"multi_label": "nleep", "regression": "logme"}[kind]
    assert ranking.measures[0] == first
    assert (
        set(ranking.measures)
        == {
            "multi_label": {"nleep", "h_score"},
            "regression": {"logme", "linear", "knn", "h_score"},
        }[kind]
    )
    assert ranking.best.checkpoint == "good"
    assert [set(row.scores) for row in ranking.rows] == [set(ranking.measures)] * 2
    assert ("left out nleep" in caplog.text) == (kind == "regression")
    assert "class" not in str(ranking)


def test_rank_features_compares_with_the_metric_of_the_kind():
    known = {"good": 0.4, "poor": -0.2}
    ranking = rank_features(
        pool("regression"), target="regression", measures="knn", accuracies=known
    )
    assert ranking.metric == "r2"
    assert ranking.evaluation["knn"]["kendall"] == 1
    ranking = rank_features(
        pool("multi_label"), target="multi_label", measures="knn", accuracies=known
    )
    assert "a number from 0 to 1" in ranking.rows[-1].failure


def test_rank_features_refuses_unknown_target_and_other_labels():
    with pytest.raises(InputError, match="did you mean 'regression'"):
        rank_features(pool("regression"), target="regresion")
    ranking = rank_features(pool("regression"), measures="h_score")
    assert all("target='regression'" in row.failure for row in ranking.rows)


@pytest.mark.parametrize("kind", KINDS)
def test_run_ranks_npz_files_of_a_kind(kind, tmp_path, caplog):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, (features, labels, logits) in pool(kind).items():
        np.savez(
            folder / f"{name}.npz", features=features, labels=labels, logits=logits
        )
    config = features_config.get_config()
    config.features, config.workdir = str(folder), str(tmp_path / "runs")
    config.task.target, config.measures = kind, "gbc,h_score,knn"
    ranking = run_lib.run(config)
    assert ranking.best.checkpoint == "good"
    first = measures.DEFAULTS[kind][0]
    assert f"left out gbc, not defined for {measures.TARGETS[kind]}" in caplog.text
    assert f"{first} orders the ranking" in caplog.text
    page = (tmp_path / "runs/mine/report.html").read_text()
    assert "80% is in" in page
    config.stages, config.measures = "score,ablate,report", "nleep,h_score"
    if kind == "regression":
        with pytest.raises(InputError, match="nleep predicts no numbers"):
            run_lib.run(config)


def test_run_of_npz_files_names_the_kind_to_set(tmp_path):
    features, labels, _ = pool("regression")["good"]
    np.savez(tmp_path / "net.npz", features=features, labels=labels)
    config = features_config.get_config()
    config.features, config.workdir = str(tmp_path), str(tmp_path / "runs")
    config.measures = "h_score"
    ranking = run_lib.run(config)
    assert "target='regression'" in ranking.rows[0].failure


@pytest.mark.parametrize("kind", KINDS)
def test_score_row_describes_images_in_any_order_and_precision(kind):
    x, labels, _ = generate(kind)
    order = np.random.default_rng(0).permutation(len(x))

    def describe(labels):
        functions = scoring._describe_images, scoring._digest_order
        return tuple(function(labels, kind) for function in functions)

    images, sequence = describe(labels)
    assert describe(labels[order])[0] == images
    assert describe(labels[order])[1] != sequence
    assert describe(labels[:-1])[0] != images
    assert "class" not in images
    if kind == "multi_label":
        # Labels have other names, and so another order.
        assert describe(labels[:, ::-1]) == (images, sequence)
    else:
        assert describe(labels.astype(np.float32).astype(float)) == (images, sequence)
