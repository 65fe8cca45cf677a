"""Kendall's tau between published scores and published accuracies.

    python -m tests.benchmarks.published_agreement DIRECTORY

reads three published tables of scores in DIRECTORY, evaluates each measure on each task
with this package, and writes docs/data/published_agreement.csv. `Measure.evidence` and
docs/choosing-a-measure.md quote its means. Two baselines are added: the accuracy on
ImageNet (docs/data/imagenet_accuracies.csv), and the mean rank by accuracy on the other
tasks of the pool.
"""

import argparse
import collections
import csv
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from rankckpt_jax import evaluation

DATA = pathlib.Path(__file__).parents[2] / "docs" / "data"
RESULT = DATA / "published_agreement.csv"

ELSEWHERE = evaluation.ELSEWHERE
"""The baseline of the mean rank on other tasks; the measure `static` can read it."""

SOURCE = "source_accuracy"


@dataclasses.dataclass(frozen=True)
class Table:
    """A published table of scores.

    Attributes:
      pool: Its checkpoints in a word.
      file: Its file name.
      names: This package's names of its measures. A measure without one is defined
        differently, is not specified, or does not exist here.
    """

    pool: str
    file: str
    names: Mapping[str, str]


_SAME = {name: name for name in ("leep", "nleep", "logme", "gbc")}

TABLES = (
    Table("keras", "published_scores_stable_transfer.csv", _SAME),
    Table(
        "timm",
        "published_scores_tmlr.csv",
        {
            **_SAME,
            **{name: name for name in ("nce", "parc", "sfda", "pactran", "ncti")},
            "hscore": "h_score",
            "reg_hscore": "regularized_h_score",
        },
    ),
    Table(
        "torchvision",
        "published_scores_model_spider.csv",
        {
            "LEEP": "leep",
            "NLEEP": "nleep",
            "LogME": "logme",
            "GBC": "gbc",
            "NCE": "nce",
            "H-Score": "h_score",
        },
    ),
)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The agreement of one measure on one task.

    Attributes:
      pool: The pool of checkpoints.
      task: The task.
      measure: This package's name of the measure, its published name after "other:",
        or ELSEWHERE.
      num_checkpoints: The number of checkpoints.
      kendall: Kendall's tau-b between scores and accuracies, to four digits.
    """

    pool: str
    task: str
    measure: str
    num_checkpoints: int
    kendall: float


def read_lines(path: pathlib.Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read(path: pathlib.Path = RESULT) -> list[Agreement]:
    """Read the committed result."""
    return [
        Agreement(
            line["pool"],
            line["task"],
            line["measure"],
            int(line["num_checkpoints"]),
            float(line["kendall"]),
        )
        for line in read_lines(path)
    ]


def mean(rows: Iterable[Agreement], measure: str, pool: str = "") -> tuple[float, int]:
    """Return the mean of Kendall's tau over tasks, and their number."""
    taus = [
        row.kendall for row in rows if row.measure == measure and pool in ("", row.pool)
    ]
    return (float(np.mean(taus)) if taus else float("nan")), len(taus)


def compare(
    rows: Iterable[Agreement], one: str, other: str
) -> evaluation.TaskComparison:
    """Compare two measures on the pairs of pool and task that have both.

    Returns:
      The mean difference of Kendall's tau, its p-value by sign flips, and the number of
      pairs. Tasks of one pool share checkpoints, so that the p-value is too small.
    """
    taus: dict[str, dict[str, float]] = {one: {}, other: {}}
    for row in rows:
        if row.measure in taus:
            taus[row.measure][f"{row.pool}/{row.task}"] = row.kendall
    return evaluation.compare_over_tasks(taus[one], taus[other])


def compute(directory: pathlib.Path) -> list[Agreement]:
    """Evaluate the published tables in a directory."""
    on_imagenet: dict[str, dict[str, float]] = collections.defaultdict(dict)
    for line in read_lines(DATA / "imagenet_accuracies.csv"):
        on_imagenet[line["pool"]][line["checkpoint"]] = float(line["accuracy"])
    result = []
    for published in TABLES:
        table = evaluation.read_table(directory / published.file)
        accuracies = {task.name: task.by_name(task.accuracies) for task in table.tasks}
        scores: dict[str, Mapping[str, Mapping[str, float]]] = {
            published.names.get(measure, f"other: {measure}"): {
                task.name: task.by_name(task.scores[measure]) for task in table.tasks
            }
            for measure in table.measures
        }
        known = on_imagenet[published.pool] or {
            checkpoint.name: checkpoint.statics[SOURCE]
            for checkpoint in table.checkpoints.values()
        }
        scores[SOURCE] = {
            task: {name: known[name] for name in of_task}
            for task, of_task in accuracies.items()
        }
        scores[ELSEWHERE] = evaluation.mean_rank_elsewhere(accuracies)
        for measure, by_task in scores.items():
            for task, of_task in by_task.items():
                tau = evaluation.score_ranking(of_task, accuracies[task])["kendall"]
                pool, n = published.pool, len(of_task)
                result.append(Agreement(pool, task, measure, n, round(tau, 4)))
    return sorted(result, key=lambda row: (row.pool, row.measure, row.task))


def main() -> None:
    """Write the result, and print the mean of each measure by pool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    rows = compute(parser.parse_args().directory)
    fields = [field.name for field in dataclasses.fields(Agreement)]
    with RESULT.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, rows))
    pools = [table.pool for table in TABLES]
    print(f"{'measure':26}" + "".join(f"{pool:>13}" for pool in [*pools, "all", "n"]))
    for measure in sorted({row.measure for row in rows}):
        taus = [f"{mean(rows, measure, pool)[0]:13.2f}" for pool in [*pools, ""]]
        print(f"{measure:26}" + "".join(taus) + f"{mean(rows, measure)[1]:13}")
    for other in ("logme", "gbc", "leep", "nce", "ncti", SOURCE, ELSEWHERE):
        difference, p_value, count = compare(rows, "nleep", other)
        print(f"nleep - {other}: {difference:+.2f} over {count}, p-value {p_value:.3f}")


if __name__ == "__main__":
    main()
