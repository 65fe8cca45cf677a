"""The prediction of a ranking: what goes in, when there is none, and bad input."""

import dataclasses
import math

import numpy as np
import pytest

from rankckpt_jax import evaluation, prediction, rank_features
from rankckpt_jax.errors import InputError
from rankckpt_jax.prediction import Candidate
from rankckpt_jax.results import predicted
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row

SCORES = {"a": -0.9, "b": -0.4, "c": -0.7, "d": -0.2}
HISTORY = evaluation.parse_table(
    "task,checkpoint,accuracy,nleep\n"
    "pets,a,.95,-.4\npets,b,.85,-.9\npets,c,.80,-.9\npets,d,.70,-.9\n"
    "cars,a,.75,-.4\ncars,b,.65,-.9\ncars,c,.60,-.9\ncars,d,.50,-.9\n"
)


def make_rows(**changes):
    """Return four rows; `changes` are fields by checkpoint."""
    return [
        dataclasses.replace(
            Row(name, scores={"nleep": score}, architecture=f"net_{name}"),
            **changes.get(name, {}),
        )
        for name, score in SCORES.items()
    ]


def make_ranking(**changes):
    return rank("flowers", ["nleep"], make_rows(**changes))


def test_predict_uses_scores_properties_families_and_measured_accuracies():
    fields = {
        "num_parameters": 10**6,
        "feature_dim": 64,
        "source_accuracy": 70.0,
        "spreads": {"nleep": 0.01},
    }
    changes = {"a": fields, "b": {"accuracy": 0.9}}
    result = predicted.predict(make_ranking(**changes), [HISTORY], num_test=500)
    statics = {"parameters": 1e6, "feature_dim": 64.0, "source_accuracy": 70.0}
    pool = [
        Candidate(
            name,
            f"net_{name}",
            statics if name == "a" else {},
            {"nleep": SCORES[name]},
            {"nleep": 0.01} if name == "a" else {},
        )
        # The pool is in the order of the ranking.
        for name in "dbca"
    ]
    expected = prediction.predict(
        prediction.fit([HISTORY]), pool, {"b": 0.9}, num_test=500
    )
    assert result == expected
    assert result.by_name("b").measured == 0.9


def test_ranking_predict_returns_that_of_the_run_or_of_published_tasks():
    ranking = make_ranking()
    of_published = ranking.predict()
    assert of_published.best.checkpoint == "d" and of_published.num_earlier == 0
    of_run = predicted.add_prediction(ranking, lambda: [HISTORY])
    assert of_run.predict() is of_run.prediction
    assert of_run.prediction.best.checkpoint == "a"
    assert of_run.predict([HISTORY]) == of_run.prediction
    # The order of the ranking stays.
    assert [row.checkpoint for row in of_run.rows] == list("dbca")


def test_rows_have_predictions_where_the_level_is_known():
    ranks_only = predicted.add_prediction(make_ranking())
    assert not ranks_only.prediction.is_level_known
    for row in ranks_only.rows:
        assert row.predicted_accuracy is None and row.predicted_interval is None
        assert 0 < row.predicted.probability_best < 1
    tuned = predicted.add_prediction(make_ranking(b={"accuracy": 0.9}))
    for row in tuned.rows:
        if row.checkpoint == "b":
            # A measured accuracy would look like a perfect prediction.
            assert row.predicted_accuracy is None
        else:
            low, high = row.predicted_interval
            assert 0 < low < row.predicted_accuracy < high < 1


def test_append_removes_the_prediction_of_the_smaller_pool():
    ranking = predicted.add_prediction(make_ranking())
    both = ranking.append(rank("flowers", ["nleep"], [Row("e", scores={"nleep": 0.0})]))
    assert both.prediction is None
    assert all(row.predicted is None for row in both.rows)
    assert len(both.predict().checkpoints) == 5


def test_rank_features_predicts_from_published_tasks():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    centers = np.eye(3)[labels]
    pool = {
        name: (separation * centers + random.normal(size=(60, 3)), labels)
        for name, separation in (("weak", 0.1), ("middle", 1.0), ("strong", 3.0))
    }
    ranking = rank_features(pool, measures="logme,lda")
    assert ranking.predict().best.checkpoint == "strong"
    assert ranking.best.predicted.probability_best > 0.4
    assert ranking.best.predicted_accuracy is None
    known = rank_features(pool, measures="logme", accuracies={"middle": 0.8})
    assert known.best.predicted_accuracy > 0.8


NAN = math.nan


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [Row("a", scores={"nleep": -1.0})],
        [Row("a", scores={"nleep": -1.0}), Row("b", failure="no file")],
        [Row("a", failure="x"), Row("b", failure="y")],
        # Nothing is known of them.
        [Row("a"), Row("b")],
        [Row("a", scores={"nleep": NAN}), Row("b", scores={"nleep": math.inf})],
        [Row(n, scores={"nleep": -1.0}) for n in "ab"],
        [
            Row(n, scores={"nleep": s}, saturated={"nleep": "few_images"})
            for n, s in (("a", -1.0), ("b", -2.0))
        ],
        # All accuracies are known.
        [Row(n, scores={"nleep": s}, accuracy=0.5) for n, s in (("a", 1.0), ("b", 2))],
    ],
)
def test_add_prediction_returns_rankings_unchanged_that_it_does_not_serve(rows):
    ranking = rank("flowers", ["nleep"], rows)
    assert predicted.add_prediction(ranking) is ranking


@pytest.mark.parametrize("metric", ["r2", "balanced_accuracy"])
def test_predict_refuses_other_metrics(metric):
    ranking = rank("flowers", ["nleep"], make_rows(), metric=metric)
    assert predicted.add_prediction(ranking) is ranking
    with pytest.raises(InputError, match="Only accuracies can be predicted"):
        ranking.predict()


@pytest.mark.parametrize("rows", [[], make_rows()[:1]])
def test_predict_refuses_pools_of_fewer_than_two(rows):
    with pytest.raises(InputError, match="fewer than two checkpoints"):
        rank("flowers", ["nleep"], rows).predict()


def test_duplicate_names_are_refused_or_logged(caplog):
    ranking = rank("flowers", ["nleep"], [*make_rows(), make_rows()[0]])
    with pytest.raises(InputError, match="the same name"):
        ranking.predict()
    assert predicted.add_prediction(ranking) is ranking
    assert "Accuracies not predicted: Two checkpoints of the pool" in caplog.text


def test_a_defect_of_the_prediction_is_logged(caplog):
    ranking = make_ranking()

    def fail():
        raise ZeroDivisionError("a defect")

    assert predicted.add_prediction(ranking, fail) is ranking
    assert "ZeroDivisionError('a defect')" in caplog.text


def test_predict_leaves_out_what_means_nothing():
    plain = make_ranking().predict()
    noisy = make_ranking(
        a={"scores": {"nleep": -0.9, "logme": NAN}, "num_parameters": 0},
        b={"accuracy": NAN, "spreads": {"nleep": NAN}},
        c={"accuracy": 0.9, "accuracy_source": "a table"},
    )
    assert noisy.predict().best.probability_best == plain.best.probability_best
    failed = rank("flowers", ["nleep"], [*make_rows(), Row("e", failure="no file")])
    assert failed.predict() == plain
    attached = predicted.add_prediction(failed)
    assert attached.rows[-1].predicted is None
    dropped = rank("flowers", ["nleep"], [*make_rows(), Row("e")])
    assert len(dropped.predict().checkpoints) == 5


def test_predict_accepts_huge_scores_and_extreme_accuracies():
    ranking = make_ranking(
        a={"scores": {"nleep": 1e300}},
        b={"accuracy": 1.0},
        c={"accuracy": 0.0},
    )
    result = predicted.predict(ranking, num_test=10)
    assert all(0 <= c.accuracy <= 1 for c in result.checkpoints)


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({}, "d is predicted to be the best, with a probability of", "deviations"),
        ({"a": {"accuracy": 0.5}}, "d is predicted to reach about", "points on"),
        ({"d": {"accuracy": 0.9}}, "d reached 90.0% and is the best of", "points on"),
    ],
)
def test_conclusion_states_the_best_and_the_losses(changes, first, second):
    text = make_ranking(**changes).predict().conclusion()
    assert text.startswith(first)
    start = "Fine-tuning only the first one, two or three by this prediction loses "
    assert start in text and second in text.partition(start)[2]
    assert text.endswith("ranks only here.") == (not changes)


def test_conclusion_of_two_checkpoints_names_one_loss():
    pair = rank("flowers", ["nleep"], make_rows()[:2])
    assert "only the first one by this" in pair.predict().conclusion()
