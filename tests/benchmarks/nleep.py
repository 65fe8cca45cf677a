"""NLEEP and its mixture compared with scikit-learn: time, FLOP/s and memory.

    python -m tests.benchmarks.nleep                    # all but the largest case
    python -m tests.benchmarks.nleep sun_full           # the largest one, 76,128 points
    python -m tests.benchmarks.nleep --features=A.npz caltech   # real features

Each case runs in its own process, first this package and then scikit-learn, which
needs float64 for these data and uses all cores. Two times are measured:

- end to end: PCA, k-means, EM and the score, each with its own random start;
- EM alone, from the same hard assignments and for the same number of iterations.

`compile` is the time of the first call minus that of a later one. `ratio` is
scikit-learn's time divided by ours, `first` the same with our compile time, and `CPU`
that of CPU seconds, which other processes on the machine change less. `GFLOP/s` counts
the operations of dense EM, 2 N K (D^2 + 3 D) per E-step or M-step, even if they were
skipped. `of peak` divides it by the rate of a large matrix product; it can be far above
1 if nearly all responsibilities are zero. `peak MB` is the maximum resident size after
this package's part, including the interpreter and JAX.
"""

import argparse
import dataclasses
import resource
import subprocess
import sys
import time
import warnings
from typing import NamedTuple

import jax
import numpy as np

from tests.benchmarks.extract import peak_flops
from tests.measures import references


@dataclasses.dataclass(frozen=True)
class Case:
    """N images of C classes, D features reduced to d, K components."""

    num_images: int
    num_classes: int
    num_features: int
    dimensions: int
    num_components: int
    spread: float
    iterations: int = 0
    beside_scikit_learn: bool = True


CASES = {
    # Few images per component: responsibilities are 0 or 1.
    "caltech": Case(3060, 102, 1024, 72, 510, 0.5),
    "flowers": Case(2040, 102, 2048, 340, 510, 0.5),
    # Many images per component, overlapping: dense EM, a fixed number of iterations.
    "camelyon": Case(100_000, 2, 64, 64, 10, 3.0, 10),
    "sun": Case(20_000, 100, 128, 128, 500, 3.0, 3),
    "sun_full": Case(76_128, 397, 128, 128, 1985, 3.0, 3, False),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "cases", nargs="*", default=[c for c in CASES if c != "sun_full"]
    )
    parser.add_argument("--features", default="", help=".npz with features and labels")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        measure(args.cases[0], CASES[args.cases[0]], args.features)
        return
    print(
        f"{'case':9} {'part':10} {'N':>6} {'K':>4} {'D':>3} {'ours s':>8} "
        f"{'compile':>7} {'sklearn':>8} {'ratio':>6} {'first':>6} {'CPU':>6} "
        f"{'GFLOP/s':>8} {'of peak':>7} "
        f"{'peak MB':>7}",
        flush=True,
    )
    for name in args.cases:
        command = [sys.executable, "-m", "tests.benchmarks.nleep", "--inside", name]
        subprocess.run([*command, f"--features={args.features}"], check=True)


def measure(name, case, file):
    from rankckpt_jax import measures
    from rankckpt_jax.measures.mixture import gmm, kmeans
    from rankckpt_jax.measures.statistics import pca

    features, labels = load(file) if file else draw(case)
    num_components = case.num_components
    peak = peak_flops("float32")
    if not case.iterations:
        seconds, compile_seconds, result = repeatedly(
            lambda: measures.compute("nleep", features, labels)
        )
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        dimensions = result.details["dimensions"]
        theirs, score = timed(lambda: reference(features, labels, num_components))
        shape = len(features), num_components, dimensions
        line(name, "end to end", shape, seconds, compile_seconds, theirs, memory)
        print(f"          score {result.score:.4f}, scikit-learn's {score:.4f}")
        projected = np.asarray(pca.transform(pca.fit(features), features))
        options = {}
    else:
        projected = features
        options = {"tol": 0.0, "max_iter": case.iterations}
    start = kmeans.fit(projected, num_components, max_iter=20).assignments
    seconds, compile_seconds, mixture = repeatedly(
        lambda: gmm.fit(projected, num_components, init_labels=start, **options)
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    theirs = Seconds(float("nan"), float("nan"))
    if case.beside_scikit_learn:
        exact = projected.astype(np.float64)
        theirs, fitted = timed(
            lambda: reference_fit(exact, start, num_components, options)
        )
        same = mixture.num_iterations == fitted.n_iter_
        bound = float(mixture.lower_bounds[mixture.num_iterations - 1])
        note = (
            f"          bound {bound:.5f}, scikit-learn's {fitted.lower_bound_:.5f};"
            f" {mixture.num_iterations} iterations{'' if same else ', NOT the same'}"
        )
    else:
        note = f"          {mixture.num_iterations} iterations"
    n, d = projected.shape
    steps = 2 * mixture.num_iterations + 1
    flops = steps * 2 * n * num_components * (d**2 + 3 * d)
    shape = n, num_components, d
    line(name, "EM", shape, seconds, compile_seconds, theirs, memory, flops, peak)
    print(note, flush=True)


def draw(case):
    """Features [N, D] of classes with overlapping clusters, and labels."""
    random = np.random.default_rng(0)
    scale = np.geomspace(1, 0.05, case.num_features)
    # About `dimensions` principal components explain 80 % of the variance.
    scale = np.where(
        np.arange(case.num_features) < 1.3 * case.dimensions, 1.0, scale / 5
    )
    which = random.integers(0, case.num_components, case.num_images)
    means = random.normal(size=(case.num_components, case.num_features)) * scale
    noise = random.normal(size=(case.num_images, case.num_features)) * scale
    features = means[which] + case.spread * noise
    return features.astype(np.float32), which % case.num_classes


def load(file):
    with np.load(file) as arrays:
        return arrays["features"], arrays["labels"]


def reference(features, labels, num_components):
    """NLEEP by its definition, with scikit-learn."""
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    projected = PCA(0.8, svd_solver="full").fit_transform(features.astype(np.float64))
    mixture = GaussianMixture(num_components, random_state=0).fit(projected)
    return references.nleep(mixture.predict_proba(projected), labels)


def reference_fit(x, start, num_components, options):
    """scikit-learn's mixture in float64 from a hard start."""
    from sklearn.mixture import GaussianMixture

    class FromLabels(GaussianMixture):
        def _initialize_parameters(self, x, *args, **kwargs):
            self._initialize(x, np.eye(num_components)[start])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FromLabels(num_components, **options).fit(x)


def repeatedly(function):
    """Return the time of a later call, the extra time of the first, and the result.

    If a call takes less than a second, its time is the median of five, because other
    processes can double the time of one.
    """
    first, _ = timed(function)
    again, result = timed(function)
    if again.wall < 1:
        calls = [again, *(timed(function)[0] for _ in range(4))]
        again = sorted(calls)[2]
    return again, max(first.wall - again.wall, 0.0), result


class Seconds(NamedTuple):
    """Wall time, and the time of all threads."""

    wall: float
    cpu: float


def timed(function):
    start, start_cpu = time.perf_counter(), time.process_time()
    result = function()
    jax.block_until_ready(jax.tree.leaves(result))
    end, end_cpu = time.perf_counter(), time.process_time()
    return Seconds(end - start, end_cpu - start_cpu), result


def line(name, part, shape, ours, compiling, theirs, memory, flops=0.0, peak=1.0):
    n, k, d = shape
    rate = (
        f"{flops / ours.wall / 1e9:8.0f} {flops / ours.wall / peak:7.2f}"
        if flops
        else " " * 16
    )
    print(
        f"{name:9} {part:10} {n:6} {k:4} {d:3} {ours.wall:8.2f} {compiling:7.1f} "
        f"{theirs.wall:8.2f} {theirs.wall / ours.wall:6.1f} "
        f"{theirs.wall / (ours.wall + compiling):6.1f} {theirs.cpu / ours.cpu:6.1f} "
        f"{rate} {memory:7.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
