"""Regret against budget: which checkpoints to fine-tune, by a plan and by fixed orders.

    python -m tests.benchmarks.planning DIRECTORY

DIRECTORY has the published tables, from which three pools are read; the public pool is
docs/data/public_pool.csv, as far as its tasks are complete. A budget is a number of
fine-tunings, or of average ones: with the times of the public pool, an expensive
checkpoint uses more of it. The regret of a budget is how much accuracy the best of the
checkpoints that were fine-tuned lacks to the best of the pool, in points.

    plan            `prediction.planning`: the largest expected gain for its time. On
                    the public pool, learning rates are dropped early, and a
                    fine-tuning may be left after its first part
    plan, complete  the same with complete fine-tunings
    plan, earlier   the plan with the pool's accuracies on its other tasks
    predicted       by predicted accuracy, without updates
    nleep, source_accuracy, parameters
                    by a score
    random          the mean over random orders

All see the accuracies of the first run, and are judged by the mean over runs. For the
public pool, whose learning curves are known, also two searches that see the
accuracy on held-out images every ten steps, and stop a training early:

    halving         successive halving over random checkpoints, with all learning rates
    halving, plan   the same over those with the highest predicted accuracy
    curves          Bayesian optimization: a Gaussian process over learning curves
                    continues the one with the largest expected improvement for its
                    time. It knows nothing of checkpoints or images, and its variances
                    are those of the curves of the task itself, which favors it

The weights of a pool's predictions come from the other pools. Figures are means over
the tasks of a pool, with the mean difference to the plan and its 95 % interval.
"""

import argparse
import dataclasses
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from rankckpt_jax import prediction
from rankckpt_jax.evaluation.table import Table, TaskTable
from rankckpt_jax.prediction import planning
from tests.benchmarks import (
    earlier_tasks,
    planning_curves,
    prediction_pools,
    public_pool,
)
from tests.benchmarks import prediction as evidence

BUDGETS = (1, 2, 3, 5, 8)
RANDOM_ORDERS = 200
DRAWS = 1000
FIXED = ("nleep", "source_accuracy", "parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    args = parser.parse_args()
    pools = prediction_pools.read_pools(args.directory)
    for table in pools:
        # The Hugging Face models have no scores.
        if table.measures:
            others = [pool for pool in pools if pool.name != table.name]
            prior = sum(map(evidence.related, others), prediction.Relations())
            show(table, prior)


def show(table: Table, prior: prediction.Relations) -> None:
    """Print the regrets of a pool, and where the plan would stop."""
    tasks = earlier_tasks.complete_tasks(table)
    if not tasks:
        print(f"{table.name}: no complete task")
        return
    print(f"{table.name}: {len(table.checkpoints)} checkpoints, {len(tasks)} tasks")
    found: dict[str, list[list[float]]] = {}
    stops: dict[str, list[tuple[float, float]]] = {}
    for task in tasks:
        others = tuple(other for other in tasks if other is not task)
        cost = costs(task)
        parts = planning_curves.read_parts(task)
        pool = prediction.candidates(table, task)
        for name, history, of_plan in (
            ("plan", (), parts),
            ("plan, complete", (), {}),
            ("plan, earlier", others, parts),
        ):
            if name == "plan, earlier" and not others:
                continue
            if name == "plan, complete" and not parts:
                continue
            earlier = [dataclasses.replace(table, tasks=history)] if history else []
            predictor = prediction.fit(earlier, prior=prior)
            plan = Plan(predictor, pool, task, cost, of_plan)
            own = [regret_of(plan.run(budget)[0], task) for budget in BUDGETS]
            found.setdefault(name, []).append(own)
            tuned, used = plan.run(math.inf, planning.CONFIDENCE)
            stops.setdefault(name, []).append((used, regret_of(tuned, task)))
        first = prediction.predict(prediction.fit(prior=prior), pool, num_samples=DRAWS)
        predicted = [c.checkpoint for c in first.checkpoints]
        found.setdefault("predicted", []).append(regrets(predicted, task, cost))
        for name in FIXED:
            scores = scores_of(table, task, name)
            if scores:
                # Those without it come last.
                scores = {n: scores.get(n, -math.inf) for n in task.checkpoints}
                order = sorted(scores, key=lambda n: -scores[n])
                found.setdefault(name, []).append(regrets(order, task, cost))
        random = np.random.default_rng(0)
        drawn = [
            regrets(list(random.permutation(task.checkpoints)), task, cost)
            for _ in range(RANDOM_ORDERS)
        ]
        found.setdefault("random", []).append(list(np.mean(drawn, axis=0)))
        curves = planning_curves.read(task)
        if curves:
            search = planning_curves.Search(curves, cost)
            for name, regrets_of in {
                "halving": [search.halve(b, None) for b in BUDGETS],
                "halving, plan": [search.halve(b, predicted) for b in BUDGETS],
                "curves": [search.optimize(b) for b in BUDGETS],
            }.items():
                truth = task.by_name(task.accuracies)
                ends = [
                    np.mean([regret_of({n: truth[n]}, task) for n in names])
                    for names in regrets_of
                ]
                found.setdefault(name, []).append(list(map(float, ends)))
    print(f"{'order':<16}" + "".join(f"{f'budget {b}':>10}" for b in BUDGETS))
    own = np.array(found["plan"])
    for name, rows in found.items():
        values = np.array(rows)
        cells = "".join(f"{x:10.2f}" for x in values.mean(axis=0))
        if name == "plan" or len(values) < len(own):
            more = ""
        else:
            more = earlier_tasks.describe(values[:, 2] - own[:, 2])
            more = f"  budget 3: {more} more"
        print(f"{name:<16}{cells}{more}")
    for name, ends in stops.items():
        used, regret = np.mean(ends, axis=0)
        print(f"{name}: stops after a budget of {used:.1f}, regret {regret:.2f}")


def costs(task: TaskTable) -> Mapping[str, float]:
    """Return the time of each fine-tuning in that of an average one."""
    seconds: dict[str, float] = {}
    for (name, checkpoint, _), line in public_pool.read_table(
        public_pool.TABLE, public_pool.KEY
    ).items():
        if name == task.name:
            # Other work on the machine makes a time longer, never shorter.
            own = float(line["finetune_seconds"])
            seconds[checkpoint] = min(own, seconds.get(checkpoint, own))
    if set(task.checkpoints) - seconds.keys():
        return dict.fromkeys(task.checkpoints, 1.0)
    mean = sum(seconds.values()) / len(seconds)
    return {name: value / mean for name, value in seconds.items()}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan for one task, as `run.planned` follows it.

    Attributes:
      predictor: Earlier tasks.
      pool: The checkpoints.
      task: Their accuracies.
      cost: By checkpoint, the time of a complete sweep.
      parts: By checkpoint, how its fine-tuning goes if it starts with a first part;
        empty for complete sweeps.
    """

    predictor: prediction.Predictor
    pool: list[prediction.Candidate]
    task: TaskTable
    cost: Mapping[str, float]
    parts: Mapping[str, planning_curves.Parts]

    def run(
        self, budget: float, confidence: float = 2.0
    ) -> tuple[dict[str, float], float]:
        """Return the accuracies that are measured within a budget, and the time.

        The first checkpoint is always fine-tuned. The plan goes on as long as a
        confidence of more than 1 is asked for.
        """
        complete = first_run(self.task)
        early: dict[str, prediction.Early] = {}
        measured: dict[str, float] = {}
        used = 0.0
        while True:
            left = {n: self._time_left(n, early) for n in self.cost}
            left = {n: time for n, time in left.items() if n not in measured}
            if measured:
                left = {n: time for n, time in left.items() if used + time <= budget}
            predicted = prediction.predict(
                self.predictor,
                self.pool,
                measured,
                early=early,
                num_test=self.task.num_test,
                num_samples=DRAWS,
            )
            # A plan counts times below a second as one.
            seconds = {name: 1000 * time for name, time in left.items()}
            name = planning.next_step(predicted, seconds, confidence).checkpoint
            if not name:
                return measured, used
            parts = self.parts.get(name)
            if parts is None:
                measured[name] = complete[name]
                used += self.cost[name]
            elif name in early:
                measured[name] = parts.final
                used += self.cost[name] * parts.last
            else:
                early[name] = parts.early
                used += self.cost[name] * parts.first

    def _time_left(self, name: str, early: Mapping[str, prediction.Early]) -> float:
        parts = self.parts.get(name)
        if parts is None:
            return self.cost[name]
        first = 0.0 if name in early else parts.first
        return self.cost[name] * (first + parts.last)


def regrets(
    order: list[str], task: TaskTable, cost: Mapping[str, float]
) -> list[float]:
    """Return the regret of each of BUDGETS in points.

    As in a run, a checkpoint is left out if its time does not fit into what is left.
    The first of an order is always fine-tuned.
    """
    complete = first_run(task)
    result = []
    for budget in BUDGETS:
        left = float(budget)
        tuned: dict[str, float] = {}
        for name in order:
            if cost[name] <= left or not tuned:
                tuned[name] = complete[name]
                left -= cost[name]
        result.append(regret_of(tuned, task))
    return result


def first_run(task: TaskTable) -> dict[str, float]:
    """Return the accuracies of the first fine-tuning, as a user has them."""
    return task.by_name(task.runs[:, 0])


def regret_of(tuned: Mapping[str, float], task: TaskTable) -> float:
    """Return what the best by some accuracies lacks to the best of all, in points.

    Checkpoints are judged by their mean accuracy over all runs.
    """
    truth = task.by_name(task.accuracies)
    best = max(tuned, key=lambda name: tuned[name])
    return 100 * (max(truth.values()) - truth[best])


def scores_of(table: Table, task: TaskTable, name: str) -> Mapping[str, float]:
    """Return a measure, or a property of the checkpoints where it is known."""
    if name in task.scores:
        return task.by_name(task.scores[name])
    return {
        n: c.statics[name] for n, c in table.checkpoints.items() if name in c.statics
    }


if __name__ == "__main__":
    main()
