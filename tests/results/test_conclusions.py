"""The sentences on what follows from a ranking."""

import dataclasses
import math

import pytest

from rankckpt_jax import finetune
from rankckpt_jax.configs import default, folder
from rankckpt_jax.report import terminal
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize


def _rows(scores, accuracies, **fields):
    return [
        Row(f"ckpt{i}", scores={"nleep": score}, accuracy=accuracy, **fields)
        for i, (score, accuracy) in enumerate(zip(scores, accuracies, strict=True))
    ]


def _summarize(rows, *measures, **fields):
    return summarize(rank("task", measures or ["nleep"], rows, **fields))


def _conclude(rows, *measures, **fields):
    return _summarize(rows, *measures, **fields).conclusion


@pytest.mark.parametrize(
    ("rows", "expected", "checkpoint"),
    [
        ([], "There are no checkpoints to rank.", ""),
        ([Row("a", failure="x")], "No checkpoint could be ranked: all of them fai", ""),
        ([Row("a"), Row("b", failure="x")], "ranked: none has a score by nleep", ""),
        (_rows([1.0], [None]), "ckpt0 is the only checkpoint ranked.", "ckpt0"),
        (_rows([1.0], [0.5]), "ckpt0 is the only checkpoint ranked.", "ckpt0"),
        (_rows([2.0, 1.0], [None] * 2), "Use ckpt0.", "ckpt0"),
        (_rows([2, 2, 1], [None] * 3), "Use ckpt0, tied with ckpt1.", "ckpt0"),
        (_rows([2, 2, 2, 1], [None] * 4), "Use ckpt0, tied with 2 others.", "ckpt0"),
        (_rows([2, 2], [None] * 2), "nleep ranks nothing: the scores of all 2 ch", ""),
        # With accuracies, the highest of them.
        (_rows([3, 2, 1], [0.7, 0.9, 0.8]), "Use ckpt1.", "ckpt1"),
        (_rows([3, 2, 1], [0.7, 0.9, None]), "Use ckpt1.", "ckpt1"),
        (_rows([2, 2], [0.7, 0.9]), "Use ckpt1.", "ckpt1"),
        (_rows([2, 1], [0.9, 0.9]), "Use ckpt0.", "ckpt0"),
        ([Row("a", accuracy=0.5), Row("b", accuracy=0.6)], "Use b.", "b"),
        # The checkpoint ranked first may be better than those that were fine-tuned.
        (_rows([3, 2, 1], [None, 0.9, 0.8]), "Use ckpt0.", "ckpt0"),
        (_rows([3, 2, 1], [None, 0.9, None]), "Use ckpt0.", "ckpt0"),
        (
            [*_rows([2, 1], [0.5, 0.6]), Row("c", accuracy=0.9, failure="x")],
            "Use ckpt1.",
            "ckpt1",
        ),
    ],
)
def test_conclude_answers_which_checkpoint_to_use(rows, expected, checkpoint):
    summary = _summarize(rows)
    answer = summary.conclusion.answer
    assert "".join(answer).startswith(expected) or expected in "".join(answer)
    assert answer[1] == checkpoint
    assert summary.sentences[0] == "".join(answer)


@pytest.mark.parametrize(
    ("scores", "accuracies", "expected"),
    [
        ([1.0], [0.5], "Fine-tuned, it reaches 50.0%."),
        (
            [2, 1],
            [0.9, 0.8],
            "reaches 90.0%, the highest of 2; following nleep loses n",
        ),
        (
            [3, 2, 1],
            [0.7, 0.9, 0.8],
            "Fine-tuned, it reaches 90.0%, the highest of 3; following nleep would "
            "lose 20.0 percentage points (ckpt0, 70.0%).",
        ),
        ([2, 1], [0.8, 0.8004], "would lose 0.04 percentage points (ckpt0, 80.0%)."),
        ([3, 2, 1], [0.7, 0.9, None], "the highest of 2 fine-tuned; following nleep"),
        ([2, 2], [0.7, 0.9], "Fine-tuned, it reaches 90.0%, the highest of 2."),
    ],
)
def test_conclude_states_the_accuracy_and_the_loss_first(scores, accuracies, expected):
    assert expected in _conclude(_rows(scores, accuracies)).support[0]


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        (
            [None, 0.9, 0.8],
            "it reaches 90.0%, the highest of 2 fine-tuned.",
        ),
        ([None, 0.9, None], "reaches 90.0%, the only one that was fine-tuned."),
        ([0.7, 0.9, None], "following nleep would lose 20.0 percentage points"),
    ],
)
def test_conclude_uses_the_best_of_a_plan_that_left_others(accuracies, expected):
    """The plan had reasons to leave the first: its start, or its expected gain."""
    rows = _rows([3, 2, 1], accuracies)
    start = finetune.Start(0.01, 30, 100, 0.5, 50, 10.0, 1.0)
    rows[0] = dataclasses.replace(rows[0], started=start)
    conclusion = _conclude(rows)
    assert conclusion.answer[1] == "ckpt1"
    assert any(expected in sentence for sentence in conclusion.support)


def test_conclude_names_the_checkpoints_that_a_plan_left():
    rows = _rows([3, 2, 1], [None, 0.9, None])
    for i, accuracy in ((0, 0.5), (2, None)):
        start = finetune.Start(0.01, 30, 100, accuracy, 50, 10.0, 1.0)
        rows[i] = dataclasses.replace(rows[i], started=start)
    text = " ".join(_conclude(rows).sentences)
    assert "first 30 of 100 steps only" in text
    assert "ckpt0 (50.0%), ckpt2 (diverged)" in text


def _voted(**scores):
    """Rows with scores by several measures, in the order of the keywords."""
    n = len(next(iter(scores.values())))
    return [
        Row(
            f"ckpt{i}", scores={m: s for m in scores if (s := scores[m][i]) is not None}
        )
        for i in range(n)
    ]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"nleep": [3, 2, 1]}, "nleep ranks it first of 3; no other measure of the im"),
        ({"nleep": [2, 1], "knn": [2, 1]}, "Both measures rank it first of 2."),
        (
            {"nleep": [2, 1], "knn": [2, 1], "lda": [2, 1]},
            "All 3 measures rank it first of 2.",
        ),
        (
            {"nleep": [2, 1], "knn": [2, 1], "lda": [1, 2]},
            "2 of 3 measures rank it first of 2; lda ranks ckpt1 first.",
        ),
        (
            {"nleep": [3, 2, 1], "knn": [1, 3, 2], "lda": [1, 2, 3]},
            "Only 1 of 3 measures ranks it first of 3; the others rank ckpt1 or ckpt2 "
            "first.",
        ),
        # Baselines, measures that order nothing and missing scores do not vote.
        (
            {
                "nleep": [2, 1],
                "num_parameters": [1, 2],
                "static": [1, 2],
                "knn": [1, 1],
                "leep": [None, 2],
                "lda": [2, 1],
            },
            "Both measures rank it first of 2.",
        ),
        (
            {"num_parameters": [2, 1]},
            "num_parameters ranks it first of 2, without reading the images.",
        ),
    ],
)
def test_conclude_counts_the_measures_that_agree(scores, expected):
    conclusion = _conclude(_voted(**scores), *scores)
    assert any(sentence.startswith(expected) for sentence in conclusion.support)


def test_conclude_counts_no_measure_that_prefers_another_to_the_measured_best():
    rows = [
        dataclasses.replace(row, accuracy=0.1 * i)
        for i, row in enumerate(_voted(nleep=[3, 2, 1], knn=[3, 2, 1]))
    ]
    conclusion = _conclude(rows, "nleep", "knn")
    assert conclusion.support[1] == (
        "None of 2 measures ranks it first of 3; nleep ranks it 3rd."
    )
    assert conclusion.figures[0][1:] == ("0 of 2", "rank it first of 3")


@pytest.mark.parametrize(
    ("scores", "spread", "expected"),
    [
        ([1.0, 0.9], 0.01, "Its lead over ckpt1 is 7.1 times the noise of the score."),
        (
            [1.0, 0.9],
            0.1,
            "Its lead over ckpt1 is only 0.71 times the noise of the score, so it "
            "may not be better than ckpt1.",
        ),
        (
            [1.0, 0.9, 0.85, 0.8, 0.1],
            0.1,
            "so it may not be better than the next 3 (ckpt1, ckpt2, ckpt3).",
        ),
        ([1.0, 0.9], None, "because the noise of nleep is unknown; set `num_bootstr"),
        ([1.0, 0.9], 0.0, "is larger than the noise of the score, which is zero."),
        ([1.0, 1.0, 0.9], 0.01, "Its lead over ckpt2 is 7.1 times the noise"),
    ],
)
def test_conclude_compares_the_lead_with_the_noise(scores, spread, expected):
    spreads = {} if spread is None else {"nleep": spread}
    rows = _rows(scores, [None] * len(scores), spreads=spreads)
    assert expected in _conclude(rows).support[-1]


def test_conclude_names_a_noisy_checkpoint_that_is_close():
    rows = _rows([1.0, 0.9, 0.8], [None] * 3, spreads={"nleep": 0.01})
    rows[2] = dataclasses.replace(rows[2], spreads={"nleep": 0.5})
    assert (
        _conclude(rows)
        .support[-1]
        .endswith(
            "7.1 times the noise of the score, but it may not be better than ckpt2."
        )
    )


_SIX = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


@pytest.mark.parametrize(
    ("scores", "accuracies", "expected"),
    [
        ([1, 2, 3, 4, 6, 5], _SIX, "Verified: nleep agrees with fine-tuning (Kendall"),
        ([6, 5, 4, 3, 2, 1], _SIX, "Refuted: nleep contradicts fine-tuning"),
        ([2, 1, 4, 3, 6, 5], _SIX, "significant (Kendall's tau 0.60 over all 6 check"),
        ([1, 2, 3], [0.1, 0.2, 0.3], "all 3 checkpoints were fine-tuned (Kendall's t"),
        ([1, 2, 3], [None, 0.2, 0.3], "Verified in part: 2 of 3 checkpoints were fin"),
        ([1, 1, 1], [0.1, 0.2, 0.3], "Not verified: the scores or the accuracies of "),
        ([1, 2], [0.5, None], "Not verified: only 1 of 2 ranked checkpoints was fine"),
        ([1, 2], [None, None], "Not verified: no ranked checkpoint was fine-tuned on"),
    ],
)
def test_conclude_states_whether_the_ranking_was_verified(scores, accuracies, expected):
    assert expected in _conclude(_rows(scores, accuracies)).verification


def test_conclude_prints_the_command_that_verifies_a_ranking():
    config = folder.get_config()
    config.task.path = "my photos"
    config.checkpoints = "nets"
    config.task.limit = 100
    config.measure_options.nleep.energy = 0.7
    provenance = {"config": config.to_dict()}
    summary = _summarize(_rows([1, 2], [None, None]), provenance=provenance)
    command = summary.conclusion.command
    assert f"  {command}" in terminal.to_text(summary).splitlines()
    assert command not in summary.sentences
    assert command == (
        "rankckpt 'my photos' nets --config.measure_options.nleep.energy=0.7 "
        "--config.task.limit=100 --finetune=2"
    )
    verified = _rows([1, 2], [0.5, 0.6])
    assert not _conclude(verified, provenance=provenance).command


def test_conclude_prints_no_command_for_features():
    config = default.get_config()
    config.features = "features"
    rows = _rows([1, 2], [None, None])
    conclusion = _conclude(rows, provenance={"config": config.to_dict()})
    assert not conclusion.command
    assert conclusion.verification.endswith("give the accuracies of at least five.")


def test_conclude_names_the_interval_of_kendalls_tau_and_the_regret():
    accuracies = [i / 20 for i in range(1, 11)]
    summary = _summarize(_rows([3, 2, 1, 4, 5, 6, 8, 7, 10, 9], accuracies))
    low, high = summary.agreement.measures["nleep"].interval
    assert summary.conclusion.details == (
        f"Kendall's tau 0.78, 95 % confidence interval [{low:.2f}, {high:.2f}] "
        "(jackknife over checkpoints).",
        "Of 10 fine-tuned checkpoints, taking the first by nleep loses 5.0 percentage "
        "points, the best of the first three nothing, and one at random 22.5 "
        "percentage points on average.",
    )


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([4.0, 2.0, 2.0, 1.0], "gives equal scores to: ckpt1, ckpt2 (all 2nd)."),
        (
            [2.0, 2.0, 1.0, 1.0, 1.0],
            "ckpt0, ckpt1 (all 1st); ckpt2, ckpt3, ckpt4 (all 3rd).",
        ),
    ],
)
def test_conclude_names_ties(scores, expected):
    for accuracies in ([None] * len(scores), [0.1 * i for i in range(len(scores))]):
        details = " ".join(_conclude(_rows(scores, accuracies)).details)
        assert expected in details
    untied = _conclude(_rows([2.0, 1.0], [None, None]))
    assert "equal scores" not in " ".join(untied.details)


def test_conclude_advises_to_add_checkpoints_to_one():
    conclusion = _conclude(_rows([1.0], [None]))
    assert conclusion.support == (
        "One checkpoint cannot be compared with others. Add checkpoints to the pool.",
    )
    assert not conclusion.verification and not conclusion.command


def _saturated(scores, **others):
    """Rows whose H-score is saturated, with scores by other measures."""
    return [
        Row(
            f"ckpt{i}",
            scores={"h_score": s, **{m: values[i] for m, values in others.items()}},
            saturated={"h_score": "interpolation"},
            warnings={"h_score": "It cannot order checkpoints."},
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
def test_conclude_recommends_another_measure_if_all_scores_are_saturated(
    others, expected
):
    summary = _summarize(_saturated(NOISE, **others), "h_score", *others)
    conclusion = summary.conclusion
    assert summary.ranking.ranks == (1, 1, 1, 1)
    text = "h_score ranks nothing: the scores of all 4 checkpoints are saturated and "
    assert conclusion.answer == (f"{text}equal.", "", "")
    assert expected in conclusion.support[0] and len(summary.sentences) == 2
    assert conclusion.support[0].endswith("The warning of h_score states the reason.")
    # The accuracies recommend a checkpoint nevertheless.
    rows = [
        dataclasses.replace(row, accuracy=0.1 * i)
        for i, row in enumerate(summary.ranking.rows)
    ]
    conclusion = _conclude(rows, "h_score", *others)
    assert conclusion.answer[1] == "ckpt3" and conclusion.against[0] == f"{text}equal."


def test_conclude_recommends_another_measure_if_the_first_one_has_no_scores():
    rows = [
        Row(name, scores={"knn": score}, warnings={"nleep": "Too few images."})
        for name, score in (("a", 1.0), ("b", 2.0))
    ]
    conclusion = _conclude(rows, "nleep", "knn")
    assert conclusion.answer[0].endswith("none has a score by nleep.")
    assert conclusion.support == (
        "knn still ranks these checkpoints: put it first in `config.measures`. The "
        "warning of nleep states the reason.",
    )


def test_conclude_recommends_measures_without_warnings():
    rows = _saturated(NOISE, transrate=range(4), knn=range(4))
    rows = [
        dataclasses.replace(row, warnings={**row.warnings, "transrate": "Care."})
        for row in rows
    ]
    conclusion = _conclude(rows, "h_score", "transrate", "knn")
    assert conclusion.support[0].startswith("knn still ranks")


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


def test_conclude_groups_no_sentence_by_checkpoint():
    rows = [
        Row(
            f"ckpt{i}",
            scores={"nleep": -i},
            warnings={"nleep": f"Too few images ({i + 2} in {35 + i} dimensions)."},
            image_size=96,
            own_image_size=160 + 64 * (i % 2),
        )
        for i in range(5)
    ]
    sentences = _summarize(rows).sentences
    assert len(set(sentences)) == len(sentences) <= 6
    assert "Too few images (2 to 6 in 35 to 39 dimensions)." in sentences
    assert (
        "Images of 96 pixels are far from the own size of all 5 checkpoints (160 to "
        "224 pixels); set `image_size=0` to use the own size." in sentences
    )


def test_conclude_is_finite_for_nan():
    rows = _rows([math.nan, 1.0, 2.0], [math.nan, 0.5, math.nan])
    for sentence in _summarize(rows).sentences:
        assert "nan" not in sentence
