"""Time of each measure, compared with plain NumPy, SciPy and scikit-learn code.

    python -m tests.benchmarks.measures                        # N = 20,000, D = 2048
    python -m tests.benchmarks.measures --images=3000 --dimensions=256

Both start from checked float32 arrays. Each measure of this package computes its own
statistics, and its first call, which compiles, is not counted. The references follow
published code and use float64 where they decompose matrices. The references of PARC and
RSA hold several N x N arrays, so these measures get `--pairs` images. NLEEP has its own
benchmark. The last lines are the time of checking the inputs and of `compute_all`: for
the measures that share statistics, and for all of them relative to the slowest one.
"""

import argparse
import time

import numpy as np

from rankckpt_jax import measures
from rankckpt_jax.measures import linear as linear_measure
from rankckpt_jax.measures.statistics import sampling
from tests.measures import recent_references, references

SHARED = ("h_score", "regularized_h_score", "logme", "transrate", "gbc", "sfda", "lda")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(REFERENCES))
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=10_000)
    args = parser.parse_args()
    random = np.random.default_rng(0)
    labels = np.arange(args.images) % args.classes
    means = random.normal(size=(args.classes, args.dimensions)) / 8
    x = means[labels] + random.normal(size=(args.images, args.dimensions))
    x = x.astype(np.float32)
    logits = random.normal(size=(args.images, 1000)).astype(np.float32)
    print(
        f"{'measure':20} {'ours s':>8} {'theirs s':>8} {'ratio':>6} {'difference':>10}"
    )
    for name in args.names:
        options = {"max_images": args.pairs} if name in ("parc", "rsa") else {}
        rows = np.arange(args.images)
        if options:
            rows = sampling.subset(labels, args.pairs, 0)
        measures.compute(name, x, labels, logits, **options)
        inputs = measures.prepare(x, labels, logits)
        start = time.perf_counter()
        score = measures.compute_prepared(name, inputs, **options).score
        ours = time.perf_counter() - start
        arrays = x[rows], labels[rows], logits[rows]
        start = time.perf_counter()
        expected = REFERENCES[name](*arrays)
        theirs = time.perf_counter() - start
        difference = abs(score - expected) / max(abs(expected), 1e-12)
        print(
            f"{name:20} {ours:8.2f} {theirs:8.2f} {theirs / ours:6.1f} "
            f"{difference:10.1e}",
            flush=True,
        )
    start = time.perf_counter()
    measures.prepare(x, labels, logits)
    print(f"{'checking':20} {time.perf_counter() - start:8.2f}")
    start = time.perf_counter()
    measures.compute_all(x, labels, logits, names=SHARED)
    print(f"{'with shared statistics':20} {time.perf_counter() - start:8.2f}")
    start = time.perf_counter()
    results = measures.compute_all(x, labels, logits, names=args.names)
    total = time.perf_counter() - start
    seconds = {name: result.details["seconds"] for name, result in results.items()}
    slowest = max(seconds, key=seconds.__getitem__)
    print(
        f"{'all of them':20} {total:8.2f}, {total / seconds[slowest]:.2f} times "
        f"the slowest, {slowest}"
    )


def logme(x, y):
    """As `references.logme`, by the faster decomposition of published code."""
    x = x.astype(np.float64)
    n, d = x.shape
    _, s, vh = np.linalg.svd(x.T @ x)
    u = (x @ vh.T) / np.sqrt(s)
    evidences = []
    for c in range(y.max() + 1):
        target = (y == c).astype(float)
        squares = (u.T @ target) ** 2
        rest = target.sum() - squares.sum()
        alpha = beta = 1.0
        for _ in range(11):
            ratio = alpha / beta
            gamma = (s / (s + ratio)).sum()
            m2 = (s * squares / (ratio + s) ** 2).sum()
            e2 = (squares / (1 + s / ratio) ** 2).sum() + rest
            alpha, beta = gamma / (m2 + 1e-5), (n - gamma) / (e2 + 1e-5)
            if abs(alpha / beta - ratio) / ratio <= 1e-3:
                break
        evidence = d / 2 * np.log(alpha) + n / 2 * np.log(beta)
        evidence -= np.log(alpha + beta * s).sum() / 2 + beta / 2 * e2 + alpha / 2 * m2
        evidences.append((evidence - n / 2 * np.log(2 * np.pi)) / n)
    return np.mean(evidences)


def knn(x, y):
    """As `references.knn` for one neighbor, without a loop."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(x)
    return (y[nearest.kneighbors(return_distance=False)[:, 0]] == y).mean()


def linear(x, y):
    """A grid search over the ridges."""
    from sklearn.linear_model import LogisticRegression

    part = linear_measure.split(y, 0)
    train = part == 0
    x = (x - x[train].mean(axis=0)) / x[train].std(axis=0)
    fitted = [
        LogisticRegression(C=1 / (ridge * train.sum()), max_iter=100).fit(
            x[train], y[train]
        )
        for ridge in linear_measure.RIDGES
    ]
    best = max(fitted, key=lambda model: model.score(x[part == 1], y[part == 1]))
    return best.score(x[part == 2], y[part == 2])


REFERENCES = {
    "h_score": lambda x, y, z: references.h_score(x.astype(float), y),
    "regularized_h_score": lambda x, y, z: references.regularized_h_score(
        x.astype(float), y
    ),
    "logme": lambda x, y, z: logme(x, y),
    "transrate": lambda x, y, z: references.transrate(x.astype(float), y),
    "gbc": lambda x, y, z: references.gbc(x.astype(float), y, "spherical"),
    "sfda": lambda x, y, z: references.sfda(x.astype(float), y),
    "lda": lambda x, y, z: references.lda(x.astype(float), y),
    "knn": lambda x, y, z: knn(x, y),
    "lda_accuracy": lambda x, y, z: recent_references.lda_accuracy(
        x.astype(float), y, "none" if len(x) >= 12.5 * x.shape[1] else "ledoit_wolf"
    ),
    "rankme": lambda x, y, z: recent_references.rankme(x.astype(float)),
    "disco": lambda x, y, z: recent_references.disco(x.astype(float), y),
    "concept_variation": lambda x, y, z: (
        -recent_references.concept_variation(x.astype(float), y)
    ),
    "tmi": lambda x, y, z: recent_references.tmi(x.astype(float), y),
    "cka": lambda x, y, z: recent_references.cka(x.astype(float), y),
    "parc": lambda x, y, z: 100 * references.parc(x.astype(float), y),
    "rsa": lambda x, y, z: references.parc(x.astype(float), y, standardize=False),
    "leep": lambda x, y, z: references.leep(z.astype(float), y),
    "nce": lambda x, y, z: references.nce(z.astype(float), y),
    "energy": lambda x, y, z: references.energy(z.astype(float)),
    "etran": lambda x, y, z: (
        0.15 * references.energy(z.astype(float))
        + 0.85 * references.lda(x.astype(float), y)
    ),
    "ncti": lambda x, y, z: np.dot(
        [1, 1, -1], [*references.ncti_terms(x.astype(float), y).values()]
    ),
    "linear": lambda x, y, z: linear(x, y),
    "mutual_information": lambda x, y, z: references.mutual_information(x, y),
    "pactran": lambda x, y, z: references.pactran(x.astype(float), y),
}
"""Maps features [N, D], labels [N] and logits [N, V] to the score of each measure."""


if __name__ == "__main__":
    main()
