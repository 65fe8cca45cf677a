"""Measures the time of all measures together, against the slowest of them.

    python -m tests.benchmarks.compute_all               # N = 20,000, D = 2048, C = 100

Inputs are shared as in `measures.compute_all`. Each measure is also run on inputs of
its own, whose statistics it computes itself. The first calls, which compile, are not
counted. CPU seconds are those of all threads, and vary less than wall time on a machine
that does other work.
"""

import argparse
import time

import numpy as np

from rankckpt_jax import measures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=_names())
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--source_classes", type=int, default=1000)
    args = parser.parse_args()
    random = np.random.default_rng(0)
    labels = np.arange(args.images) % args.classes
    means = random.normal(size=(args.classes, args.dimensions)) / 8
    features = means[labels] + random.normal(size=(args.images, args.dimensions))
    # A spectrum that decays, as that of real features: PCA keeps about 200 of 2048.
    features *= (1 + np.arange(args.dimensions) / 16) ** -0.75
    features = features.astype(np.float32)
    shape = (args.images, args.source_classes)
    logits = random.normal(size=shape).astype(np.float32)

    def prepare():
        return measures.prepare(features, labels, logits)

    print(f"{'measure':20} {'alone s':>8} {'CPU s':>8} {'shared s':>8} {'CPU s':>8}")
    checking = _time(prepare)
    shared = prepare()
    alone, together = {}, {}
    for name in args.names:
        measures.compute_prepared(name, prepare())
        alone[name] = _time(measures.compute_prepared, name, prepare())
        together[name] = _time(measures.compute_prepared, name, shared)
        times = (*alone[name], *together[name])
        print(f"{name:20} " + " ".join(f"{t:8.2f}" for t in times), flush=True)
    print(f"{'checking':20} " + " ".join(f"{t:8.2f}" for t in checking))
    for i, kind in enumerate(("wall", "CPU")):
        total = checking[i] + sum(times[i] for times in together.values())
        slowest = max(alone, key=lambda name: alone[name][i])
        most = alone[slowest][i]
        print(
            f"{kind} time of all: {total:.2f} s, {total / most:.2f} times that of the "
            f"slowest, {slowest}"
        )


def _names():
    return [
        name
        for name in measures.names()
        if measures.get(name).reads_images and name != "early_stopping"
    ]


def _time(function, *args):
    """Return wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function(*args)
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
