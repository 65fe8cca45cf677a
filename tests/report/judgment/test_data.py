"""The figures of a judgment as CSV and JSON."""

import csv
import json

import pytest

from rankckpt_jax import evaluation
from rankckpt_jax.report.judgment import data


def test_to_csv_has_the_mean_and_each_task(judgment):
    lines = list(csv.DictReader(data.to_csv(judgment).splitlines()))
    nleep = [line for line in lines if line["measure"] == "nleep"]
    tasks = [task.name for task in judgment.table.tasks]
    assert [line["task"] for line in nleep] == ["mean", *tasks]
    measure = judgment.measure("nleep")
    assert float(nleep[0]["kendall"]) == measure.kendall
    assert float(nleep[0]["kendall_pool_low"]) == measure.figures["kendall"].pool.low
    for line in nleep[1:]:
        agreement = measure.by_task[line["task"]]
        assert int(line["checkpoints"]) == agreement.n
        for key in evaluation.FIGURES:
            assert float(line[key]) == agreement.values[key]
            assert float(line[f"random_{key}"]) == agreement.random[key]
    kinds = {line["measure"]: line["kind"] for line in lines}
    assert kinds["parameters"] == "baseline" and kinds["leep"] == "measure"


def test_to_json_has_every_figure(judgment):
    content = json.loads(data.to_json(judgment))
    (nleep,) = [m for m in content["measures"] if m["name"] == "nleep"]
    measure = judgment.measure("nleep")
    assert nleep["figures"]["kendall"]["value"] == measure.kendall
    assert nleep["by_task"]["task0"]["n"] == 12
    assert content["noise_ceiling"]["task0"]["num_runs"] == 2
    assert content["protocol"]["Pool"] == "12 checkpoints"
    assert content["conclusions"][0].startswith("nleep agrees best")


def test_to_json_of_odd_tables_has_no_nan(odd):
    def refuse(name):
        pytest.fail(f"{name} is not JSON")

    json.loads(data.to_json(odd), parse_constant=refuse)
