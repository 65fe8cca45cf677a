"""The judgment in a terminal: its figures, and the width of its lines."""

import dataclasses

import pytest

from rankckpt_jax import evaluation
from rankckpt_jax.report.judgment import sentences, text
from tests import simulated_scores


def test_to_text_shows_measures_baselines_ceiling_and_protocol(judgment):
    shown = text.to_text(judgment, width=80)
    assert str(judgment).splitlines()[0] == shown.splitlines()[0]
    for expected in (
        "simulated: 3 measures, 12 checkpoints, 6 tasks",
        "nleep agrees best with fine-tuning: mean Kendall's tau",
        "(noise ceiling)",
        "(fine-tuned again)",
        "(random order)",
        "(source accuracy)",
        "(mean rank elsewhere)",
        "Tau minus that of nleep:",
        "same size  same family  same group",
        "Families: 6: dense, mobile, res, swin, vgg, vit.",
        "Fine-tuning runs: judged by the mean of 2 runs (column seed).",
        "Test images: 500 on each task.",
    ):
        assert expected in shown, expected
    tau = f"{judgment.measures[0].kendall:.2f}"
    lines = [line.split()[:3] for line in shown.splitlines()]
    assert ["nleep", "6", tau] in lines


@pytest.mark.parametrize("width", [80, 120])
def test_to_text_fits_the_width(judgment, width):
    assert max(map(len, text.to_text(judgment, width).splitlines())) <= width


def test_to_text_of_odd_tables_is_printable(odd):
    shown = text.to_text(odd, width=80)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "nan" not in shown.lower()


def test_four_tasks_cannot_decide():
    lines = simulated_scores.make_text(num_tasks=4)
    judgment = evaluation.judge(evaluation.parse_table(lines))
    shown = " ".join(text.to_text(judgment, width=200).split())
    assert "cannot be decided with 4 tasks" in shown
    assert "not significant" not in shown and "Holm" in shown


def test_verdict_follows_the_adjusted_p_value():
    over_tasks = evaluation.TaskComparison(-0.2, 0.01, 8)
    versus = evaluation.judgment.Versus("nleep", over_tasks, adjusted=0.04)
    assert sentences.verdict(versus) == "worse"
    raised = dataclasses.replace(versus, adjusted=0.2)
    assert sentences.verdict(raised) == "not after Holm"
    better = evaluation.TaskComparison(0.2, 0.01, 8)
    assert sentences.verdict(dataclasses.replace(versus, over_tasks=better)) == "better"


def test_cautions_name_a_measure_that_should_be_negated():
    lines = ["task,checkpoint,accuracy,loss"]
    lines += [
        f"t{t},c{i},{0.5 + i / 100},{-i - (i == t) * 1.5}"
        for t in range(7)
        for i in range(10)
    ]
    judgment = evaluation.judge(evaluation.parse_table("\n".join(lines)))
    text = " ".join(sentences.cautions(judgment))
    assert "Negative agreement of loss" in text
    assert "With 10 checkpoints" in text and "0.25" in text
