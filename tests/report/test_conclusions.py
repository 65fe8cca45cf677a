"""What is said in plain sentences, and that it never says too much."""

import pytest

from rankckpt_jax.report import conclusions as sentences
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row


def _rows(scores, accuracies, **fields):
    return [
        Row(f"ckpt{i}", scores={"nleep": score}, accuracy=accuracy, **fields)
        for i, (score, accuracy) in enumerate(zip(scores, accuracies, strict=True))
    ]


@pytest.mark.parametrize(
    ("scores", "accuracies", "expected"),
    [
        ([], [], "There was no checkpoint to rank."),
        ([1.0], [None], "ckpt0 is the only checkpoint ranked."),
        ([1.0], [0.5], "only checkpoint ranked; fine-tuned, it reaches 50.0%."),
        ([2.0, 1.0], [0.9, 0.8], "ranks ckpt0 first of 2, and so does fine-tuning"),
        ([2.0, 2.0], [None, None], "ranks ckpt0 first of 2, tied with 1 other."),
        (
            [3.0, 2.0, 1.0],
            [0.7, 0.9, 0.8],
            "fine-tuning puts it 3rd of 3, 20.0 points below ckpt1 (90.0%).",
        ),
        ([2.0, 1.0], [0.8, 0.8004], "2nd of 2, 0.04 points below ckpt1"),
    ],
)
def test_headline(scores, accuracies, expected):
    result = rank("task", ["nleep"], _rows(scores, accuracies))
    assert expected in sentences.headline(result)


def test_headline_where_nothing_was_ranked():
    failed = rank("task", ["nleep"], [Row("a", failure="x")])
    assert "every checkpoint failed" in sentences.headline(failed)
    assert failed.best is None
    unscored = rank("task", ["nleep"], [Row("a"), Row("b", failure="x")])
    assert "no checkpoint has a score by nleep" in sentences.headline(unscored)
    assert "Nothing could be ranked" in str(unscored)


_SIX = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


@pytest.mark.parametrize(
    ("scores", "accuracies", "expected"),
    [
        ([1, 2, 3, 4, 6, 5], _SIX, "nleep agrees with fine-tuning: Kendall's tau 0.87"),
        ([6, 5, 4, 3, 2, 1], _SIX, "nleep contradicts fine-tuning"),
        ([2, 1, 4, 3, 6, 5], _SIX, "tau 0.60 over 6 checkpoints is within chance"),
        ([1, 2, 3], [0.1, 0.2, 0.3], "no order of 3 checkpoints is beyond chance"),
        ([1, 1, 1], [0.1, 0.2, 0.3], "is undefined"),
        ([1, 2], [0.5, None], "Only one ranked checkpoint was fine-tuned"),
        ([1, 2], [None, None], "No ranked checkpoint was fine-tuned"),
    ],
)
def test_conclusion_on_agreement(scores, accuracies, expected):
    result = rank("task", ["nleep"], _rows(scores, accuracies))
    assert expected in sentences.conclusions(result)[0]


def test_conclusion_names_a_better_measure_but_not_beyond_the_evidence():
    rows = [
        Row(str(i), scores={"nleep": s, "leep": i}, accuracy=a)
        for i, (s, a) in enumerate(zip([2, 1, 3, 4, 6, 5], _SIX, strict=True))
    ]
    sentence = sentences.conclusions(rank("task", ["nleep", "leep"], rows))[1]
    assert sentence.startswith("leep agrees better (tau 1.00), but over 6")
    rows = [
        Row(row.checkpoint, scores={"nleep": -i, "leep": i}, accuracy=row.accuracy)
        for i, row in enumerate(rows)
    ]
    sentence = sentences.conclusions(rank("task", ["nleep", "leep"], rows))[1]
    assert sentence == "leep agrees better (tau 1.00)."


@pytest.mark.parametrize(("spread", "narrow"), [(0.01, False), (0.1, True)])
def test_conclusion_on_a_narrow_lead(spread, narrow):
    rows = _rows([1.0, 0.9], [None, None], spreads={"nleep": spread})
    said = " ".join(sentences.conclusions(rank("task", ["nleep"], rows)))
    assert ("another run could swap them" in said) == narrow


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0], "One checkpoint alone can be compared with nothing"),
        ([3.0, 3.0, 3.0], "tells none of the 3 checkpoints from another"),
        ([4.0, 2.0, 2.0, 1.0], "their scores are equal: ckpt1, ckpt2 (all 2nd)."),
        (
            [2.0, 2.0, 1.0, 1.0, 1.0],
            "ckpt0, ckpt1 (all 1st); ckpt2, ckpt3, ckpt4 (all 3rd).",
        ),
    ],
)
def test_conclusion_on_what_cannot_be_told(scores, expected):
    for accuracies in ([None] * len(scores), [0.1 * i for i in range(len(scores))]):
        result = rank("task", ["nleep"], _rows(scores, accuracies))
        assert expected in " ".join(sentences.conclusions(result))
    untied = rank("task", ["nleep"], _rows([2.0, 1.0], [None, None]))
    assert "equal" not in " ".join(sentences.conclusions(untied))


def test_warnings_are_said_once_for_all_they_are_about():
    rows = [
        Row("a", warnings={"task": "classes are missing"}),
        Row("b", warnings={"leep": "no classifier", "task": "classes are missing"}),
    ]
    result = rank("task", ["nleep"], rows)
    first, second = sentences.grouped_warnings(result)
    assert first.checkpoints == ("a", "b")
    assert second == sentences.Warned("leep", "no classifier", ("b",))
    assert "Warning, task of 2 checkpoints: classes are missing" in str(result)


def test_ordinals():
    rows = _rows([100.0, *range(22)], [0.0, *(0.01 * i for i in range(1, 23))])
    assert "puts it 23rd of 23" in sentences.headline(rank("task", ["nleep"], rows))
    rows = _rows([100.0, *range(10)], [0.0, *(0.01 * i for i in range(1, 11))])
    assert "puts it 11th of 11" in sentences.headline(rank("task", ["nleep"], rows))
