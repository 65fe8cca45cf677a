"""Order and evaluation of a ranking."""

import dataclasses
import json as builtins_json
import math

import pytest

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError
from rankckpt_jax.report import csv, json
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize


def _rows(scores, accuracies, **fields):
    return [
        Row(f"ckpt{i}", scores={"nleep": score}, accuracy=accuracy, **fields)
        for i, (score, accuracy) in enumerate(zip(scores, accuracies, strict=True))
    ]


def test_rank_puts_unscored_rows_and_failures_last():
    rows = [
        Row("failed", failure="no such file", scores={"nleep": 9.0}),
        Row("nan", scores={"nleep": math.nan}),
        Row("low", scores={"nleep": -2.0, "leep": 5.0}),
        Row("absent", scores={"leep": 1.0}),
        Row("high", scores={"nleep": -1.0}),
    ]
    result = rank("task", ["nleep", "leep"], rows)
    names = [row.checkpoint for row in result.rows]
    assert names == ["high", "low", "absent", "nan", "failed"]
    assert result.ranks == (1, 2, None, None, None)
    assert result.best.checkpoint == "high"
    assert [row.checkpoint for row in result.scored_rows] == ["high", "low"]
    assert [row.checkpoint for row in result.failed] == ["failed"]


def test_rank_orders_equal_scores_by_name():
    rows = [
        Row(name, scores={"nleep": score})
        for name, score in zip("dcba", (1, 2, 2, 3), strict=True)
    ]
    for order in rows, rows[::-1]:
        result = rank("task", ["nleep"], order)
        assert [row.checkpoint for row in result.rows] == ["a", "b", "c", "d"]
        assert result.ranks == (1, 2, 2, 4)


def test_rank_evaluates_rows_with_score_and_accuracy():
    rows = [
        Row("a", scores={"nleep": 3.0, "leep": 1.0}, accuracy=0.9),
        Row("b", scores={"nleep": 2.0}, accuracy=0.8),
        Row("c", scores={"nleep": 1.0, "leep": 2.0}, accuracy=0.7),
        Row("diverged", scores={"nleep": 0.0, "leep": 0.0}, accuracy=math.nan),
        Row("not tuned", scores={"nleep": 9.0, "leep": 9.0}),
        Row("failed", failure="x", accuracy=0.95),
    ]
    result = rank("task", ["nleep", "leep"], rows)
    assert result.evaluation["nleep"] == evaluation.score_ranking(
        [3, 2, 1], [0.9, 0.8, 0.7]
    )
    assert result.evaluation["leep"] == evaluation.score_ranking([1, 2], [0.9, 0.7])
    assert len(result.evaluated_rows("nleep")) == 3


def test_ranking_seconds_adds_extraction_and_scoring():
    row = Row("a", extract_seconds=10.0, score_seconds={"nleep": 2.0, "leep": 0.5})
    assert row.ranking_seconds("nleep") == 12
    assert row.ranking_seconds("knn") is None
    assert Row("a", score_seconds={"nleep": 2.0}).ranking_seconds("nleep") is None


def test_ranking_compile_seconds_adds_what_is_known():
    row = Row("a", compile_seconds={"features": 2.0, "nleep": 1.0, "fine-tuning": 9.0})
    assert row.ranking_compile_seconds("nleep") == 3
    assert row.ranking_compile_seconds("knn") == 2
    assert Row("a").ranking_compile_seconds("nleep") is None


def test_rank_raises_for_unusable_input():
    with pytest.raises(InputError, match="no measure"):
        rank("task", [], [])
    with pytest.raises(InputError, match=r"not a fraction[\s\S]*ckpt0[\s\S]*87.3"):
        rank("task", ["nleep"], _rows([1.0], [87.3]))


NOISE = [5.000000000000003, 4.9999999999999964, 5.0, 5.000000000000001]
"""H-scores of four real networks on 54 images of 6 classes: C - 1 but for rounding."""


def _noisy(scores=NOISE, **fields):
    accuracies = [0.5, 0.9, 0.7, 0.6]
    return [
        Row(f"net{i}", scores={"h_score": s}, accuracy=a, **fields)
        for i, (s, a) in enumerate(zip(scores, accuracies, strict=True))
    ]


def test_rank_ties_scores_that_differ_by_rounding():
    result = rank("task", ["h_score"], _noisy())
    assert result.ranks == (1, 1, 1, 1)
    assert [row.checkpoint for row in result.rows] == ["net0", "net1", "net2", "net3"]
    evaluated = result.evaluation["h_score"]
    constant = evaluation.score_ranking([1, 1, 1, 1], [0.5, 0.9, 0.7, 0.6])
    assert evaluated == pytest.approx(constant, nan_ok=True)
    assert math.isnan(evaluated["pearson"]) and math.isnan(evaluated["kendall"])
    assert evaluated["recall@1"] == 0.25
    assert rank("task", ["h_score"], result.rows) == result


def test_summary_of_scores_that_differ_by_rounding_equals_that_of_equal_scores():
    # A spread that is rounding error must not order the checkpoints either.
    noisy = rank("task", ["h_score"], _noisy(spreads={"h_score": 2e-15}))
    equal = rank("task", ["h_score"], _noisy([max(NOISE)] * 4, spreads={"h_score": 0}))
    summary, expected = summarize(noisy), summarize(equal)
    of_noisy, of_equal = (s.agreement.measures["h_score"] for s in (summary, expected))
    assert of_noisy.num_tied == 4
    assert of_noisy.probability_best == of_equal.probability_best == 0.25
    assert math.isnan(of_noisy.p_value) and math.isnan(of_noisy.interval.low)
    assert summary.ranks == expected.ranks
    assert summary.sentences == expected.sentences
    assert str(noisy) == str(equal)
    assert noisy.to_csv() == equal.to_csv()
    assert json.to_json(summary) == json.to_json(expected)
    assert noisy.to_html() == equal.to_html()


def test_from_csv_ties_what_another_program_wrote():
    text = rank("task", ["h_score"], _noisy()).to_csv()
    line = next(line for line in text.splitlines() if ",net1," in line)
    text = text.replace(line, line.replace(repr(max(NOISE)), repr(NOISE[1])))
    assert repr(NOISE[1]) in text
    assert csv.from_csv(text, "task").ranks == (1, 1, 1, 1)


def test_reports_mark_saturated_scores():
    text = "It cannot order checkpoints."
    rows = _noisy(saturated={"h_score": "interpolation"}, warnings={"h_score": text})
    ranking = rank("task", ["h_score"], [*rows, Row("low", scores={"h_score": 4.0})])
    lines = str(ranking).splitlines()
    start = lines.index("1  net0         5.000*       50.0%")
    assert lines[start : start + 2] == [
        "1  net0         5.000*       50.0%",
        "1  net1         5.000*       90.0%",
    ]
    assert lines[start + 4] == "5  low          4.000            -"
    assert f"* Warning, h_score of 4 checkpoints: {text}" in lines
    table = csv.to_csv(ranking).splitlines()
    assert ",h_score_saturated," in table[0] and ",interpolation," in table[1]
    restored = csv.from_csv(ranking.to_csv(), "task")
    assert [row.saturated for row in restored.rows] == [
        row.saturated for row in ranking.rows
    ]
    first = builtins_json.loads(json.to_json(summarize(ranking)))["rows"][0]
    assert first["h_score_saturated"] == "interpolation"
    assert first["warnings"] == f"h_score: {text}"
    page = ranking.to_html()
    assert page.count(f'<a class="mark" href="#warnings" title="{text}">*</a>') == 4
    assert '* marks a score with a <a href="#warnings">warning</a>' in page
    assert '<section id="warnings">' in page


def test_repr_of_a_row_is_one_line():
    row = Row("a", scores={"nleep": -0.25, "knn": 1 / 3}, accuracy=0.873)
    assert repr(row) == "Row('a', nleep=-0.25, knn=0.3333, accuracy=0.873)"
    row = Row("a\nb", failure=f"cannot be read\n  where: {'long ' * 50}")
    assert repr(row).startswith("Row('a\\nb', failure='cannot be read where: long")
    assert len(repr(row)) < 100 and "\n" not in repr(row)


def test_page_of_a_ranking_that_ranks_nothing_shows_no_winner():
    rows = [
        dataclasses.replace(row, accuracy=None)
        for row in _noisy(saturated={"h_score": "interpolation"})
    ]
    nothing = rank("task", ["h_score"], rows).to_html()
    assert "h_score ranks nothing" in nothing and '<tr class="answer"' not in nothing
    # With accuracies, the best of them is the answer.
    assert '<tr class="answer"' in rank("task", ["h_score"], _noisy()).to_html()
