"""Fitting and predicting: simulated tasks, hand-computed cases, bad input."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation, prediction
from rankckpt_jax.errors import InputError
from rankckpt_jax.prediction import Candidate, Relations
from rankckpt_jax.prediction import standardize as standardize_lib
from rankckpt_jax.prediction.predictor import FINE_TUNED_HERE, share_of_first
from rankckpt_jax.prediction.relations import ACCURACY, ELSEWHERE, Sum, build_model
from rankckpt_jax.prediction.standardize import logit, standardize
from tests.prediction import simulated

ONLY_NLEEP = Relations(pairs={(ACCURACY, "nleep"): Sum(1e9, 0.6e9)})
"""The correlation of NLEEP with the accuracy is 0.6, without doubt."""


@functools.cache
def fit_simulated():
    """Fit 12 pools of 15 checkpoints and 4 tasks, without a prior."""
    pools = [simulated.make_table(4, 15, seed) for seed in range(1, 13)]
    renamed = [
        dataclasses.replace(
            pool,
            tasks=tuple(
                dataclasses.replace(t, name=f"{pool.name} {t.name}") for t in pool.tasks
            ),
        )
        for pool in pools
    ]
    fitted = prediction.fit(renamed, prior=Relations())
    return dataclasses.replace(fitted, shrinkage=1e-3, ridge=0.0)


def leave_out(table, t):
    tasks = tuple(task for s, task in enumerate(table.tasks) if s != t)
    return dataclasses.replace(table, tasks=tasks)


def test_fit_recovers_the_correlations_of_simulated_tasks():
    sums = fit_simulated().relations.pairs
    for name, r in simulated.CORRELATIONS.items():
        found = sums[tuple(sorted((ACCURACY, name)))]
        # 48 tasks of 15 checkpoints have a standard error of at most 0.04.
        assert found.total / found.weight == pytest.approx(r, abs=0.1)
    shared = sums[ACCURACY, ELSEWHERE]
    # 12 pools of 15 checkpoints; standardization within few checkpoints lowers it.
    assert shared.total / shared.weight == pytest.approx(simulated.SHARED, abs=0.15)
    source = sums[ACCURACY, "source_accuracy"]
    expected = 0.5 * math.sqrt(simulated.SHARED)
    assert source.total / source.weight == pytest.approx(expected, abs=0.15)


def test_intervals_cover_and_probabilities_are_calibrated_on_simulated_tasks():
    relations = fit_simulated().relations
    covered, first, hits, taus, plain = [], [], [], [], []
    for seed in range(100, 140):
        table = simulated.make_table(4, 12, seed)
        task = table.tasks[0]
        history = prediction.fit([leave_out(table, 0)], prior=Relations())
        predictor = dataclasses.replace(history, relations=relations, ridge=0.0)
        pool = prediction.candidates(table, task)
        result = prediction.predict(predictor, pool, num_samples=1000)
        y, _ = standardize(logit(task.accuracies))
        truth = dict(zip(task.checkpoints, y, strict=True))
        for c in result.checkpoints:
            low, high = c.standardized_interval
            covered.append(low <= truth[c.checkpoint] <= high)
        first.append(result.best.probability_best)
        hits.append(truth[result.best.checkpoint] == max(y))
        scores = {c.checkpoint: c.standardized for c in result.checkpoints}
        accuracies = task.by_name(task.accuracies)
        taus.append(evaluation.score_ranking(scores, accuracies)["kendall"])
        nleep = task.by_name(task.scores["nleep"])
        plain.append(evaluation.score_ranking(nleep, accuracies)["kendall"])
    # 480 values in 40 pools: a standard error of about 0.025.
    assert np.mean(covered) == pytest.approx(0.8, abs=0.06)
    # 40 tasks: a standard error of about 0.08.
    assert np.mean(hits) == pytest.approx(np.mean(first), abs=0.2)
    assert np.mean(taus) > np.mean(plain) + 0.1


def test_predict_matches_closed_form_for_two_checkpoints():
    predictor = prediction.Predictor(ONLY_NLEEP, (), 1e-6, 0.0)
    pool = [Candidate("a", scores={"nleep": -1.0}), Candidate("b", scores={"nleep": 2})]
    result = prediction.predict(predictor, pool, num_samples=40_000)
    assert [c.checkpoint for c in result.checkpoints] == ["b", "a"]
    assert [c.standardized for c in result.checkpoints] == pytest.approx([0.6, -0.6])
    assert result.best.contributions == {"nleep": pytest.approx(0.6)}
    # The difference of the accuracies is normal with mean 1.2 and variance 2 x 0.64.
    mean, deviation = 1.2, math.sqrt(1.28)
    chance = scipy.stats.norm.cdf(mean / deviation)
    loss = deviation * scipy.stats.norm.pdf(mean / deviation) - mean * (1 - chance)
    # Standard errors of 40,000 draws are 0.002.
    assert result.best.probability_best == pytest.approx(chance, abs=0.01)
    assert result.regret == pytest.approx((loss, 0.0), abs=0.01)
    low, high = result.best.standardized_interval
    # Half of the difference has the variance 0.32, and few checkpoints double it.
    assert high - low == pytest.approx(2 * 1.2816 * math.sqrt(0.64), abs=0.03)
    assert all(c.probability_first_three == 1 for c in result.checkpoints)


def test_share_of_first_counts_rows():
    values = np.array([[3.0, 2, 1, 0], [0, 3, 2, 1]])
    assert share_of_first(values, 1).tolist() == [0.5, 0.5, 0, 0]
    assert share_of_first(values, 3).tolist() == [0.5, 1, 1, 0.5]


def test_measured_accuracies_give_the_level_and_update_relatives():
    predictor = prediction.Predictor(ONLY_NLEEP)
    pool = [
        Candidate(name, family, scores={"nleep": score})
        for name, family, score in (
            ("a", "res", 1.0),
            ("b", "res", 0.9),
            ("c", "vit", 0.8),
            ("d", "vit", 0.0),
            ("e", "", -1.0),
        )
    ]
    before = prediction.predict(predictor, pool)
    assert not before.is_level_known
    assert math.isnan(before.best.accuracy)
    assert any("ranks only" in note for note in before.notes)
    after = prediction.predict(predictor, pool, {"a": 0.6, "c": 0.8})
    assert after.is_level_known
    assert not any("ranks only" in note for note in after.notes)
    assert after.by_name("c").accuracy == pytest.approx(0.8, abs=1e-4)
    assert after.by_name("c").measured == 0.8
    assert after.by_name("b").measured is None
    # The relative of the one that disappointed falls behind that of the other.
    assert after.by_name("b").standardized < before.by_name("b").standardized
    low, high = after.by_name("b").interval
    assert 0 < low < after.by_name("b").accuracy < high < 1
    for c in after.checkpoints:
        assert sum(c.contributions.values()) == pytest.approx(c.standardized)
        assert FINE_TUNED_HERE in c.contributions
    assert sum(c.probability_best for c in after.checkpoints) == pytest.approx(1)
    assert list(after.regret) == sorted(after.regret, reverse=True)
    assert after.regret[-1] == 0


def test_predict_is_the_same_for_the_same_seed_and_any_order_of_the_pool():
    table = simulated.make_table(3, 6)
    predictor = prediction.fit([leave_out(table, 0)])
    pool = prediction.candidates(table, table.tasks[0])
    one = prediction.predict(predictor, pool, seed=1)
    assert one == prediction.predict(predictor, pool, seed=1)
    other = prediction.predict(predictor, pool[::-1], seed=1)
    for c in one.checkpoints:
        assert other.by_name(c.checkpoint).standardized == pytest.approx(c.standardized)
    assert one.num_earlier == 2


def test_probes_give_the_level_once_three_tasks_have_them():
    table = simulated.make_table(4, 8)
    tasks = tuple(
        dataclasses.replace(t, scores={"knn": t.accuracies - 0.05}) for t in table.tasks
    )
    table = dataclasses.replace(table, tasks=tasks, measures=("knn",))
    pool = prediction.candidates(table, tasks[0])
    result = prediction.predict(
        prediction.fit([leave_out(table, 0)], prior=Relations()), pool
    )
    assert result.is_level_known
    mean = np.mean([c.accuracy for c in result.checkpoints])
    assert mean == pytest.approx(tasks[0].accuracies.mean(), abs=0.02)
    fewer = dataclasses.replace(table, tasks=tasks[2:])
    result = prediction.predict(prediction.fit([fewer], prior=Relations()), pool)
    assert not result.is_level_known


def test_inputs_that_no_task_recorded_are_not_used():
    predictor = prediction.Predictor(ONLY_NLEEP)
    pool = [Candidate(n, scores={"mine": i}) for i, n in enumerate("abcde")]
    result = prediction.predict(predictor, pool)
    assert {c.standardized for c in result.checkpoints} == {0.0}
    notes = " ".join(result.notes)
    assert "Not used, because no recorded task has them: mine." in notes
    assert "all checkpoints are predicted equal" in notes
    # Values that are not finite are unknown.
    pool.append(Candidate("f", scores={"nleep": -math.inf}))
    assert prediction.predict(predictor, pool).best.standardized == 0


def test_pools_of_two_have_a_note_and_smaller_ones_are_refused():
    pool = [Candidate("a", scores={"nleep": 1}), Candidate("b", scores={"nleep": 2})]
    result = prediction.predict(prediction.Predictor(ONLY_NLEEP), pool)
    assert any("The pool has 2 checkpoints" in note for note in result.notes)
    with pytest.raises(InputError, match="fewer than two checkpoints"):
        prediction.predict(prediction.Predictor(), pool[:1])
    with pytest.raises(InputError, match="same name"):
        prediction.predict(prediction.Predictor(), [pool[0], pool[0]])


def test_one_earlier_task_has_a_note():
    table = simulated.make_table(2, 6)
    predictor = prediction.fit([leave_out(table, 0)], prior=Relations())
    result = prediction.predict(predictor, prediction.candidates(table, table.tasks[0]))
    assert result.num_earlier == 1
    assert any("one earlier task only" in note for note in result.notes)


def test_measured_accuracies_in_percent_are_refused():
    pool = [Candidate("a"), Candidate("b")]
    with pytest.raises(InputError, match="divide percentages by 100"):
        prediction.predict(prediction.Predictor(), pool, {"a": 91.0})
    with pytest.raises(InputError, match="outside the pool") as caught:
        prediction.predict(prediction.Predictor(), pool, {"c": 0.9})
    assert "found: c" in str(caught.value)
    with pytest.raises(InputError, match="out of range"):
        prediction.predict(prediction.Predictor(), pool, {"a": math.nan})


def test_fit_refuses_accuracies_in_percent():
    table = simulated.make_table(1, 3)
    task = dataclasses.replace(table.tasks[0], runs=100 * table.tasks[0].runs)
    with pytest.raises(InputError, match="pool0, task 'task0'"):
        prediction.fit([dataclasses.replace(table, tasks=(task,))])


def make_entry(accuracy, family="res", name="table"):
    text = f"task,checkpoint,family,accuracy,m\npets,a,{family},{accuracy},1\n"
    return evaluation.parse_table(text + "pets,b,vit,0.5,2\n", name, name)


def test_fit_refuses_tables_that_contradict_each_other():
    with pytest.raises(InputError, match="about an accuracy") as caught:
        prediction.fit([make_entry(0.8, name="old"), make_entry(0.9, name="new")])
    message = str(caught.value)
    assert "old and new" in message
    assert "0.8 and 0.9" in message
    with pytest.raises(InputError, match="about a family"):
        prediction.fit([make_entry(0.8), make_entry(0.8, "dense")])
    # The same entry twice counts once.
    predictor = prediction.fit([make_entry(0.8), make_entry(0.8)])
    assert len(predictor.records) == 1


def test_names_that_differ_by_a_suffix_have_a_note():
    table = make_entry(0.8)
    predictor = prediction.fit([table])
    pool = [Candidate("a.v2"), Candidate("A_in1k"), Candidate("b"), Candidate("ab")]
    notes = prediction.predict(predictor, pool).notes
    found = [note for note in notes if "rename one if they are the same" in note]
    assert len(found) == 2
    assert found[0].startswith("'a.v2' has no earlier results, 'a' has.")


def test_families_come_from_records_where_a_candidate_has_none():
    predictor = prediction.fit([make_entry(0.8)])
    pool = [Candidate("a"), Candidate("b", "swin"), Candidate("c", "res")]
    notes = prediction.predict(predictor, pool).notes
    assert [n for n in notes if "family" in n] == [
        "'b' has the family 'swin' here and 'vit' in earlier results: rename one if "
        "they are different."
    ]


def test_build_model_keeps_the_covariance_positive_definite():
    # No three variables can all be correlated by -0.9.
    sums = {
        (ACCURACY, "a"): Sum(1e6, 0.9e6),
        (ACCURACY, "b"): Sum(1e6, 0.9e6),
        ("a", "b"): Sum(1e6, -0.9e6),
    }
    model = build_model(Relations(pairs=sums), ["a", "b"], 1.0, 0.0)
    assert np.linalg.eigvalsh(model.covariance).min() > 1e-3
    np.testing.assert_allclose(np.diag(model.covariance)[2:], 1.0)


def test_copies_of_a_checkpoint_count_once(monkeypatch):
    # Outliers are found among all checkpoints, so copies change them.
    monkeypatch.setattr(standardize_lib, "_REACH", 1e9)
    table = simulated.make_table(3, 8)
    names = [*table.checkpoints, *(f"copy{i}" for i in range(3))]
    at = [*range(8), 0, 0, 0]
    tasks = tuple(
        dataclasses.replace(
            task,
            checkpoints=tuple(names),
            runs=task.runs[at],
            scores={m: x[at] for m, x in task.scores.items()},
        )
        for task in table.tasks
    )
    first, *others = table.checkpoints.values()
    copies = [dataclasses.replace(first, name=n, family="net0") for n in names[8:]]
    listed = [dataclasses.replace(first, family="net0"), *others, *copies]
    copied = dataclasses.replace(
        table, tasks=tasks, checkpoints={c.name: c for c in listed}
    )
    once, often = (
        prediction.fit([t], prior=Relations()).relations.pairs for t in (table, copied)
    )
    assert once.keys() == often.keys()
    for key, value in once.items():
        assert often[key].total == pytest.approx(value.total)
        assert often[key].weight == pytest.approx(value.weight)


def test_correlations_are_those_of_numpy():
    table = simulated.make_table(1, 9)
    (task,) = table.tasks
    sums = prediction.fit([table], prior=Relations()).relations.pairs
    y, scores = logit(task.accuracies), task.scores
    expected = np.corrcoef([y, scores["nleep"], scores["logme"]])
    for row, names in ((0, (ACCURACY, "nleep")), (1, ("logme", "nleep"))):
        found = sums[names]
        assert found.total / found.weight == pytest.approx(expected[row, row + 1])
        assert found.weight == pytest.approx(8)


def test_odd_values_give_finite_predictions():
    random = np.random.default_rng(0)
    odd = [math.inf, -math.inf, math.nan, 1e12, -580_000.0, 0.0, 0.0, 1.0]
    names = [f"net{i}" for i in range(12)]
    for n in (2, 3, 5, 12):
        equal = simulated.make_table(1, 12)
        flat = dataclasses.replace(equal.tasks[0], runs=np.full((12, 1), 0.5))
        ends = dataclasses.replace(flat, name="ends", runs=np.eye(12)[:, :1])
        predictor = prediction.fit([dataclasses.replace(equal, tasks=(flat, ends))])
        pool = [
            Candidate(
                name,
                str(random.choice(["", "res"])),
                {"parameters": float(random.choice([0.0, 1e6, 1e8]))},
                {m: float(random.choice(odd)) for m in ("nleep", "logme", "gbc")},
                {"nleep": float(random.choice([math.nan, 0.0, 1e9]))},
            )
            for name in names[:n]
        ]
        for measured in ({}, {"net0": 1.0}, dict.fromkeys(names[:n], 0.0)):
            result = prediction.predict(predictor, pool, measured, num_samples=200)
            for c in result.checkpoints:
                values = (c.standardized, *c.standardized_interval)
                assert all(map(math.isfinite, values))
                assert math.isfinite(c.accuracy) == bool(measured)
            assert all(x >= 0 for x in result.regret)


def test_measures_that_are_static_properties_count_once():
    table = simulated.make_table(3, 6)
    predictor = prediction.fit([leave_out(table, 0)])
    pool = prediction.candidates(table, table.tasks[0])
    scored = [
        dataclasses.replace(c, scores={**c.scores, **c.statics, "num_parameters": 7.0})
        for c in pool
    ]
    assert prediction.predict(predictor, scored) == prediction.predict(predictor, pool)
