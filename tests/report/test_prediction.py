"""The prediction in the page, the terminal, CSV and JSON."""

import csv
import dataclasses
import io
import json

import pytest

from rankckpt_jax.report import page, terminal
from rankckpt_jax.report.page import prediction as section
from rankckpt_jax.results import predicted
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize

MEASURES = ["nleep", "logme", "leep", "nce", "parc", "sfda", "h_score"]


def make_ranking(n=12, **accuracies):
    rows = [
        Row(
            f"net{i:02}",
            scores={m: float((i * (j + 3)) % 13) for j, m in enumerate(MEASURES)},
            num_parameters=10**6 * (i + 1),
            source_accuracy=60.0 + i,
            accuracy=accuracies.get(f"net{i:02}"),
        )
        for i in range(n)
    ]
    return predicted.add_prediction(rank("simulated", MEASURES, rows))


@pytest.fixture(scope="module")
def tuned():
    return make_ranking(net11=0.9, net00=0.5)


def test_page_shows_accuracies_with_intervals_and_measured_ones(tuned):
    summary = summarize(tuned)
    values = section.SECTION.values(summary)
    rows = {row["name"]: row for row in values["rows"]}
    assert len(rows) == 10 and values["more"] == "2 checkpoints"
    assert rows["net11"]["text"] == "90.0%" and rows["net11"]["interval"] == ""
    other = next(row for row in rows.values() if not row["is_measured"])
    assert " to " in other["interval"] and 'class="interval"' in other["strip"]
    html = section.SECTION.render(summary)
    assert "Predicted accuracy" in html and "ranks only" not in html
    assert "The ranking above does not depend on this prediction" in html


def test_bars_have_one_color_for_each_group_and_add_up(tuned):
    inputs = section._group_inputs(tuned.prediction)
    assert len(inputs) <= 6 and {"properties", "other measures"} <= set(inputs)
    for c in tuned.prediction.checkpoints:
        parts = section._sum_parts(c, inputs)
        # Inputs with a contribution below 0.01 are not shown.
        assert sum(parts.values()) == pytest.approx(c.standardized, abs=0.05)


def test_page_without_a_level_shows_ranks_only():
    html = page.to_html(summarize(make_ranking()))
    start = html.index('id="prediction"')
    shown = html[start : html.index("</section>", start)]
    assert "Predictions are ranks only here." in shown
    assert "Predicted accuracy" not in shown and "P(best)" in shown


def test_page_has_no_section_without_a_prediction():
    ranking = dataclasses.replace(make_ranking(), prediction=None)
    assert "<h2>Prediction</h2>" not in page.to_html(summarize(ranking))


def test_text_csv_and_json_have_the_prediction(tuned):
    text = terminal.to_text(summarize(tuned), width=200)
    assert "predicted  P(best)" in text and "Prediction: net11 reached 90.0%" in text
    for row, line in zip(
        tuned.rows, csv.DictReader(io.StringIO(tuned.to_csv())), strict=True
    ):
        if row.accuracy is None:
            assert float(line["predicted_accuracy"]) == row.predicted_accuracy
            assert float(line["predicted_lower"]) == row.predicted_interval.low
            assert float(line["predicted_upper"]) == row.predicted_interval.high
        else:
            assert line["predicted_accuracy"] == line["predicted_lower"] == ""
        assert float(line["probability_best"]) == row.predicted.probability_best
    content = json.loads(tuned.to_json())["prediction"]
    assert content["regret"] == list(tuned.prediction.regret)
    assert len(content["checkpoints"]) == 12 and content["is_level_known"]
