"""Measures memory, open files and compiled programs of a run over many checkpoints.

    python -m tests.benchmarks.long_run            # 20 and 200 of one architecture
    python -m tests.benchmarks.long_run --mixed    # of four networks, at two sizes each

One process runs the stages `extract` and `score` on TF-Slim checkpoints of small
networks with random weights: first on 20, then on all 200. `resident` is the memory in
use, `peak` its maximum, `files` the open handles, `programs` the loaded programs, and
`compiled` the number of compilations. Without leaks the numbers after 200 are those
after 20, except for programs of new shapes, which are bounded (the number of dimensions
that NLEEP keeps differs).
"""

import argparse
import gc
import os
import pathlib
import re
import resource
import tempfile

import jax
import numpy as np

from rankckpt_jax import checkpoints
from rankckpt_jax.benchmark import demo
from rankckpt_jax.configs import default
from rankckpt_jax.features import extract
from rankckpt_jax.run import run as run_lib

SIZE = 32
MIXED = (
    "mobilenet_v1_025",
    "mobilenet_v1_050",
    "mobilenet_v2_035",
    "mobilenet_v3_small",
)
SIZES = (32, 64)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--counts", type=int, nargs="*", default=[20, 200])
    parser.add_argument("--measures", default="nleep,h_score,logme")
    args = parser.parse_args()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compiled.append(seconds) if "backend_compile" in event else None
        )
    )
    print(f"{'checkpoints':>11} {'resident':>9} {'peak':>9} {'files':>6} ", end="")
    print(f"{'programs':>8} {'compiled':>8} {'traces':>6}")
    with tempfile.TemporaryDirectory() as folder:
        pool = pathlib.Path(folder) / "pool"
        drawn = 0
        for count in args.counts:
            draw(pool, range(drawn, count), args.mixed)
            drawn = count
            config = settings(folder, args.measures, 0 if args.mixed else SIZE)
            ranking = run_lib.run(config)
            assert len(ranking.scored_rows) == count, ranking.failed
            del ranking
            gc.collect()
            programs = len(jax.local_devices()[0].client.live_executables())
            traces = sum(extract.NUM_TRACES.values())
            print(
                f"{count:11} {resident():6.0f} MB {peak():6.0f} MB {handles():6} "
                f"{programs:8} {len(compiled):8} {traces:6}",
                flush=True,
            )


def settings(folder, measures, image_size):
    """Return the config of a run over the checkpoints below `folder/pool`."""
    config = default.get_config()
    config.workdir = f"{folder}/runs"
    config.checkpoints = f"{folder}/pool"
    config.task.digits = (0, 1, 2, 3)
    config.task.limit = 96
    config.image_size = image_size
    config.measures = measures
    config.stages = "extract,score"
    return config


def draw(pool, numbers, mixed):
    """Write checkpoints with different random weights."""
    kinds = [(name, size) for name in MIXED for size in SIZES] if mixed else []
    first = {}
    for number in numbers:
        kind = kinds[number % len(kinds)] if mixed else ("mobilenet_v1_025", SIZE)
        if kind not in first:
            first[kind] = demo.from_scratch(*kind, seed=0).variables
        random = np.random.default_rng(number)
        variables = jax.tree.map(
            lambda x, random=random: x * random.uniform(0.9, 1.1, x.shape), first[kind]
        )
        place = pool / f"c{number:03}_{kind[1]}" / "model.ckpt"
        checkpoints.save_slim(kind[0], variables, str(place))


def resident():
    """Return the memory in use in MB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


def peak():
    """Return the maximum memory that was in use in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def handles():
    """Return the number of open files, sockets and pipes."""
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    main()
