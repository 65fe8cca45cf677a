"""Each measure beside a straight NumPy, SciPy and scikit-learn statement of it.

    python -m tests.benchmarks.measures                        # N = 20,000, D = 2048
    python -m tests.benchmarks.measures --images=3000 --dimensions=256

Both start from checked float32 arrays; ours make their own statistics, each measure
alone (the first call, which compiles, is not counted); the statements follow published
code, on the same features in its own precision, float64 where they decompose matrices.
PARC and RSA, whose statements hold several N x N arrays, get `--pairs` images. NLEEP
has a benchmark of its own. The last lines are what checking takes, once for all
measures, and `compute_all`: over those that share statistics, and over the whole set
beside its slowest member.
"""

import argparse
import time

import numpy as np
import scipy.linalg
import scipy.special
import scipy.stats

from rankckpt_jax import measures
from rankckpt_jax.measures import linear as linear_measure
from rankckpt_jax.measures.statistics import sampling
from tests.measures import references

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
        found = measures.compute_prepared(name, inputs, **options).score
        ours = time.perf_counter() - start
        start = time.perf_counter()
        expected = REFERENCES[name](x[rows], labels[rows], logits[rows])
        theirs = time.perf_counter() - start
        difference = abs(found - expected) / max(abs(expected), 1e-12)
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
    print(f"{'all that share':20} {time.perf_counter() - start:8.2f}")
    start = time.perf_counter()
    found = measures.compute_all(x, labels, logits, names=args.names)
    whole = time.perf_counter() - start
    seconds = {name: result.details["seconds"] for name, result in found.items()}
    slowest = max(seconds, key=seconds.__getitem__)
    print(
        f"{'all of them':20} {whole:8.2f}, {whole / seconds[slowest]:.2f} times "
        f"the slowest, {slowest}"
    )


def centered(x):
    x = x.astype(np.float64)
    return x - x.mean(axis=0)


def by_class(x, y):
    return [x[y == c] for c in range(y.max() + 1)]


def h_score(x, y, logits):
    x = centered(x)
    between = np.zeros_like(x)
    for c in range(y.max() + 1):
        between[y == c] = x[y == c].mean(axis=0)
    inverse = np.linalg.pinv(np.cov(x.T), rcond=1e-15)
    return np.trace(inverse @ np.cov(between.T))


def regularized_h_score(x, y, logits):
    from sklearn.covariance import LedoitWolf

    x = centered(x)
    fitted = LedoitWolf().fit(x)
    between = np.zeros_like(x)
    for c in range(y.max() + 1):
        between[y == c] = x[y == c].mean(axis=0)
    inverse = np.linalg.pinv(fitted.covariance_, rcond=1e-15)
    return np.trace(inverse @ ((1 - fitted.shrinkage_) * np.cov(between.T)))


def logme(x, y, logits):
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


def transrate(x, y, logits, eps=1e-4):
    def rate(z):
        matrix = np.eye(z.shape[1]) + z.T @ z / (len(z) * eps)
        return np.linalg.slogdet(matrix)[1] / 2

    x = centered(x)
    return rate(x) - np.mean([rate(z) for z in by_class(x, y)])


def gbc(x, y, logits):
    from sklearn.decomposition import PCA

    x = PCA(64, svd_solver="full").fit_transform(x.astype(np.float64))
    groups = by_class(x, y)
    means = np.stack([z.mean(axis=0) for z in groups])
    variances = np.array([max(z.var(axis=0).mean(), 1e-4) for z in groups])
    total = 0.0
    for a in range(len(groups)):
        for b in range(len(groups)):
            if a != b:
                v = (variances[a] + variances[b]) / 2
                distance = ((means[a] - means[b]) ** 2).sum() / v / 8
                distance += np.log(v / np.sqrt(variances[a] * variances[b])) / 2
                total -= np.exp(-distance)
    return total


def _posterior(x, y, shrinkage=None):
    groups = by_class(x, y)
    n, d = x.shape
    means = np.stack([z.mean(axis=0) for z in groups])
    shares = np.array([len(z) / n for z in groups])
    within = sum(
        p * np.cov(z.T, bias=True) for p, z in zip(shares, groups, strict=True)
    )
    if shrinkage is None:
        v = within.sum(axis=1)
        for _ in range(3):
            w = within @ v
            w /= np.linalg.norm(w)
            v = within @ w
            v /= np.linalg.norm(v)
        shrinkage = max(np.exp(-5 * (v @ within @ w)), 1e-10)
    total = np.cov(x.T, bias=True)
    shrunk = (1 - shrinkage) * within
    shrunk += shrinkage * np.trace(within) / d * np.eye(d)
    total = (1 - shrinkage) * total + shrinkage * np.trace(total) / d * np.eye(d)
    _, vectors = scipy.linalg.eigh(total - shrunk, shrunk)
    weights = (means @ vectors) @ vectors.T
    joint = x @ weights.T - np.sum(weights * means, axis=1) / 2 + np.log(shares)
    return scipy.special.softmax(joint, axis=1), shrinkage, means


def sfda(x, y, logits):
    x = x.astype(np.float64)
    rows = np.arange(len(y))
    first, shrinkage, means = _posterior(x, y)
    keep = scipy.special.softmax(first, axis=1)[rows, y][:, None]
    others = (means.sum(axis=0) - means) / (len(means) - 1)
    mixed = keep * x + (1 - keep) * others[y]
    return _posterior(mixed, y, shrinkage)[0][rows, y].mean()


def lda(x, y, logits):
    x = x.astype(np.float64)
    groups = by_class(x, y)
    means = np.stack([z.mean(axis=0) for z in groups])
    shares = np.array([len(z) / len(x) for z in groups])
    joint = x @ means.T - (means**2).sum(axis=1) / 2 + np.log(shares)
    return scipy.special.softmax(joint, axis=1)[np.arange(len(y)), y].mean()


def knn(x, y, logits):
    """Asked for the neighbours of its own points, it leaves each out."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(x)
    return (y[nearest.kneighbors(return_distance=False)[:, 0]] == y).mean()


def _pairs(x, y, standardize):
    x = x.astype(np.float64)
    if standardize:
        x = (x - x.mean(axis=0)) / x.std(axis=0)
    lower = np.tril_indices(len(x), -1)
    one = (1 - np.corrcoef(x))[lower]
    other = (y[lower[0]] != y[lower[1]]).astype(float)
    return scipy.stats.spearmanr(one, other).statistic


def parc(x, y, logits):
    return 100 * _pairs(x, y, True)


def rsa(x, y, logits):
    return _pairs(x, y, False)


def leep(x, y, logits):
    p = scipy.special.softmax(logits.astype(np.float64), axis=1)
    joint = np.stack([z.sum(axis=0) for z in by_class(p, y)])
    return np.log(((joint / joint.sum(axis=0))[y] * p).sum(axis=1)).mean()


def nce(x, y, logits):
    joint = np.zeros((y.max() + 1, logits.shape[1]))
    source = logits.argmax(axis=1)
    np.add.at(joint, (y, source), 1 / len(y))
    kept = joint > 0
    conditional = joint / np.maximum(joint.sum(axis=0), 1e-300)
    return (joint[kept] * np.log(conditional[kept])).sum()


def energy(x, y, logits):
    return scipy.special.logsumexp(logits.astype(np.float64), axis=1).mean()


def etran(x, y, logits):
    return 0.15 * energy(x, y, logits) + 0.85 * lda(x, y, logits)


def mutual_information(x, y, logits):
    return references.mutual_information(x, y)


def ncti(x, y, logits):
    terms = references.ncti_terms(x.astype(np.float64), y)
    return terms["seli"] + terms["ncc"] - terms["vc"]


def pactran(x, y, logits):
    return references.pactran(x.astype(np.float64), y)


def linear(x, y, logits):
    """The ridges one after the other, as a grid search has them."""
    from sklearn.linear_model import LogisticRegression

    part = linear_measure.split(y, 0)
    learned = part == 0
    x = (x - x[learned].mean(axis=0)) / x[learned].std(axis=0)
    fitted = [
        LogisticRegression(C=1 / (ridge * learned.sum()), max_iter=100).fit(
            x[learned], y[learned]
        )
        for ridge in linear_measure.RIDGES
    ]
    best = max(fitted, key=lambda model: model.score(x[part == 1], y[part == 1]))
    return best.score(x[part == 2], y[part == 2])


REFERENCES = {
    function.__name__: function
    for function in (
        h_score,
        regularized_h_score,
        logme,
        transrate,
        gbc,
        sfda,
        lda,
        knn,
        parc,
        rsa,
        leep,
        nce,
        energy,
        etran,
        ncti,
        linear,
        mutual_information,
        pactran,
    )
}


if __name__ == "__main__":
    main()
