"""The judgment of a table, compared with its parts and with SciPy."""

import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError
from rankckpt_jax.evaluation import __main__ as command
from tests import simulated_scores
from tests.benchmarks import published_agreement

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "scores"


@pytest.fixture(scope="module")
def judged_text():
    return simulated_scores.make_text()


@pytest.fixture(scope="module")
def table(judged_text):
    return evaluation.parse_table(judged_text, name="simulated")


@pytest.fixture(scope="module")
def judgment(table):
    return evaluation.judge(table)


def test_judge_gives_means_over_tasks_of_scipys_correlations(table, judgment):
    for measure in ("nleep", "leep"):
        figures = judgment.measure(measure).figures
        for key, correlation in {
            "kendall": scipy.stats.kendalltau,
            "spearman": scipy.stats.spearmanr,
            "pearson": scipy.stats.pearsonr,
            "weighted_kendall": scipy.stats.weightedtau,
        }.items():
            values = [
                correlation(task.scores[measure], task.accuracies).statistic
                for task in table.tasks
            ]
            # Both sum in float64, in another order.
            assert figures[key].value == pytest.approx(np.mean(values), rel=1e-12)
        lost = [
            task.accuracies.max() - task.accuracies[np.argmax(task.scores[measure])]
            for task in table.tasks
        ]
        assert figures["regret@1"].value == pytest.approx(np.mean(lost), rel=1e-12)
        random = [
            task.accuracies.max() - task.accuracies.mean() for task in table.tasks
        ]
        assert figures["regret@1"].random == pytest.approx(np.mean(random), rel=1e-12)


def test_judge_orders_measures_and_names_default_and_baseline(judgment):
    taus = [measure.kendall for measure in judgment.measures]
    assert taus == sorted(taus, reverse=True)
    assert judgment.default == "nleep"
    names = [baseline.name for baseline in judgment.baselines]
    assert sorted(names) == [
        "feature dimension",
        evaluation.ELSEWHERE,
        "parameters",
        "source accuracy",
    ]
    assert judgment.best_baseline == names[0]
    assert judgment.criterion == "source accuracy"
    wins = sum(measure.num_won for measure in judgment.measures)
    # Each task has a winner; the simulated scores do not tie.
    assert wins == len(judgment.table.tasks)


def test_interval_of_the_mean_tau_leaves_families_out_of_all_tasks(table, judgment):
    names = table.tasks[0].checkpoints
    families = [table.checkpoints[name].family for name in names]

    def mean_tau(kept):
        taus = [
            scipy.stats.kendalltau(task.scores["leep"][kept], task.accuracies[kept])
            for task in table.tasks
        ]
        return np.mean([tau.statistic for tau in taus])

    codes = [sorted(set(families)).index(family) for family in families]
    expected = evaluation.jackknife(mean_tau, codes)
    found = judgment.measure("leep").figures["kendall"].pool
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_versus_is_the_paired_difference_over_tasks(judgment):
    one, other = judgment.measure("leep"), judgment.measure("nleep")
    taus = [
        {task: agreement.values["kendall"] for task, agreement in row.by_task.items()}
        for row in (one, other)
    ]
    (versus,) = [v for v in one.versus if v.other == "nleep"]
    # The two computations of tau round differently.
    assert versus.over_tasks == pytest.approx(evaluation.compare_over_tasks(*taus))
    assert versus.pool.low < versus.over_tasks.difference < versus.pool.high
    assert versus.over_tasks.p_value <= versus.adjusted <= 1


def test_judge_uses_every_column(table, judgment):
    nleep = judgment.measure("nleep")
    agreement = nleep.by_task["task0"]
    assert (agreement.n, agreement.num_families) == (12, 6)
    tau, pairs = agreement.resolvable
    assert -1 <= tau <= 1 and 0 < pairs < 66
    # 12 checkpoints: 0 to 6 are dropped.
    assert [point.num_dropped for point in agreement.dropping] == list(range(7))
    assert not any(math.isnan(point.ceiling) for point in agreement.dropping)
    assert set(judgment.ceilings) == {task.name for task in table.tasks}
    assert judgment.ceiling("kendall") < judgment.ceiling("kendall_mean") < 1
    assert set(nleep.within) == {"size", "family", "group"}
    assert set(nleep.within["group"].by_group) == {"cnn", "vit"}
    assert set(nleep.without_family) == set(table.families)
    assert nleep.seconds == pytest.approx(12.0)
    assert not math.isnan(nleep.p_value_in_families)


def test_judge_without_optional_columns():
    lines = ["task,checkpoint,accuracy,m"]
    lines += [f"t,c{i},{0.5 + i / 100},{i * 7 % 10}" for i in range(10)]
    judgment = evaluation.judge(evaluation.parse_table("\n".join(lines)))
    assert judgment.baselines == () and judgment.best_baseline == ""
    assert judgment.ceilings == {} and math.isnan(judgment.dispersion)
    (measure,) = judgment.measures
    expected = scipy.stats.kendalltau([i * 7 % 10 for i in range(10)], range(10))
    assert measure.kendall == pytest.approx(expected.statistic)
    # One task has an interval for other checkpoints, and none for other tasks.
    figure = measure.figures["kendall"]
    assert figure.pool.low < figure.value < figure.pool.high
    assert math.isnan(figure.tasks.low)
    assert math.isnan(measure.figures["regret@1_other_run"].value)


def test_missing_scores_are_compared_on_common_checkpoints():
    lines = ["task,checkpoint,accuracy,nleep,part,none"]
    for i in range(8):
        part = "" if i < 3 else i
        lines.append(f"t,c{i},{0.5 + i / 100},{(i * 3) % 8},{part},")
    judgment = evaluation.judge(evaluation.parse_table("\n".join(lines)))
    # A measure without any score is only named in the notes.
    assert [measure.name for measure in judgment.measures] == ["part", "nleep"]
    assert "t: none has no score." in judgment.table.notes
    part = judgment.measure("part")
    assert part.by_task["t"].n == 5
    expected = scipy.stats.kendalltau([(i * 3) % 8 for i in range(3, 8)], range(3, 8))
    difference = part.versus[0].over_tasks.difference
    assert difference == pytest.approx(1 - expected.statistic)


def test_judge_refuses_a_table_without_two_scores():
    text = "task,checkpoint,accuracy,m\nt,a,0.5,1\nt,b,0.6,\n"
    with pytest.raises(InputError, match="No measure can be judged"):
        evaluation.judge(evaluation.parse_table(text))


def test_judge_gives_the_published_agreement_of_an_excerpt():
    judgment = evaluation.judge(
        evaluation.read_table(GOLDEN / "model_spider_excerpt.csv")
    )
    known = {
        (row.task, row.measure): row.kendall
        for row in published_agreement.read()
        if row.pool == "torchvision"
    }
    for name in ("NLEEP", "LogME", "GBC"):
        measure = judgment.measure(name)
        assert set(measure.by_task) == {"DTD", "Pet"}
        for task, agreement in measure.by_task.items():
            # The committed file has four digits.
            expected = known[task, name.lower()]
            assert agreement.values["kendall"] == pytest.approx(expected, abs=5.1e-5)


@pytest.mark.parametrize("pool", published_agreement.TABLES, ids=lambda t: t.pool)
def test_judge_gives_the_published_agreement(shared, pool):
    judgment = evaluation.judge(evaluation.read_table(shared / "data" / pool.file))
    known = {
        (row.task, row.measure): row.kendall
        for row in published_agreement.read()
        if row.pool == pool.pool
    }
    names = {name: f"other: {name}" for name in judgment.table.measures} | pool.names
    names[evaluation.ELSEWHERE] = evaluation.ELSEWHERE
    found = {
        (task, names[row.name]): agreement.values["kendall"]
        for row in judgment.all_rows
        if row.name in names
        for task, agreement in row.by_task.items()
    }
    assert len(found) > 40
    for key, tau in found.items():
        assert tau == pytest.approx(known[key], abs=5.1e-5), key


def test_main_prints_and_writes_beside_the_file(tmp_path, capsys, judged_text):
    path = tmp_path / "mine.csv"
    path.write_text(judged_text)
    assert command.main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("mine: 3 measures, 12 checkpoints, 6 tasks\n")
    assert str(tmp_path / "mine_judgment.html") in printed
    assert command.main([str(path), "--output", str(tmp_path / "new")]) == 0
    for folder in tmp_path, tmp_path / "new":
        written = {p.name for p in folder.iterdir() if "judgment" in p.name}
        assert written == {f"mine_judgment.{end}" for end in ("html", "csv", "json")}


def test_main_returns_2_and_names_the_line_of_unusable_input(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    path.write_text("task,checkpoint,accuracy,m\na,b,high,2\n")
    assert command.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert "mine.csv, line 2, column 'accuracy'" in error and "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["mine.csv"]


def test_import_of_evaluation_is_light():
    code = "import sys, rankckpt_jax.evaluation; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"jax", "scipy", "etils", "jinja2", "matplotlib"}
