"""How well accuracies are predicted out of sample, and the published prior.

    python -m tests.benchmarks.prediction DIRECTORY
    python -m tests.benchmarks.prediction DIRECTORY --write

reads published tables in DIRECTORY and docs/data/public_pool.csv as far as its tasks
are complete, and prints the tables of docs/predicting.md. `--write` writes
rankckpt_jax/prediction/published.json, the prior that users have.

Each task is predicted in three ways: from all other tasks; from the tasks of other
pools, with the accuracies of its own pool on other tasks as history; and from other
pools alone, as for a new user. The two settings are always chosen on other pools.
"""

import argparse
import collections
import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from rankckpt_jax import evaluation, prediction
from rankckpt_jax.evaluation import Table, TaskTable
from rankckpt_jax.prediction import published, standardize
from rankckpt_jax.prediction.belief import believe
from rankckpt_jax.prediction.candidates import inputs_of
from rankckpt_jax.prediction.predictor import Predictor, records_of
from rankckpt_jax.prediction.relations import Relations, build_model, relations_of
from tests.benchmarks import prediction_pools, public_pool

PRIOR = pathlib.Path(prediction.__file__).with_name(published.FILE)
SETTINGS = tuple(itertools.product((20.0, 50.0, 100.0, 200.0), (0.1, 0.5)))
"""Shrinkage and ridge that are tried."""

KERAS = "published_scores_stable_transfer.csv"

WAYS = {
    "loto": "one task left out",
    "history": "pool left out, own results on its other tasks",
    "lopo": "pool left out, no earlier results",
}

PREDICTOR, NLEEP, ELSEWHERE = "predictor", "NLEEP", "mean rank on other tasks"
SOURCE, BEST, RANKS = "ImageNet accuracy", "best measure elsewhere", "mean of ranks"
LEFT = ("kendall", "rel@1", "regret@1", "regret@3")


@dataclasses.dataclass(frozen=True)
class Result:
    """The prediction of one task.

    Attributes:
      pool: The pool.
      task: The task.
      way: A key of `WAYS`.
      figures: By method, the value of each of `LEFT`.
      covered: By checkpoint, whether the 80 % interval of its standardized accuracy
        has the measured value.
      covered_after_three: The same for the interval of the accuracy itself, given the
        accuracies of the first three, for the others.
      widths: Widths of the latter.
      probabilities: By checkpoint, P(best) and whether it is the best.
    """

    pool: str
    task: str
    way: str
    figures: Mapping[str, Mapping[str, float]]
    covered: Sequence[bool]
    covered_after_three: Sequence[bool]
    widths: Sequence[float]
    probabilities: Sequence[tuple[float, bool]]


@functools.cache
def related(table: Table) -> Relations:
    """Return the relations of a table, computed once."""
    return relations_of(table)


@functools.cache
def without(table: Table, task: str) -> Table:
    """Return a table without a task."""
    tasks = tuple(t for t in table.tasks if t.name != task)
    return dataclasses.replace(table, tasks=tasks)


def make_predictor(
    pools: Sequence[Table],
    table: Table,
    task: str,
    way: str,
    settings: tuple[float, float] | None = None,
) -> Predictor:
    """Return the predictor of a task that has not seen it; see `WAYS`.

    Without settings, those are used that were chosen on the other pools.
    """
    others = [pool for pool in pools if pool.name != table.name]
    rest = without(table, task)
    seen = [*others, rest] if way == "loto" else others
    relations = sum((related(pool) for pool in seen), Relations())
    records = () if way == "lopo" else records_of([rest])
    if settings is None:
        settings = choose_settings(tuple(others))
    return Predictor(relations, records, *settings)


@functools.cache
def choose_settings(pools: Sequence[Table]) -> tuple[float, float]:
    """Return the settings with the best mean tau when each task is left out.

    Tasks with scores count, each with and without earlier results.
    """
    means = {}
    for settings in SETTINGS:
        taus = [
            figures(task, predict_order(pools, table, task, way, settings))["kendall"]
            for table in pools
            if table.measures
            for task in table.tasks
            for way in ("loto", "lopo")
        ]
        means[settings] = np.mean(taus)
    return max(means, key=means.__getitem__)


def predict_order(
    pools: Sequence[Table],
    table: Table,
    task: TaskTable,
    way: str,
    settings: tuple[float, float],
) -> dict[str, float]:
    """Return the standardized predictions of a task, without intervals."""
    predictor = make_predictor(pools, table, task.name, way, settings)
    pool = prediction.candidates(table, task)
    model = build_model(predictor.relations, inputs_of(pool), *settings)
    mean = believe(model, pool, predictor.records).mean
    return dict(zip(task.checkpoints, mean, strict=True))


def figures(task: TaskTable, scores: Mapping[str, float]) -> dict[str, float]:
    """Return each of `LEFT`; a checkpoint without a score has the mean score."""
    accuracies = task.by_name(task.accuracies)
    mean = float(np.mean(list(scores.values())))
    filled = {name: scores.get(name, mean) for name in accuracies}
    values = evaluation.score_ranking(filled, accuracies)
    regrets = {k: 100 * evaluation.regret(filled, accuracies, k).value for k in (1, 3)}
    kendall, rel = values["kendall"], values["rel@1"]
    # An order that is constant has no tau. It ranks as a random one does.
    return dict(
        zip(
            LEFT,
            (0.0 if math.isnan(kendall) else kendall, rel, regrets[1], regrets[3]),
            strict=True,
        )
    )


def baselines(
    pools: Sequence[Table], table: Table, task: TaskTable, way: str
) -> dict[str, dict[str, float]]:
    """Return the scores of the baselines that know as much as the predictor."""
    scores = {m: task.by_name(task.scores[m]) for m in table.measures}
    result = {}
    if "nleep" in scores:
        result[NLEEP] = scores["nleep"]
    source = task.by_name(table.statics(task, "source_accuracy"))
    if len(source) > 1:
        result[SOURCE] = source
    if way != "lopo" and len(table.tasks) > 1:
        accuracies = {t.name: t.by_name(t.accuracies) for t in table.tasks}
        result[ELSEWHERE] = evaluation.mean_rank_elsewhere(accuracies)[task.name]
    seen = [without(table, task.name)] if way == "loto" else []
    seen += [pool for pool in pools if pool.name != table.name]
    taus: dict[str, list[float]] = collections.defaultdict(list)
    # Measures are compared on the tasks of the own pool, if the predictor has seen it.
    for pool in seen[:1] if way == "loto" and len(table.tasks) > 1 else seen:
        for other in pool.tasks:
            for m in set(pool.measures) & set(scores):
                scored = other.by_name(other.scores[m])
                taus[m].append(figures(other, scored)["kendall"])
    if taus:
        result[BEST] = scores[max(sorted(taus), key=lambda m: np.mean(taus[m]))]
    inputs = [
        *scores.values(),
        *(result[k] for k in (SOURCE, ELSEWHERE) if k in result),
    ]
    if inputs:
        result[RANKS] = mean_of_ranks(task.checkpoints, inputs)
    return result


def mean_of_ranks(
    names: Sequence[str], inputs: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Return the mean rank over inputs; a value that is missing has the middle rank."""
    from scipy.stats import rankdata

    rows = []
    for values in inputs:
        middle = float(np.median(list(values.values())))
        rows.append(rankdata([values.get(name, middle) for name in names]))
    return dict(zip(names, np.mean(rows, axis=0), strict=True))


def evaluate(pools: Sequence[Table], table: Table, task: TaskTable, way: str) -> Result:
    """Predict one task and compare with its accuracies."""
    predictor = make_predictor(pools, table, task.name, way)
    pool = prediction.candidates(table, task)
    predicted = prediction.predict(predictor, pool, num_samples=4000)
    accuracies = task.by_name(task.accuracies)
    y, _ = standardize.standardize(standardize.logit(task.accuracies, task.num_test))
    standardized = dict(zip(task.checkpoints, y, strict=True))
    best = max(accuracies.values())
    scores = {PREDICTOR: {c.checkpoint: c.standardized for c in predicted.checkpoints}}
    scores |= baselines(pools, table, task, way)
    first = [c.checkpoint for c in predicted.checkpoints[:3]]
    after = prediction.predict(
        predictor, pool, {name: accuracies[name] for name in first}, num_samples=4000
    )
    left = [c for c in after.checkpoints if c.measured is None]
    return Result(
        table.name,
        task.name,
        way,
        {name: figures(task, values) for name, values in scores.items()},
        [
            is_inside(standardized[c.checkpoint], c.standardized_interval)
            for c in predicted.checkpoints
        ],
        [is_inside(accuracies[c.checkpoint], c.interval) for c in left],
        [c.interval.high - c.interval.low for c in left],
        [
            (c.probability_best, accuracies[c.checkpoint] == best)
            for c in predicted.checkpoints
        ],
    )


def is_inside(value: float, interval: evaluation.Interval) -> bool:
    return interval.low <= value <= interval.high


def write_prior(directory: pathlib.Path, pools: Sequence[Table]) -> None:
    """Write the relations over all pools, with their sources."""
    data = {
        "made_by": "python -m tests.benchmarks.prediction DIRECTORY --write",
        "sources": {
            "keras": "google-research/google-research@4963f325 stable_transfer",
            "timm": "VirtualSpaceman/tmlr-transferability-benchmark@a7808700",
            "torchvision": "zhangyikaii/Model-Spider@d2a53e4d",
            "hugging_face": "zLizy/transferability_graph@9c220479, 25 epochs on 800 "
            "images",
            "levels": "keras: accuracy of a linear classifier on frozen features",
            "public_pool": "docs/data/public_pool.csv, its complete tasks",
        },
        "tasks": {pool.name: [task.name for task in pool.tasks] for pool in pools},
        "settings": choose_settings(tuple(pools)),
        "relations": published.to_plain(all_relations(directory, pools)),
    }
    PRIOR.write_text(json.dumps(data, indent=1) + "\n")


def all_relations(directory: pathlib.Path, pools: Sequence[Table]) -> Relations:
    """Return the relations over all pools, with the level of linear classifiers."""
    relations = sum((related(pool) for pool in pools), Relations())
    levels = relations_of(with_linear(directory, pools[0])).levels
    return relations + Relations(levels=levels)


def with_linear(directory: pathlib.Path, keras: Table) -> Table:
    """Return the Keras pool with the accuracy of a linear classifier as a score.

    It is not among the measures of the table, so only the level is fitted to it.
    """
    frozen: dict[str, dict[str, float]] = collections.defaultdict(dict)
    for line in public_pool.read_lines(directory / KERAS):
        frozen[line["task"]][line["checkpoint"]] = float(line["accuracy_frozen"])
    tasks = []
    for task in keras.tasks:
        linear = np.array([frozen[task.name][name] for name in task.checkpoints])
        scores = {**task.scores, "linear": linear}
        tasks.append(dataclasses.replace(task, scores=scores))
    return dataclasses.replace(keras, tasks=tuple(tasks))


def print_level(directory: pathlib.Path, pools: Sequence[Table]) -> None:
    """Print the coverage of accuracies whose level follows from linear classifiers."""
    table = with_linear(directory, pools[0])
    covered, widths = [], []
    for task in table.tasks:
        predictor = make_predictor(pools, pools[0], task.name, "loto")
        levels = relations_of(without(table, task.name)).levels
        relations = predictor.relations + Relations(levels=levels)
        predictor = dataclasses.replace(predictor, relations=relations)
        pool = prediction.candidates(table, task)
        accuracies = task.by_name(task.accuracies)
        for c in prediction.predict(predictor, pool, num_samples=4000).checkpoints:
            covered.append(is_inside(accuracies[c.checkpoint], c.interval))
            widths.append(100 * (c.interval.high - c.interval.low))
    print("\n### Level from linear classifiers\n")
    print(f"Coverage {np.mean(covered):.2f}, mean width {np.mean(widths):.1f} points.")


def print_results(results: Sequence[Result]) -> None:
    """Print the tables of docs/predicting.md."""
    for way, words in WAYS.items():
        print(f"\n### {words[0].upper()}{words[1:]}\n")
        of_way = [r for r in results if r.way == way]
        print_figures(of_way)
        print_calibration(of_way)


def print_figures(results: Sequence[Result]) -> None:
    """Print the figures of each method, and how the predictor differs from it."""
    methods = [PREDICTOR, ELSEWHERE, SOURCE, BEST, NLEEP, RANKS]
    pools = dict.fromkeys(r.pool for r in results)
    head = "Pool | Method | Tasks | tau | Rel@1 | Regret@1 | Regret@3"
    print(f"| {head} | Predictor's tau minus it |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |")
    scored = [r for r in results if NLEEP in r.figures]
    groups = {"all with scores": scored}
    groups |= {pool: [r for r in results if r.pool == pool] for pool in pools}
    for group, rows in groups.items():
        for method in methods:
            known = [r for r in rows if method in r.figures]
            if not known:
                continue
            means = [np.mean([r.figures[method][k] for r in known]) for k in LEFT]
            text = " | ".join(
                f"{x:.{d}f}" for x, d in zip(means, (2, 3, 2, 2), strict=True)
            )
            versus = "" if method == PREDICTOR else difference(known, method)
            print(f"| {group} | {method} | {len(known)} | {text} | {versus} |")


def difference(results: Sequence[Result], method: str) -> str:
    """Return the mean difference of tau, its interval over tasks, and its p-value."""
    one, two = (
        {f"{r.pool}/{r.task}": r.figures[m]["kendall"] for r in results}
        for m in (PREDICTOR, method)
    )
    compared = evaluation.compare_over_tasks(one, two)
    low, high = evaluation.interval_over_tasks({k: one[k] - two[k] for k in one})
    interval = "" if math.isnan(low) else f" [{low:+.2f}, {high:+.2f}]"
    return f"{compared.difference:+.2f}{interval} ({compared.p_value:.2g})"


def print_calibration(results: Sequence[Result]) -> None:
    """Print coverage by pool and the calibration of P(best)."""
    print("\n| Pool | Coverage, standardized | Coverage after three | Mean width |")
    print("| --- | ---: | ---: | ---: |")
    for pool in dict.fromkeys(r.pool for r in results):
        rows = [r for r in results if r.pool == pool]
        means = [
            np.mean([x for r in rows for x in getattr(r, name)])
            for name in ("covered", "covered_after_three", "widths")
        ]
        print(f"| {pool} | {means[0]:.2f} | {means[1]:.2f} | {100 * means[2]:.1f} |")
    pairs = [p for r in results if NLEEP in r.figures for p in r.probabilities]
    print("\n| P(best) | Mean | Were the best | Checkpoints |")
    print("| --- | ---: | ---: | ---: |")
    edges = (0.0, 0.05, 0.15, 0.3, 0.5, 1.01)
    for low, high in itertools.pairwise(edges):
        inside = [(p, hit) for p, hit in pairs if low <= p < high]
        if inside:
            mean, share = np.mean(inside, axis=0)
            label = f"{low:.2f} to {min(high, 1):.2f}"
            print(f"| {label} | {mean:.2f} | {share:.2f} | {len(inside)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--write", action="store_true", help="write the prior")
    args = parser.parse_args()
    pools = prediction_pools.read_pools(args.directory)
    if args.write:
        write_prior(args.directory, pools)
        return
    print_results(
        [
            evaluate(pools, table, task, way)
            for way in WAYS
            for table in pools
            for task in table.tasks
        ]
    )
    print_level(args.directory, pools)


if __name__ == "__main__":
    main()
