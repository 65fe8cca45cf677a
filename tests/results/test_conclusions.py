"""The sentences on what follows from a ranking."""

import dataclasses
import math

import pytest

from rankckpt_jax.configs import default, folder
from rankckpt_jax.report import terminal
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import GroupedWarning, summarize


def _rows(scores, accuracies, **fields):
    return [
        Row(f"ckpt{i}", scores={"nleep": score}, accuracy=accuracy, **fields)
        for i, (score, accuracy) in enumerate(zip(scores, accuracies, strict=True))
    ]


def _summarize(rows, *measures, **fields):
    return summarize(rank("task", measures or ["nleep"], rows, **fields))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "There are no checkpoints to rank."),
        ([Row("a", failure="x")], "could be ranked: all of them failed"),
        ([Row("a"), Row("b", failure="x")], "ranked: none has a score by nleep"),
        (_rows([1.0], [None]), "ckpt0 is the only checkpoint ranked."),
        (_rows([1.0], [0.5]), "ranked; its accuracy after fine-tuning is 50.0%."),
        (_rows([2.0, 1.0], [0.9, 0.8]), "ranks ckpt0 first of 2, and so does fine-tun"),
        (_rows([2.0, 2.0], [None] * 2), "ranks ckpt0 first of 2, tied with 1 other."),
        (
            _rows([3.0, 2.0, 1.0], [0.7, 0.9, 0.8]),
            "; fine-tuning ranks it 3rd of 3, 20.0 percentage points below ckpt1 (90.0",
        ),
        (_rows([2.0, 1.0], [0.8, 0.8004]), "2nd of 2, 0.04 percentage points below"),
    ],
)
def test_headline(rows, expected):
    summary = _summarize(rows)
    assert expected in summary.sentences[0]
    best = summary.ranking.best
    assert summary.conclusion.answer[1] == (best.checkpoint if best else "")


_SIX = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


@pytest.mark.parametrize(
    ("scores", "accuracies", "expected"),
    [
        ([1, 2, 3, 4, 6, 5], _SIX, "nleep agrees with fine-tuning: Kendall's tau 0.87"),
        ([6, 5, 4, 3, 2, 1], _SIX, "nleep contradicts fine-tuning"),
        ([2, 1, 4, 3, 6, 5], _SIX, "not significant: Kendall's tau 0.60 over 6 check"),
        ([1, 2, 3], [0.1, 0.2, 0.3], "tau of nleep is 1.00, but 3 checkpoints are too"),
        ([1, 1, 1], [0.1, 0.2, 0.3], "is undefined"),
        ([1, 2], [0.5, None], "only one ranked checkpoint was fine-tuned"),
        ([1, 2], [None, None], "This ranking has not been verified"),
    ],
)
def test_conclusions_on_agreement(scores, accuracies, expected):
    assert expected in _summarize(_rows(scores, accuracies)).sentences[1]


def test_conclusions_print_the_command_that_verifies_a_ranking():
    config = folder.get_config()
    config.task.path = "my photos"
    config.checkpoints = "nets"
    config.task.limit = 100
    config.measure_options.nleep.energy = 0.7
    rows = _rows([1, 2], [None, None])
    summary = _summarize(rows, provenance={"config": config.to_dict()})
    _, advice, command, *_ = summary.sentences
    assert advice.endswith("no ranked checkpoint was fine-tuned. To verify it, run:")
    assert command in terminal.to_text(summary)
    assert command == (
        "rankckpt 'my photos' nets --config.measure_options.nleep.energy=0.7 "
        "--config.task.limit=100 --finetune=2"
    )


def test_conclusions_print_no_command_for_features():
    config = default.get_config()
    config.features = "features"
    rows = _rows([1, 2], [None, None])
    text = " ".join(_summarize(rows, provenance={"config": config.to_dict()}).sentences)
    assert "give the accuracies" in text and "rankckpt" not in text


def test_conclusions_name_the_interval_and_a_better_baseline():
    accuracies = [i / 20 for i in range(1, 11)]
    rows = [
        Row(str(i), scores={"nleep": s}, accuracy=a, num_parameters=100 * i)
        for i, (s, a) in enumerate(
            zip([2, 1, 4, 3, 6, 5, 8, 7, 10, 9], accuracies, strict=True)
        )
    ]
    summary = _summarize(rows)
    low, high = summary.agreement.measures["nleep"].interval
    assert (
        f"Kendall's tau 0.78, 95 % confidence interval [{low:.2f}, {high:.2f}] "
        "(bootstrap over checkpoints)." in summary.sentences
    )
    assert (
        "A trivial baseline does better: sorting by number of parameters gives tau "
        "1.00." in summary.sentences
    )


def test_conclusions_name_a_better_measure_with_its_significance():
    rows = [
        Row(str(i), scores={"nleep": s, "leep": i}, accuracy=a)
        for i, (s, a) in enumerate(zip([2, 1, 3, 4, 6, 5], _SIX, strict=True))
    ]
    sentence = _summarize(rows, "nleep", "leep").sentences[2]
    assert sentence.startswith("leep agrees better (tau 1.00), but over 6 checkpoints")
    rows = [
        Row(row.checkpoint, scores={"nleep": -i, "leep": i}, accuracy=row.accuracy)
        for i, row in enumerate(rows)
    ]
    sentence = _summarize(rows, "nleep", "leep").sentences[2]
    assert sentence.startswith("leep agrees better (tau 1.00), p-value 0.0")


@pytest.mark.parametrize(("spread", "is_narrow"), [(0.01, False), (0.1, True)])
def test_conclusions_warn_of_a_narrow_lead(spread, is_narrow):
    rows = _rows([1.0, 0.9], [None, None], spreads={"nleep": spread})
    text = " ".join(_summarize(rows).sentences)
    assert ("another run could swap them" in text) == is_narrow


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0], "One checkpoint cannot be compared with others"),
        ([3.0, 3.0, 3.0], "nleep gives equal scores to all 3 checkpoints"),
        ([4.0, 2.0, 2.0, 1.0], "gives equal scores to: ckpt1, ckpt2 (all 2nd)."),
        (
            [2.0, 2.0, 1.0, 1.0, 1.0],
            "ckpt0, ckpt1 (all 1st); ckpt2, ckpt3, ckpt4 (all 3rd).",
        ),
    ],
)
def test_conclusions_on_ties(scores, expected):
    for accuracies in ([None] * len(scores), [0.1 * i for i in range(len(scores))]):
        text = " ".join(_summarize(_rows(scores, accuracies)).sentences)
        assert expected in text
    untied = _summarize(_rows([2.0, 1.0], [None, None]))
    assert "equal scores" not in " ".join(untied.sentences)


def test_facts_omit_unknown_values():
    rows = _rows([1, 2, 3, 4, 5, 6], _SIX)
    facts = {name: value for name, value, _ in _summarize(rows).conclusion.figures}
    assert facts["Kendall's tau"] == "1.00" and "Time to rank" not in facts
    names = [
        name for name, _, _ in _summarize(_rows([1.0], [math.nan])).conclusion.figures
    ]
    assert names == ["Checkpoints ranked"]


def test_summarize_groups_equal_warnings():
    rows = [
        Row("a", warnings={"task": "classes are missing"}),
        Row("b", warnings={"leep": "no classifier", "task": "classes are missing"}),
    ]
    summary = _summarize(rows)
    assert summary.warnings == (
        GroupedWarning("task", "classes are missing", ("a", "b")),
        GroupedWarning("leep", "no classifier", ("b",)),
    )
    assert "Warning, task of 2 checkpoints: classes are missing" in str(summary.ranking)


def _saturated(scores, **others):
    """Rows whose H-score is saturated, with scores by other measures."""
    return [
        Row(
            f"ckpt{i}",
            scores={"h_score": s, **{m: values[i] for m, values in others.items()}},
            saturated={"h_score": "interpolation"},
            warnings={"h_score": "It cannot order checkpoints."},
            accuracy=0.1 * i,
        )
        for i, s in enumerate(scores)
    ]


NOISE = [5.000000000000003, 4.9999999999999964, 5.0, 4.9]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({}, "No computed measure ranks these checkpoints. Rank by logme instead."),
        ({"nleep": [0, 0, 0, 0]}, "No computed measure ranks"),
        ({"num_parameters": [1, 2, 3, 4]}, "No computed measure ranks"),
        ({"logme": [1, 1, 1, 1]}, "Rank by nleep instead."),
        ({"nleep": [0, 0, 0, -1]}, "nleep still ranks these checkpoints: put it fir"),
        ({"nleep": range(4), "knn": range(4)}, "nleep, knn still rank these checkp"),
    ],
)
def test_summary_of_saturated_scores_ranks_nothing(others, expected):
    measures = ["h_score", *others]
    summary = _summarize(_saturated(NOISE, **others), *measures)
    assert summary.ranking.ranks == (1, 1, 1, 1)
    assert "".join(summary.conclusion.answer) == (
        "h_score ranks nothing: the scores of all 4 checkpoints are saturated and "
        "equal."
    )
    assert summary.conclusion.answer[1] == ""
    assert expected in summary.sentences[1] and len(summary.sentences) == 2
    assert [name for name, _, _ in summary.conclusion.figures] == ["Checkpoints ranked"]


def test_summary_recommends_measures_without_warnings():
    rows = _saturated(NOISE, transrate=range(4), knn=range(4))
    rows = [
        dataclasses.replace(row, warnings={**row.warnings, "transrate": "Care."})
        for row in rows
    ]
    summary = _summarize(rows, "h_score", "transrate", "knn")
    assert summary.sentences[1].startswith("knn still ranks")


def test_ranking_of_some_saturated_scores_ranks():
    rows = _saturated(NOISE)
    rows[3] = dataclasses.replace(rows[3], saturated={}, warnings={})
    ranking = rank("task", ["h_score"], rows)
    assert not ranking.ranks_nothing and ranking.ranks == (1, 1, 1, 4)
    # A perfect score and one at chance are both saturated, but not equal.
    rows = [
        Row("a", scores={"leep": 0.0}, saturated={"leep": "maximum"}),
        Row("b", scores={"leep": -0.69}, saturated={"leep": "chance"}),
    ]
    assert not rank("task", ["leep"], rows).ranks_nothing
