"""The paper's table over tasks, compared with SciPy on a simulated NeuCRaB."""

import csv
import runpy
import sys

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import report
from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.benchmark import table as benchmark
from rankckpt_jax.configs import features as features_config
from rankckpt_jax.errors import InputError
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import run as run_lib
from rankckpt_jax.storage import store

# Not NLEEP, which compiles again for every number of dimensions.
MEASURES = ("h_score", "logme", "lda")


def simulate(workdir, names, tasks, images=60, classes=3, dimensions=8, most=2.0):
    """Store features of known separability, and run scoring and report per task."""
    rankings = {}
    for number, task in enumerate(tasks):
        rng = np.random.default_rng(number)
        labels = np.arange(images, dtype=np.int32) % classes
        means = rng.normal(size=(classes, dimensions))
        separations = rng.uniform(most / 20, most, size=len(names))
        for name, separation in zip(names, separations, strict=True):
            noise = rng.normal(size=(images, dimensions))
            store.save(
                workdir / "stored" / task / name / "features" / "train",
                {"architecture": "simulated", "image_size": 224},
                {"seconds": 1.0},
                {
                    "features": (separation * means[labels] + noise).astype("float32"),
                    "labels": labels,
                },
            )
        # Accuracies follow the separation, with noise.
        accuracies = 1 - np.exp(
            -2 * separations / most - rng.uniform(0, 0.5, len(names))
        )
        figures = workdir / f"{task}.csv"
        lines = [f"{n},{a:.6f}" for n, a in zip(names, accuracies, strict=True)]
        figures.write_text("\n".join(lines))
        config = features_config.get_config()
        config.features = str(workdir / "stored" / task / "*" / "features" / "train")
        config.workdir = str(workdir / "runs")
        config.accuracies = str(figures)
        config.measures = ",".join(MEASURES)
        rankings[task] = run_lib.run(config)
    return rankings


def assert_agrees_with_scipy(workdir, rankings, groups):
    """Compare the table with means over the tasks of SciPy's results."""
    lines = {
        (line.group, line.measure): line
        for line in benchmark.tabulate(benchmark.read(workdir / "runs"))
    }
    assert {group for group, _ in lines} == set(groups)
    for group in groups:
        members = {entry.name for entry in neucrab.entries([group])}
        for measure in MEASURES:
            expected = []
            for ranking in rankings.values():
                rows = [row for row in ranking.rows if row.checkpoint in members]
                scores = np.array([row.scores[measure] for row in rows])
                accuracies = np.array([row.accuracy for row in rows])
                top = accuracies[np.argsort(-scores)]
                expected.append(
                    [
                        float(top[0] == top.max()),
                        top[0] / top.max(),
                        float(top[:3].max() == top.max()),
                        top[:3].max() / top.max(),
                        scipy.stats.pearsonr(scores, accuracies).statistic,
                        scipy.stats.kendalltau(scores, accuracies).statistic,
                    ]
                )
            found = [lines[group, measure].mean[key] for key in benchmark.COLUMNS]
            np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-12)
            # Separable features transfer well.
            assert found[-1] > 0.4, (group, measure)


def test_tabulate_agrees_with_scipy_on_one_group(tmp_path, monkeypatch, capsys):
    names = [entry.name for entry in neucrab.entries(["group_iii"])]
    rankings = simulate(tmp_path, names, ["caltech", "sun"])
    assert_agrees_with_scipy(tmp_path, rankings, ["group_iii"])
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["benchmark", f"--workdir={tmp_path}/runs"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("rankckpt_jax.benchmark", run_name="__main__")
    assert not ended.value.code
    assert "Group III: architectures" in capsys.readouterr().out
    assert (tmp_path / "runs/benchmark.html").exists()


@pytest.mark.slow
def test_tabulate_agrees_with_scipy_on_all_groups(tmp_path):
    names = list(dict.fromkeys(entry.name for entry in neucrab.entries()))
    # If the classes were further apart, all scores would be equal.
    shape = {"images": 1000, "classes": 20, "dimensions": 256, "most": 0.25}
    rankings = simulate(tmp_path, names, list(neucrab.TASKS), **shape)
    assert_agrees_with_scipy(tmp_path, rankings, list(neucrab.GROUPS))


@pytest.fixture
def rankings():
    def make(task, accuracies):
        return rank(
            task,
            ["nleep", "leep"],
            [
                Row(
                    f"=c{i}",
                    group="group_ii" if i < 3 else "group_ii, group_i",
                    scores={"nleep": float(i), "leep": float(-i)},
                    accuracy=accuracy,
                )
                for i, accuracy in enumerate(accuracies)
            ],
        )

    return make("a", [0.1, 0.2, 0.3, 0.4]), make("b", [0.4, 0.3, 0.2, 0.1])


def test_tabulate_averages_over_tasks(rankings):
    lines = {(x.group, x.measure): x for x in benchmark.tabulate(rankings)}
    line = lines["group_ii", "nleep"]
    # Group I has a single checkpoint, which has no order.
    assert {group for group, _ in lines} == {"group_ii"}
    assert line.pairs == {"a": 4, "b": 4}
    assert line.mean["kendall"] == 0 and line.mean["recall@1"] == 0.5
    assert line.mean["rel@1"] == pytest.approx((1 + 0.25) / 2)
    assert lines["group_ii", benchmark.RANDOM].mean["recall@1"] == pytest.approx(0.25)


def test_outputs_show_published_figures(rankings, tmp_path):
    file = tmp_path / "figures.csv"
    file.write_text("group,measure,recall@1,kendall\ngroup_ii,nleep,0.75,\n")
    lines = benchmark.tabulate(rankings, benchmark.read_published(file))
    assert "0.50 (0.75)" in benchmark.to_text(lines)
    assert "published 0.75" in benchmark.to_html(lines)
    rows = list(csv.DictReader(benchmark.to_csv(lines).splitlines()))
    assert [row["task"] for row in rows[:3]] == ["mean", "a", "b"]
    file.write_text("group,measure,recall@1\ngroup_ii,nleep,most\n")
    with pytest.raises(InputError, match="Published figures"):
        benchmark.read_published(file)


def test_read_raises_without_rankings(tmp_path):
    with pytest.raises(InputError, match="No finished run"):
        benchmark.read(tmp_path)
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / report.CSV_NAME).write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="The file is not a ranking"):
        benchmark.read(tmp_path)
