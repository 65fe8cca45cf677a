"""Runs configs/public_pool.py on all image sets and seeds, and writes the table.

    python -m tests.benchmarks.public_pool IMAGES/*/ --checkpoints=DIR,DIR --workdir=W
    python -m tests.benchmarks.public_pool IMAGES/*/ ... --seeds=0 --names='*_lite*'

The table is docs/data/public_pool.csv, with a line per image set, network and seed. It
is written after every fine-tuning. Lines that it has are not computed again, so a run
can be stopped, and resumed on another machine that has nothing but the table. Scores
of measures are in the lines of seed 0. Start it with `nice` beside other work, and with
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 on Linux, which makes it 1.5 times as fast.

Several processes can fill the table, each with its own --names and its own --workdir in
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

KEY = ("task", "checkpoint", "seed")
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
        if key in read_table() or time.monotonic() > end:
            continue
        start = time.monotonic()
        line = compute(task, network, folders, seed, args.workdir)
        with filelock.FileLock(pathlib.Path(args.workdir).parent / "table.lock"):
            write_table({**read_table(), key: line})
        seconds = time.monotonic() - start
        print(*key, line["accuracy"], f"({seconds:.0f} s)", flush=True)


def compute(task, network, folders, seed, workdir) -> dict[str, str]:
    """Rank and fine-tune one network, and return its line of the table."""
    config = public_pool.get_config()
    config.task.path = str(task)
    config.task.name = task.name
    config.checkpoints = find(network["file"], folders)
    config.seed = seed
    config.workdir = str(pathlib.Path(workdir) / f"seed{seed}")
    config.measures = ",".join(score_names() if seed == 0 else ("nleep",))
    [row] = run_lib.run(config).rows
    result = {
        "family": network["family"],
        "accuracy": row.accuracy,
        "test_images": sum(1 for _ in (task / "test").glob("*/*")),
        "learning_rate": learning_rate(config.workdir, task.name, row.checkpoint),
        "finetune_seconds": row.finetune_seconds,
        "extract_seconds": row.extract_seconds,
        "parameters": row.num_parameters,
        "feature_dim": row.feature_dim,
        "source_accuracy": network["source_accuracy"],
        "image_size": row.image_size,
    }
    if seed == 0:
        for name in row.scores:
            result[name] = row.score(name)
            for part, value in (
                ("spread", row.spread(name)),
                ("seconds", row.score_seconds.get(name)),
            ):
                if value is not None:
                    result[f"{name}_{part}"] = value
    return {key: as_text(value) for key, value in result.items()}


def score_names() -> list[str]:
    """Return the measures of the table.

    ETran's score depends on the rest of the pool; its parts `energy` and `lda` are in
    the table. Early stopping needs fine-tuning.
    """
    names = [name for name in measures.names() if name not in ("etran", "nleep")]
    return ["nleep", *(name for name in names if name != "early_stopping")]


def find(file: str, folders: list[str]) -> str:
    """Return the path of a network's file, with its options."""
    for folder in folders:
        if pathlib.Path(folder, file.partition("#")[0]).exists():
            return f"{folder}/{file}"
    raise FileNotFoundError(f"{file} is in none of {', '.join(folders)}")


def learning_rate(workdir: str, task: str, checkpoint: str) -> float:
    """Return the learning rate that a sweep chose."""
    path = pathlib.Path(workdir, task, checkpoint, "finetune", "result.json")
    return json.loads(path.read_text())["result"]["learning_rate"]


def as_text(value: float | str | None) -> str:
    """Return the cell of a value."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_lines(path: pathlib.Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_table() -> dict[tuple[str, ...], dict[str, str]]:
    """Return the lines of the table by task, checkpoint and seed."""
    if not TABLE.exists():
        return {}
    lines = read_lines(TABLE)
    return {tuple(line.pop(name) for name in KEY): line for line in lines}


def write_table(lines: dict[tuple[str, ...], dict[str, str]]) -> None:
    """Write the table, sorted by its key."""
    names = sorted({name for line in lines.values() for name in line} - set(FACTS))
    part = TABLE.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*KEY, *FACTS, *names], lineterminator="\n")
        writer.writeheader()
        for key in sorted(lines):
            writer.writerow({**dict(zip(KEY, key, strict=True)), **lines[key]})
    part.replace(TABLE)


if __name__ == "__main__":
    main()
