"""The simulated plan finds the best checkpoint that earlier tasks name."""

import numpy as np
import pytest

from rankckpt_jax import evaluation, prediction
from tests.benchmarks import planning


@pytest.fixture(scope="module")
def table():
    """Four tasks with one order of ten checkpoints, and a measure of noise."""
    random = np.random.default_rng(0)
    lines = ["task,checkpoint,accuracy,nleep"]
    for t in range(4):
        for c in range(10):
            accuracy = 0.5 + 0.03 * c + 0.003 * random.normal()
            lines.append(f"t{t},c{c},{accuracy},{random.normal()}")
    return evaluation.parse_table("\n".join(lines), name="simulated")


def test_show_prints_less_regret_with_earlier_tasks(table, capsys):
    planning.show(table, prediction.Relations())
    text = capsys.readouterr().out
    lines = {line[:16].strip(): line[16:].split()[:5] for line in text.splitlines()}
    earlier, random = (
        [float(x) for x in lines[name]] for name in ("plan, earlier", "random")
    )
    assert max(earlier) < 1 < random[0]
    assert "plan, earlier: stops after" in text


def test_expensive_checkpoints_use_more_of_the_budget(table):
    [task, *_] = table.tasks
    order = ["c9", "c8", "c7"]
    free = planning.regrets(order, task, dict.fromkeys(order, 1.0))
    assert free == pytest.approx([0.0] * 5)
    # The first is always fine-tuned; the second does not fit into a budget of 1.
    found = planning.regrets(order[1:], task, {"c8": 1.0, "c7": 2.0})
    best = max(task.accuracies)
    expected = 100 * (best - task.by_name(task.accuracies)["c8"])
    assert found == pytest.approx([expected] * 5)
