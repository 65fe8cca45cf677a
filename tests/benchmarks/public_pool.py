"""Runs configs/public_pool.py on all image sets and seeds, and writes the table.

    python -m tests.benchmarks.public_pool IMAGES/*/ --checkpoints=DIR,DIR --workdir=W
    python -m tests.benchmarks.public_pool IMAGES/*/ ... --seeds=0 --names='*_lite*'

It fills three tables in docs/data with a line per image set, network and seed:

    public_pool.csv         accuracy and scores
    public_pool_curves.csv  for each learning rate, the accuracy on the test images, and
                            on the held-out ones every ten steps
    public_pool_terms.csv   terms of NCTI and ETran, which are relative to a pool; their
                            scores follow when all networks of an image set have a line

They are written after every fine-tuning. Lines that exist are not computed again, so a
run can be stopped, and resumed on another machine that has nothing but the tables.
Scores of measures are in the lines of seed 0. Start it with `nice` beside other work,
and with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 on Linux, which makes it 1.5 times as
fast.

Several processes can fill the tables, each with its own --names and --workdir, all in
one folder. One per core, started with `taskset`, is the fastest: compiling and most
measures use one core only.
"""

import argparse
import csv
import fnmatch
import itertools
import json
import pathlib
import time

import filelock

from rankckpt_jax import measures
from rankckpt_jax.configs import public_pool
from rankckpt_jax.devices import mapping
from rankckpt_jax.run import run as run_lib

DATA = pathlib.Path(__file__).parents[2] / "docs" / "data"
TABLE, NETWORKS = DATA / "public_pool.csv", DATA / "public_pool_networks.csv"
CURVES = DATA / "public_pool_curves.csv"
TERMS = DATA / "public_pool_terms.csv"

Line = dict[str, str]

KEY = ("task", "checkpoint", "seed")
CURVE_KEY = (*KEY, "learning_rate")
FACTS = (
    *("family", "accuracy", "test_images", "learning_rate", "finetune_seconds"),
    *("extract_seconds", "parameters", "feature_dim", "source_accuracy", "image_size"),
)
"""Columns of a line beside its key and the scores."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", type=pathlib.Path)
    parser.add_argument("--checkpoints", required=True, help="directories")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--names", default="*", help="patterns, separated by commas")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    args = parser.parse_args()
    mapping.split_cpu_devices()
    end = time.monotonic() + 60 * args.minutes
    folders = args.checkpoints.split(",")
    chosen = [
        network
        for network in read_lines(NETWORKS)
        if any(fnmatch.fnmatch(network["checkpoint"], p) for p in args.names.split(","))
    ]
    seeds = map(int, args.seeds.split(","))
    # The second seed of a network finds the programs of the first in JAX's cache.
    for task, network, seed in itertools.product(args.tasks, chosen, seeds):
        key = (task.name, network["checkpoint"], str(seed))
        if key in read_table(TABLE, KEY) or time.monotonic() > end:
            continue
        start = time.monotonic()
        line, curves, terms = compute(task, network, folders, seed, args.workdir)
        with filelock.FileLock(pathlib.Path(args.workdir).parent / "table.lock"):
            curves = {(*key, rate): curve for rate, curve in curves.items()}
            write_table(CURVES, CURVE_KEY, read_table(CURVES, CURVE_KEY) | curves)
            lines = read_table(TABLE, KEY) | {key: line}
            if terms:
                of_all = read_table(TERMS, KEY) | {key: terms}
                write_table(TERMS, KEY, of_all)
                add_relative_scores(lines, of_all, task.name)
            write_table(TABLE, KEY, lines)
        seconds = time.monotonic() - start
        print(*key, line["accuracy"], f"({seconds:.0f} s)", flush=True)


def compute(
    task, network, folders, seed, workdir
) -> tuple[Line, dict[str, Line], Line]:
    """Rank and fine-tune a network; return its line, curves by rate, and terms."""
    config = public_pool.get_config()
    config.task.path = str(task)
    config.task.name = task.name
    config.checkpoints = find(network["file"], folders)
    config.seed = seed
    config.workdir = str(pathlib.Path(workdir) / f"seed{seed}")
    config.measures = ",".join(score_names() if seed == 0 else ("nleep",))
    [row] = run_lib.run(config).rows
    tuned = finetuned(config.workdir, task.name, row.checkpoint)
    result = {
        "family": network["family"],
        "accuracy": row.accuracy,
        "test_images": sum(1 for _ in (task / "test").glob("*/*")),
        "learning_rate": tuned["learning_rate"],
        "finetune_seconds": row.finetune_seconds,
        "extract_seconds": row.extract_seconds,
        "parameters": row.num_parameters,
        "feature_dim": row.feature_dim,
        "source_accuracy": network["source_accuracy"],
        "image_size": row.image_size,
    }
    terms = {}
    if seed == 0:
        terms = {
            f"{name}_{term}": as_text(value)
            for name, values in row.terms.items()
            for term, value in values.items()
        }
        for name in row.scores.keys() - row.terms.keys():
            result[name] = row.score(name)
            for part, value in (
                ("spread", row.spread(name)),
                ("seconds", row.score_seconds.get(name)),
            ):
                if value is not None:
                    result[f"{name}_{part}"] = value
    line = {key: as_text(value) for key, value in result.items()}
    return line, {as_text(t["learning_rate"]): curve(t) for t in tuned["trials"]}, terms


def add_relative_scores(lines, terms, task: str) -> None:
    """Fill in the measures that are relative to a pool, if the pool is complete."""
    keys = [(task, line["checkpoint"], "0") for line in read_lines(NETWORKS)]
    if not all(key in lines for key in keys):
        return
    columns = sorted({name for line in terms.values() for name in line})
    for name in measures.names():
        combine = measures.get(name).combine
        names = [column for column in columns if column.startswith(f"{name}_")]
        known = [
            k for k in keys if names and all(terms.get(k, {}).get(n) for n in names)
        ]
        if combine is None or not known:
            continue
        pool = [
            {n.removeprefix(f"{name}_"): float(terms[key][n]) for n in names}
            for key in known
        ]
        for key, score in zip(known, combine(pool), strict=True):
            lines[key] = lines[key] | {name: as_text(float(score))}


def curve(trial) -> Line:
    """Return the line of a learning rate."""
    facts = {name: as_text(trial[name]) for name in ("accuracy", "seconds")}
    steps = {f"held_out_{step:03}": as_text(value) for step, value in trial["curve"]}
    return facts | steps


def score_names() -> list[str]:
    """Return the measures of the table.

    NLEEP comes first, because a run has a default. Early stopping needs fine-tuning.
    """
    names = [name for name in measures.names() if name != "nleep"]
    return ["nleep", *(name for name in names if name != "early_stopping")]


def find(file: str, folders: list[str]) -> str:
    """Return the path of a network's file, with its options."""
    for folder in folders:
        if pathlib.Path(folder, file.partition("#")[0]).exists():
            return f"{folder}/{file}"
    raise FileNotFoundError(f"{file} is in none of {', '.join(folders)}")


def finetuned(workdir: str, task: str, checkpoint: str):
    """Return the stored result of a sweep."""
    path = pathlib.Path(workdir, task, checkpoint, "finetune", "result.json")
    return json.loads(path.read_text())["result"]


def as_text(value: float | str | None) -> str:
    """Return the cell of a value."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_lines(path: pathlib.Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_table(path: pathlib.Path, key: tuple[str, ...]) -> dict[tuple[str, ...], Line]:
    """Return the lines of a table by the columns of its key."""
    if not path.exists():
        return {}
    return {tuple(line.pop(name) for name in key): line for line in read_lines(path)}


def write_table(path: pathlib.Path, key: tuple[str, ...], lines) -> None:
    """Write a table, sorted by its key."""
    names = {name for line in lines.values() for name in line}
    columns = [name for name in FACTS if name in names]
    columns += sorted(names - set(columns))
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*key, *columns], lineterminator="\n")
        writer.writeheader()
        for values in sorted(lines):
            writer.writerow(dict(zip(key, values, strict=True)) | lines[values])
    part.replace(path)


if __name__ == "__main__":
    main()
