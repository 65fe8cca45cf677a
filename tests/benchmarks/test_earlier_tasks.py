"""Earlier tasks help where checkpoints keep their order from task to task."""

import numpy as np

from rankckpt_jax import evaluation
from tests.benchmarks import earlier_tasks


def make_table():
    """Five tasks with one order of twelve checkpoints, and a measure of noise."""
    random = np.random.default_rng(0)
    lines = ["task,checkpoint,accuracy,nleep"]
    for t in range(5):
        for c in range(12):
            accuracy = 0.5 + 0.02 * c + 0.005 * random.normal()
            lines.append(f"t{t},c{c},{accuracy},{random.normal()}")
    lines.append("partial,c0,0.5,1\npartial,c1,0.5,1")
    return evaluation.parse_table("\n".join(lines))


def test_judge_finds_less_regret_after_earlier_tasks():
    table = make_table()
    tasks = earlier_tasks.complete_tasks(table)
    assert [task.name for task in tasks] == [f"t{i}" for i in range(5)]
    without = earlier_tasks.judge(table, tasks, 0)["predictor"]
    after = earlier_tasks.judge(table, tasks, 4)
    assert without.shape == after["predictor"].shape == (5, 3)
    # Noise between tasks is a quarter of the distance between neighbors.
    assert after["predictor"][:, 2].min() > 0.9 > without[:, 2].mean()
    assert after["predictor"][:, 0].mean() < 1 < without[:, 0].mean()
    assert after["mean rank"][:, 2].min() > 0.9


def test_show_prints_what_exists(capsys):
    table = evaluation.parse_table(
        "task,checkpoint,accuracy,nleep\na,x,0.5,1\na,y,0.6,2\n", name="small"
    )
    earlier_tasks.show(table, [0, 1], None)
    text = capsys.readouterr().out
    assert "small: 2 checkpoints; complete tasks: a\n" in text
    assert "1  needs 2 complete tasks" in text
