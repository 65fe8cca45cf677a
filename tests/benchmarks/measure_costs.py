"""CPU seconds of each measure at one size, for docs/choosing-a-measure.md.

    python -m tests.benchmarks.measure_costs

Features and logits are random. The first call, which compiles, is not counted. CPU
seconds are those of all cores together.
"""

import argparse
import time

import numpy as np

from rankckpt_jax import measures


def main() -> None:
    """Print a line for each measure that computes something from images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--dimensions", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--source-classes", type=int, default=1000)
    args = parser.parse_args()
    random = np.random.default_rng(0)
    labels = np.arange(args.images) % args.classes
    means = random.normal(size=(args.classes, args.dimensions)) / 4
    noise = random.normal(size=(args.images, args.dimensions))
    features = (means[labels] + noise).astype(np.float32)
    logits = random.normal(size=(args.images, args.source_classes))
    for name in measures.names():
        if not measures.get(name).reads_images or name == "early_stopping":
            continue
        measures.compute(name, features, labels, logits)
        inputs = measures.prepare(features, labels, logits)
        start = time.process_time()
        measures.compute_prepared(name, inputs)
        print(f"{name:20} {time.process_time() - start:8.2f}", flush=True)


if __name__ == "__main__":
    main()
