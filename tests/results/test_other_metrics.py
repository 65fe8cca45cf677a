import dataclasses
import json
import re

import pytest
import scipy.stats

from rankckpt_jax.errors import InputError
from rankckpt_jax.report import csv, page
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize

SCORES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
ACCURACIES = [0.91, 0.9, 0.92, 0.93, 0.95, 0.94]
AUROCS = [0.5, 0.7, 0.6, 0.97, 0.8, 0.9]


def make(accuracies=ACCURACIES, others=AUROCS, metric="accuracy", other="auroc"):
    rows = [
        Row(
            f"net{i}",
            scores={"nleep": score},
            accuracy=accuracy,
            metrics={metric: accuracy, other: value},
            curve=((5, accuracy - 0.1), (10, accuracy)),
        )
        for i, (score, accuracy, value) in enumerate(
            zip(SCORES, accuracies, others, strict=True)
        )
    ]
    return rank("made_up", ["nleep"], rows, metric=metric)


def test_summarize_shows_both_orders_where_metrics_differ():
    ranking = make()
    summary = summarize(ranking)
    [other] = summary.other_metrics
    taus = [scipy.stats.kendalltau(SCORES, v).statistic for v in (ACCURACIES, AUROCS)]
    assert other.differs and (other.best, other.value) == ("net3", "0.970")
    assert other.kendall == pytest.approx(
        scipy.stats.kendalltau(ACCURACIES, AUROCS).statistic
    )
    assert other.measures["nleep"] == pytest.approx(taus[1])
    assert "net3 is the best (0.970)" in other.sentence
    assert f"tau {taus[0]:.2f} with accuracy" in other.sentence
    assert f"{taus[1]:.2f} with macro-AUROC" in other.sentence
    assert other.sentence in summary.sentences
    text = page.to_html(summary)
    assert "<h2>Other metrics of fine-tuning</h2>" in text and "Macro-AUROC" in text
    assert json.loads(ranking.to_json())["other_metrics"][0]["differs"]


def test_summarize_says_nothing_where_metrics_agree():
    ranking = make(others=[a / 2 for a in ACCURACIES])
    [other] = summarize(ranking).other_metrics
    assert not other.differs and not other.sentence
    assert other.kendall == pytest.approx(1)
    assert "Other metrics" not in page.to_html(summarize(ranking))


def test_reports_name_a_metric_that_may_be_negative():
    values = [-0.4, 0.12, 0.1, 0.3, 0.55, 0.5]
    ranking = make(values, values, "r2", "spearman")
    text = page.to_html(summarize(ranking))
    for expected in (
        "<h2>Scores against R2 after fine-tuning</h2>",
        "<h2>How well each measure predicts R2</h2>",
        "<h2>R2 during fine-tuning</h2>",
        "0.550 R2",
        "-0.400",
    ):
        assert expected in text
    body = re.sub(r'href="data:[^"]*"', "", text.partition("<body")[2])
    assert "ccuracy" not in body.partition("<script")[0]
    assert "fine-tuned is the test R2" in " ".join(str(ranking).split())
    read = csv.from_csv(csv.to_csv(ranking), "made_up")
    assert read.metric == "r2"
    assert [r.metrics for r in read.rows] == [r.metrics for r in ranking.rows]
    ranking.plot("nleep")
    with pytest.raises(InputError, match="different metrics"):
        ranking.append(dataclasses.replace(make(), task=ranking.task))
    with pytest.raises(InputError, match="from 0 to 1"):
        make(values)
