"""Regret of the predictor after fine-tunings on 0, 1, 2 and 4 earlier tasks.

    python -m tests.benchmarks.earlier_tasks
    python -m tests.benchmarks.earlier_tasks DIRECTORY --counts=0,1,3

The pool is docs/data/public_pool.csv; with DIRECTORY, which has published tables, also
those of three published pools. Each complete task of a pool is predicted from its
scores, and from the accuracies of some of the other complete tasks, as a history would
hold them. Of many possible choices of these, 20 are drawn. A task is complete if it has
an accuracy of every checkpoint of its pool. The weights come from the earlier tasks and
from published pools other than this one. The mean rank on the same earlier tasks, and
NLEEP alone, are stated beside it. Figures are means over tasks; regret is in accuracy
points.
"""

import argparse
import dataclasses
import itertools
import pathlib

import numpy as np

from rankckpt_jax import evaluation, prediction
from rankckpt_jax.evaluation.table import Table, TaskTable
from tests.benchmarks import prediction as evidence
from tests.benchmarks import prediction_pools, public_pool

DRAWS = 20
FIGURES = ("regret@1", "regret@3", "tau")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", type=pathlib.Path)
    parser.add_argument("--counts", default="0,1,2,4")
    args = parser.parse_args()
    counts = [int(count) for count in args.counts.split(",")]
    if args.directory is not None:
        pools = prediction_pools.read_pools(args.directory)
        for table in pools:
            others = [pool for pool in pools if pool.name != table.name]
            prior = sum(map(evidence.related, others), prediction.Relations())
            # The Hugging Face models have no scores, and no complete task.
            if table.measures:
                show(table, counts, prior)
    if not public_pool.TABLE.exists() or prediction_pools.read_public_pool() is None:
        print("public_pool: no complete task yet")
    elif args.directory is None:
        show(prediction_pools.read_public_pool(), counts, None)


def show(table: Table, counts: list[int], prior: prediction.Relations | None) -> None:
    """Print the figures of a pool; `prior` is that of `prediction.fit`."""
    tasks = complete_tasks(table)
    names = ", ".join(task.name for task in tasks)
    print(
        f"{table.name}: {len(table.checkpoints)} checkpoints; complete tasks: {names}"
    )
    print(f"{'earlier':>7}  {'order':<10}" + "".join(f"{f:>10}" for f in FIGURES))
    first = None
    for count in counts:
        if count >= len(tasks):
            print(f"{count:>7}  needs {count + 1} complete tasks")
            continue
        found = judge(table, tasks, count, prior)
        for name, values in found.items():
            cells = "".join(f"{x:10.2f}" for x in values.mean(axis=0))
            print(f"{count:>7}  {name:<10}{cells}")
        own = found["predictor"][:, 0]
        if first is None:
            first, first_count = own, count
        else:
            gain = describe(first - own)
            print(f"{'':>7}  regret@1 less than after {first_count}: {gain}")
        if "mean rank" in found:
            more = describe(found["predictor"][:, 2] - found["mean rank"][:, 2])
            print(f"{'':>7}  tau more than that of the mean rank: {more}")


def complete_tasks(table: Table) -> list[TaskTable]:
    """Return the tasks with an accuracy of every checkpoint."""
    names = table.checkpoints.keys()
    return [task for task in table.tasks if names == set(task.checkpoints)]


def judge(
    table: Table,
    tasks: list[TaskTable],
    count: int,
    prior: prediction.Relations | None = None,
) -> dict[str, np.ndarray]:
    """Predict each task after `count` others.

    Returns:
      By the name of an order, FIGURES for each task, float64 [T, 3].
    """
    by_order: dict[str, list[np.ndarray]] = {}
    for task in tasks:
        others = [other for other in tasks if other is not task]
        choices = list(itertools.combinations(others, count))
        if len(choices) > DRAWS:
            drawn = np.random.default_rng(0).permutation(len(choices))[:DRAWS]
            choices = [choices[i] for i in drawn]
        of_task: dict[str, list[list[float]]] = {}
        for earlier in choices:
            for name, scores in orders(table, task, earlier, prior).items():
                of_task.setdefault(name, []).append(figures(scores, task))
        for name, values in of_task.items():
            by_order.setdefault(name, []).append(np.mean(values, axis=0))
    # An order that some task lacks is left out.
    return {n: np.array(v) for n, v in by_order.items() if len(v) == len(tasks)}


def orders(
    table: Table,
    task: TaskTable,
    earlier: tuple[TaskTable, ...],
    prior: prediction.Relations | None,
) -> dict[str, dict[str, float]]:
    """Return the scores of a task's checkpoints by the predictor and its rivals."""
    history = [dataclasses.replace(table, tasks=earlier)] if earlier else []
    predicted = prediction.predict(
        prediction.fit(history, prior=prior),
        prediction.candidates(table, task),
        num_test=task.num_test,
        num_samples=100,
    )
    result = {
        "predictor": {c.checkpoint: c.standardized for c in predicted.checkpoints}
    }
    if earlier:
        known = {t.name: t.by_name(t.accuracies) for t in earlier}
        result["mean rank"] = evaluation.mean_rank(known)
    elif "nleep" in table.measures:
        result["nleep"] = task.by_name(task.scores["nleep"])
    return result


def figures(scores: dict[str, float], task: TaskTable) -> list[float]:
    """Return FIGURES of scores, in points for regret."""
    names = [name for name in task.checkpoints if name in scores]
    accuracies = task.by_name(task.accuracies)
    given = [scores[name] for name in names]
    true = [accuracies[name] for name in names]
    points = [100 * evaluation.regret(given, true, k).value for k in (1, 3)]
    return [*points, evaluation.score_ranking(given, true)["kendall"]]


def describe(gains: np.ndarray) -> str:
    """Return the mean over tasks, with its 95 % interval if there are enough."""
    text = f"{gains.mean():+.2f}"
    if len(gains) < evaluation.MIN_UNITS:
        return f"{text} (too few tasks for an interval)"
    low, high = evaluation.interval_over_tasks(gains)
    return f"{text} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main()
