"""The numbers of a summary: agreement, groups, ranks and costs."""

import math

import pytest

from rankckpt_jax import evaluation
from rankckpt_jax.results.costs import sum_measures, sum_rows
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize

_ACCURACIES = [0.5, 0.7, 0.6, 0.9, 0.8]


@pytest.fixture(scope="module")
def summary():
    rows = [
        Row(
            str(i),
            group="group_i" if i < 3 else "group_ii, other",
            scores={"nleep": i, "leep": -i},
            spreads={"nleep": 0.1},
            accuracy=accuracy,
            num_parameters=i,
            extract_seconds=2.0,
            score_seconds={"nleep": 1.0},
            finetune_seconds=60.0 if i else math.nan,
            multiply_adds=10,
            extract_images=5,
            finetune_images=50,
        )
        for i, accuracy in enumerate(_ACCURACIES)
    ]
    titles = {"group_i": "Group I"}
    return summarize(rank("t", ["nleep", "leep"], rows, group_titles=titles))


def test_agreement_matches_evaluation(summary):
    agreement = summary.agreement
    # The rows are ordered by nleep: 4, 3, 2, 1, 0.
    scores, accuracies, spreads = [4, 3, 2, 1, 0], _ACCURACIES[::-1], [0.1] * 5
    nleep, leep = agreement.measures["nleep"], agreement.measures["leep"]
    assert math.isnan(nleep.interval.low)
    p_values = evaluation.p_values(scores, accuracies, num_samples=1000)
    assert nleep.p_value == p_values["kendall"]
    assert nleep.probability_best == pytest.approx(
        evaluation.probability_best(scores, accuracies, spreads)
    )
    assert nleep.n == 5 and nleep.num_tied == 0 and nleep.p_value_versus_first is None
    assert 0 < leep.p_value_versus_first <= 1
    (baseline,) = agreement.baselines
    assert baseline.name == "number of parameters"
    assert baseline.scores == nleep.scores
    assert agreement.random_order.scores == evaluation.random_ranking(_ACCURACIES)


def test_agreement_has_the_jackknife_interval_of_six_checkpoints():
    scores, accuracies = [6, 5, 3, 4, 1, 2], [0.9, 0.7, 0.8, 0.5, 0.6, 0.4]
    rows = [
        Row(f"c{i}", scores={"nleep": s}, accuracy=a)
        for i, (s, a) in enumerate(zip(scores, accuracies, strict=True))
    ]
    agreement = summarize(rank("t", ["nleep"], rows)).agreement
    interval = agreement.measures["nleep"].interval
    assert interval == evaluation.intervals(scores, accuracies)["kendall"]
    assert -1 <= interval.low < agreement.measures["nleep"].scores["kendall"]


def test_agreement_has_each_group_with_two_checkpoints(summary):
    groups = {group.title: group for group in summary.agreement.groups}
    assert groups.keys() == {"Group I", "group_ii", "other"}
    n, scores = groups["Group I"].measures["nleep"]
    assert n == 3
    assert scores == evaluation.score_ranking([0, 1, 2], _ACCURACIES[:3])


def test_agreement_orders_measures_by_tau_with_baselines_last():
    scores = {
        "num_parameters": [1, 2, 3],
        "logme": [3, 1, 2],
        "nleep": [1, 3, 2],
        "leep": [1, 1, 1],
    }
    rows = [
        Row(f"c{i}", scores={m: s[i] for m, s in scores.items()}, accuracy=0.1 * i)
        for i in range(3)
    ]
    agreement = summarize(rank("t", list(scores), rows)).agreement
    # leep has no tau.
    assert agreement.by_agreement == ("nleep", "logme", "leep", "num_parameters")


def test_agreement_has_the_regret_of_measures_baselines_and_random_orders(summary):
    agreement = summary.agreement
    accuracies = _ACCURACIES[::-1]
    for judgment, scores in (
        (agreement.measures["nleep"].judgment, [4, 3, 2, 1, 0]),
        (agreement.baselines[0].judgment, [4, 3, 2, 1, 0]),
    ):
        assert judgment.regret_1 == evaluation.regret(scores, accuracies).value
        assert judgment.regret_3 == evaluation.regret(scores, accuracies, 3).value
        assert judgment.gap_fidelity == evaluation.gap_fidelity(scores, accuracies)
    expected = max(accuracies) - sum(accuracies) / 5
    assert agreement.random_order.judgment.regret_1 == pytest.approx(expected)
    assert agreement.random_order.judgment.gap_fidelity == 0


def test_agreement_is_undefined_for_one_checkpoint():
    summary = summarize(rank("t", ["nleep"], [Row("a", accuracy=0.5)]))
    assert not summary.agreement.is_known
    assert math.isnan(summary.agreement.measures["nleep"].p_value)


def test_ranks_by_measure_and_accuracy(summary):
    assert summary.ranks == {
        "fine-tuned": (2, 1, 4, 3, 5),
        "nleep": (1, 2, 3, 4, 5),
        "leep": (5, 4, 3, 2, 1),
    }


def test_costs_compare_rows_with_both_values(summary):
    seconds, images, operations = summary.costs.comparisons
    # The time of fine-tuning is unknown for one of the five.
    assert (seconds.num_checkpoints, seconds.ranking, seconds.finetuning) == (
        4,
        12,
        240,
    )
    assert seconds.factor == 20
    assert (images.ranking, images.finetuning) == (25, 250)
    assert (operations.ranking, operations.finetuning) == (5 * 100, 5 * 3000)
    assert [name for name, _ in summary.costs.seconds] == [
        *("features", "nleep", "leep", "fine-tuning")
    ]
    assert sum_rows(summary.costs.seconds) == (10, 5, None, 240)
    assert sum_rows(sum_measures(summary.costs.seconds)) == (10, 5, 240)
    assert summarize(rank("t", ["nleep"], [Row("a")])).costs is None


def test_costs_state_the_time_spent_on_compiling():
    row = Row(
        "a",
        extract_seconds=4.0,
        score_seconds={"nleep": 2.0, "leep": 1.0},
        finetune_seconds=60.0,
        compile_seconds={"features": 3.0, "nleep": 1.5, "fine-tuning": 20.0},
    )
    costs = summarize(rank("t", ["nleep", "leep"], [row])).costs
    assert sum_rows(sum_measures(costs.compile_seconds)) == (3, 1.5, 20)
    seconds = costs.comparisons[0]
    assert (seconds.ranking, seconds.ranking_compiling) == (6, 4.5)
    assert (seconds.finetuning, seconds.finetuning_compiling) == (60, 20)
