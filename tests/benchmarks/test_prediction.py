import dataclasses

import numpy as np
import pytest

from rankckpt_jax import evaluation
from tests.benchmarks import prediction as benchmark
from tests.benchmarks import prediction_pools
from tests.prediction import simulated


@pytest.fixture(scope="module")
def pools():
    """Two pools of three tasks, which have NLEEP and the source accuracy."""
    return tuple(simulated.make_table(3, 8, seed) for seed in range(2))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("resnet50v2", "resnet"),
        ("efficientnetb0", "efficientnet"),
        ("efficientnet_b0", "efficientnet"),
        ("mobilenetv3", "mobilenet"),
        ("mobilenetv2_050", "mobilenet"),
        ("mnasnet1_0", "mnasnet"),
        ("vit_small_patch16_224", "vit"),
        ("nasnetmobile", "nasnet"),
    ],
)
def test_family_is_the_name_without_version_and_size(name, family):
    assert prediction_pools.family(name) == family


def test_read_public_pool_has_complete_tasks_only(tmp_path):
    names = [
        n["checkpoint"]
        for n in benchmark.public_pool.read_lines(benchmark.public_pool.NETWORKS)
    ]
    lines = ["task,checkpoint,seed,accuracy,learning_rate,nleep,parameters"]
    for task, known in (("all", names), ("some", names[:5])):
        for i, name in enumerate(known):
            lines.append(f"{task},{name},0,0.{50 + i},0.01,{i},{1000 + i}")
    path = tmp_path / "public_pool.csv"
    path.write_text("\n".join(lines))
    table = prediction_pools.read_public_pool(path)
    assert [task.name for task in table.tasks] == ["all"]
    assert table.measures == ("nleep",)
    # A file that was just begun.
    path.write_text("\n".join([lines[0], lines[-1]]))
    assert prediction_pools.read_public_pool(path) is None


@pytest.mark.parametrize("way", benchmark.WAYS)
def test_a_task_is_predicted_without_its_accuracies(pools, way):
    table = pools[0]
    task = table.tasks[0]
    predictor = benchmark.make_predictor(pools, table, task.name, way, (100.0, 0.5))
    reversed_task = dataclasses.replace(task, runs=task.runs[::-1])
    changed = dataclasses.replace(table, tasks=(reversed_task, *table.tasks[1:]))
    again = benchmark.make_predictor(
        (changed, pools[1]), changed, task.name, way, (100.0, 0.5)
    )
    assert again.relations == predictor.relations
    assert len(predictor.records) == len(again.records) == (0 if way == "lopo" else 2)
    assert task.name not in {record.task for record in predictor.records}


def test_evaluate_compares_with_baselines_that_know_as_much(pools, capsys):
    results = [
        benchmark.evaluate(pools, pools[0], pools[0].tasks[0], way)
        for way in benchmark.WAYS
    ]
    known = [set(result.figures) for result in results]
    assert known[0] == known[1] == known[2] | {benchmark.ELSEWHERE}
    assert all(len(result.covered) == 8 for result in results)
    assert all(len(result.covered_after_three) == 5 for result in results)
    assert sum(hit for _, hit in results[0].probabilities) == 1
    benchmark.print_results(results)
    printed = capsys.readouterr().out
    assert all(words[1:] in printed for words in benchmark.WAYS.values())


def test_figures_of_a_constant_order_are_those_of_a_random_one(pools):
    task = pools[0].tasks[0]
    flat = benchmark.figures(task, dict.fromkeys(task.checkpoints, 1.0))
    random = evaluation.regret(np.zeros(8), task.accuracies).random
    assert flat["kendall"] == 0
    assert flat["regret@1"] == pytest.approx(100 * random)
