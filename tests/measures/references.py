"""Plain implementations of the measures in NumPy, SciPy and scikit-learn, in float64.

They favor clarity over speed, with loops over classes and full covariance and distance
matrices. Tests compare the package with them where no published figure exists, and
`tests.benchmarks.measures` times them.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg, optimize, special, stats
from sklearn import (
    covariance,
    decomposition,
    discriminant_analysis,
    neighbors,
)
from sklearn import (
    mixture as mixtures,
)

from rankckpt_jax.measures import mutual_information as ours
from rankckpt_jax.measures.statistics import sampling


def _one_hot(y: np.ndarray) -> np.ndarray:
    return (y[:, None] == np.unique(y)).astype(float)


def _class_means(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([x[y == c].mean(axis=0) for c in np.unique(y)])


def nce(logits: np.ndarray, y: np.ndarray, soft: bool = False) -> float:
    p = special.softmax(logits, axis=1)
    if not soft:
        p = (np.arange(p.shape[1]) == p.argmax(axis=1)[:, None]).astype(float)
    joint = _one_hot(y).T @ p / len(y)
    marginal = joint.sum(axis=0)
    return float(
        special.xlogy(joint, joint).sum() - special.xlogy(marginal, marginal).sum()
    )


def leep(logits: np.ndarray, y: np.ndarray) -> float:
    p = special.softmax(logits, axis=1)
    one_hot = _one_hot(y)
    joint = one_hot.T @ p
    conditional = joint / joint.sum(axis=0)
    return float(np.log(np.sum((p @ conditional.T) * one_hot, axis=1)).mean())


def nleep(posterior: np.ndarray, y: np.ndarray) -> float:
    """NLEEP from the posteriors [N, K] of a mixture."""
    joint = _one_hot(y).T @ posterior
    conditional = joint / np.maximum(joint.sum(axis=0), 1e-300)
    index = np.unique(y, return_inverse=True)[1]
    return float(np.log((conditional[index] * posterior).sum(axis=1)).mean())


def mixture(
    x: np.ndarray, start: np.ndarray, kind: str, reg_covar: float = 1e-6, **options
) -> mixtures.GaussianMixture:
    """scikit-learn's mixture in float64 from hard assignments `start` [N]."""
    x = x.astype(np.float64)
    members = [x[start == k] for k in range(start.max() + 1)]
    weights = np.array([len(m) for m in members]) / len(x)
    moments = np.stack(
        [np.cov(m.T, bias=True).reshape(2 * x.shape[1:]) for m in members]
    )
    ridge = reg_covar * np.eye(x.shape[1])
    variances = np.einsum("kdd->kd", moments) + reg_covar
    if kind == "full":
        precisions = np.linalg.inv(moments + ridge)
    elif kind == "tied":
        precisions = np.linalg.inv(np.einsum("k,kij", weights, moments) + ridge)
    else:
        precisions = 1 / (variances if kind == "diag" else variances.mean(axis=1))
    if kind in ("full", "tied"):
        # `inv` rounds, and scikit-learn refuses a matrix that is not symmetric.
        precisions = (precisions + np.swapaxes(precisions, -1, -2)) / 2
    return mixtures.GaussianMixture(
        len(members),
        covariance_type=kind,
        reg_covar=reg_covar,
        weights_init=weights,
        means_init=np.stack([m.mean(axis=0) for m in members]),
        precisions_init=precisions,
        **options,
    ).fit(x)


def energy(logits: np.ndarray) -> float:
    return float(special.logsumexp(logits, axis=1).mean())


def h_score(x: np.ndarray, y: np.ndarray) -> float:
    g = _class_means(x, y)[np.unique(y, return_inverse=True)[1]]
    inverse = np.linalg.pinv(np.cov(x, rowvar=False), rcond=1e-15)
    return float(np.trace(inverse @ np.cov(g, rowvar=False)))


def regularized_h_score(x: np.ndarray, y: np.ndarray) -> float:
    x = x - x.mean(axis=0)
    g = _class_means(x, y)[np.unique(y, return_inverse=True)[1]]
    fitted = covariance.LedoitWolf().fit(x)
    between = (1 - fitted.shrinkage_) * np.cov(g, rowvar=False)
    inverse = np.linalg.pinv(fitted.covariance_, rcond=1e-15)
    return float(np.trace(inverse @ between))


def logme(x: np.ndarray, y: np.ndarray) -> float:
    n, d = x.shape
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    sigma = np.zeros(d)
    sigma[: len(s)] = s**2
    evidences = []
    for target in _one_hot(y).T:
        projected = np.zeros(d)
        projected[: len(s)] = (u.T @ target) ** 2
        outside = (target**2).sum() - projected.sum()
        alpha = beta = 1.0
        for _ in range(11):
            t = alpha / beta
            gamma = (sigma / (sigma + t)).sum()
            m2 = (sigma * projected / (t + sigma) ** 2).sum()
            residual = (projected / (1 + sigma / t) ** 2).sum() + outside
            alpha = gamma / (m2 + 1e-5)
            beta = (n - gamma) / (residual + 1e-5)
            if abs(alpha / beta - t) / t <= 1e-3:
                break
        evidences.append(
            d / 2 * np.log(alpha)
            + n / 2 * np.log(beta)
            - np.log(alpha + beta * sigma).sum() / 2
            - beta / 2 * residual
            - alpha / 2 * m2
            - n / 2 * np.log(2 * np.pi)
        )
    return float(np.mean(evidences) / n)


def logme_maximum(x: np.ndarray, y: np.ndarray) -> float:
    """The evidence at its maximum over a/b, found by SciPy."""
    n = len(x)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    evidences = []
    for target in _one_hot(y).T:
        projected = (u.T @ target) ** 2
        outside = max((target**2).sum() - projected.sum(), 0)

        def loss(log_t, projected=projected, outside=outside):
            t = np.exp(log_t)
            error = outside + (projected * t / (t + s**2)).sum()
            return np.log1p(s**2 / t).sum() / 2 + n / 2 * np.log(error / n)

        # The second singular value, since the first one can be that of an offset.
        middle = 2 * np.log(s[1])
        grid = np.linspace(middle - 12, middle + 12, 200)
        best = grid[np.argmin([loss(t) for t in grid])]
        found = optimize.minimize_scalar(
            loss, (best - 0.2, best, best + 0.2), tol=1e-10
        )
        evidences.append(-found.fun - n / 2 * (1 + np.log(2 * np.pi)))
    return float(np.mean(evidences) / n)


def transrate(x: np.ndarray, y: np.ndarray, eps: float = 1e-4) -> float:
    x = x - x.mean(axis=0)

    def rate(z: np.ndarray) -> float:
        n, d = z.shape
        return np.linalg.slogdet(np.eye(d) + z.T @ z / (n * eps))[1] / 2

    return float(rate(x) - np.mean([rate(x[y == c]) for c in np.unique(y)]))


def gbc(x: np.ndarray, y: np.ndarray, kind: str, dimensions: int = 64) -> float:
    if x.shape[1] > dimensions:
        count = min(dimensions, *x.shape)
        x = decomposition.PCA(count, svd_solver="full").fit_transform(x)
    means = _class_means(x, y)
    variances = np.stack([x[y == c].var(axis=0) for c in np.unique(y)])
    variances = np.maximum(variances, 1e-4)
    if kind == "spherical":
        # As in published code, the logarithms below have a single term.
        variances = variances.mean(axis=1, keepdims=True)
    total = 0.0
    for i in range(len(means)):
        for j in range(len(means)):
            if i == j:
                continue
            middle = (variances[i] + variances[j]) / 2
            distance = np.sum((means[i] - means[j]) ** 2 / middle) / 8
            distance += np.log(middle).sum() / 2
            distance -= (np.log(variances[i]) + np.log(variances[j])).sum() / 4
            total += np.exp(-distance)
    return -float(total)


def _within(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    d = x.shape[1]
    parts = [
        np.mean(y == c) * np.cov(x[y == c], rowvar=False, bias=True).reshape(d, d)
        for c in np.unique(y)
    ]
    return np.sum(parts, axis=0)


def _shrinkage(within: np.ndarray) -> float:
    x = within.sum(axis=1)
    for _ in range(3):
        y = within @ x
        y /= np.linalg.norm(y)
        x = within @ y
        x /= np.linalg.norm(x)
    return float(max(np.exp(-5 * (x @ within @ y)), 1e-10))


def _posterior(x, y, within, shrinkage) -> np.ndarray:
    d = x.shape[1]
    shrunk = (1 - shrinkage) * within
    shrunk += shrinkage * np.trace(within) / d * np.eye(d)
    means = _class_means(x, y)
    # With all generalized eigenvectors V of (between, within), V V' is its inverse.
    total = np.cov(x, rowvar=False, bias=True).reshape(d, d)
    total = (1 - shrinkage) * total + shrinkage * np.trace(total) / d * np.eye(d)
    _, v = linalg.eigh(total - shrunk, shrunk)
    coefficients = means @ v @ v.T
    priors = np.log([np.mean(y == c) for c in np.unique(y)])
    offset = priors - np.sum(means * coefficients, axis=1) / 2
    return special.softmax(x @ coefficients.T + offset, axis=1)


def sfda(x: np.ndarray, y: np.ndarray) -> float:
    x = x.copy()
    within = _within(x, y)
    shrinkage = _shrinkage(within)
    one_hot = _one_hot(y)
    confidence = special.softmax(_posterior(x, y, within, shrinkage), axis=1)
    confidence = np.sum(confidence * one_hot, axis=1)
    means = _class_means(x, y)
    others = (means.sum(axis=0) - means) / (len(means) - 1)
    x = confidence[:, None] * x + (1 - confidence[:, None]) * (one_hot @ others)
    posterior = _posterior(x, y, _within(x, y), shrinkage)
    return float(np.sum(posterior * one_hot) / len(y))


def lda(x: np.ndarray, y: np.ndarray) -> float:
    means = _class_means(x, y)
    priors = np.log([np.mean(y == c) for c in np.unique(y)])
    scores = x @ means.T - np.sum(means**2, axis=1) / 2 + priors
    return float(np.sum(special.softmax(scores, axis=1) * _one_hot(y)) / len(y))


def parc(x: np.ndarray, y: np.ndarray, standardize: bool = True) -> float:
    if standardize:
        x = x - x.mean(axis=0)
        deviation = x.std(axis=0)
        x = x / np.where(deviation > 0, deviation, 1)
    upper = np.triu_indices(len(x), 1)
    first = 1 - np.corrcoef(x)[upper]
    second = 1 - np.corrcoef(_one_hot(y))[upper]
    return float(stats.spearmanr(first, np.round(second, 6)).statistic)


def ncti_terms(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    pca = decomposition.PCA(min(64, *x.shape), svd_solver="full")
    x = pca.fit_transform(x)
    shrinkage = max(np.exp(-pca.explained_variance_[:32].sum()), 1e-10)
    if shrinkage == 1e-10:
        model = discriminant_analysis.LinearDiscriminantAnalysis(solver="svd")
    else:
        model = discriminant_analysis.LinearDiscriminantAnalysis(
            solver="eigen", shrinkage=float(shrinkage)
        )
    low = model.fit_transform(x, y)
    posterior = model.predict_proba(x)
    collapse = sum(np.linalg.norm(posterior[y == c], ord="nuc") for c in np.unique(y))
    return {
        "seli": float(np.linalg.norm(low - low.mean(axis=0), ord="nuc")),
        "ncc": float(np.sum(posterior * _one_hot(y)) / len(y)),
        "vc": float(np.log(collapse)),
    }


def knn(x: np.ndarray, y: np.ndarray, k: int = 1, metric: str = "euclidean") -> float:
    search = neighbors.NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute")
    nearest = y[search.fit(x).kneighbors(return_distance=False)]
    # The mode is the first class of several.
    return float(np.mean(stats.mode(nearest, axis=1).mode == y))


def mutual_information(
    x: np.ndarray,
    y: np.ndarray,
    seed: int = 0,
    restarts: int = 2,
    images: int = 10_000,
    steps: int = 200,
) -> float:
    """MINE by AdamW with explicit gradients.

    Random draws are the package's own: the subset of at most `images` images, their
    parts, and the initial critics, in the dtype of `x`.
    """
    starts = ours.init_hidden(min(x.shape), x.dtype, seed, restarts)
    rows = sampling.subset(y, images, seed)
    part = ours.parts(y[rows], seed)
    pca = decomposition.PCA(starts.shape[1], svd_solver="full")
    x = pca.fit_transform(x.astype(float))
    x = (x / np.sqrt(np.mean(x**2)))[rows]
    x = x * np.where(np.sum(x**3, axis=0) < 0, -1, 1)
    truth = _one_hot(y[rows])

    def shifted(critic: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """log((1/n) pi_c exp T) of the images in `mask`."""
        return critic[mask] + np.log(truth[mask].mean(axis=0)) - np.log(mask.sum())

    def bound(critic: np.ndarray, mask: np.ndarray) -> float:
        joint = np.sum(critic[mask] * truth[mask]) / mask.sum()
        return float(joint - special.logsumexp(shifted(critic, mask)))

    def learn(hidden: np.ndarray, half: int) -> np.ndarray:
        train, stopping = part == half, part == half + 2
        params = [hidden, np.zeros(hidden.shape[1]), np.zeros((hidden.shape[1], c))]
        moments = [(np.zeros_like(p), np.zeros_like(p)) for p in params]
        best, kept = -np.inf, np.zeros((len(x), c))
        for step in range(1, steps + 1):
            before = x @ params[0] + params[1]
            active = np.maximum(before, 0)
            critic = active @ params[2]
            if (reached := bound(critic, stopping)) > best:
                best, kept = reached, critic
            error = np.zeros_like(critic)
            error[train] = special.softmax(shifted(critic, train))
            error[train] -= truth[train] / train.sum()
            back = (error @ params[2].T) * (before > 0)
            gradients = [x.T @ back, back.sum(axis=0), active.T @ error]
            for i, gradient in enumerate(gradients):
                first = 0.9 * moments[i][0] + 0.1 * gradient
                second = 0.999 * moments[i][1] + 0.001 * gradient**2
                moments[i] = first, second
                update = first / (1 - 0.9**step)
                update /= np.sqrt(second / (1 - 0.999**step)) + 1e-8
                params[i] = params[i] - 0.01 * (update + 0.01 * params[i])
        return kept

    c = truth.shape[1]
    bounds = [
        bound(learn(hidden, half), part % 2 != half)
        for hidden in np.asarray(starts, float)
        for half in (0, 1)
    ]
    return float(np.mean(bounds))


def pactran(
    x: np.ndarray, y: np.ndarray, lda_factor: float = 10, variance_factor: float = 100
) -> float:
    x = x - x.mean(axis=0)
    n, d = x.shape
    one_hot = _one_hot(y)
    c = one_hot.shape[1]
    scale = lda_factor * n

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = theta[: d * c].reshape(d, c), theta[d * c :]
        logs = special.log_softmax(x @ w + b, axis=1)
        value = -np.sum(one_hot * logs) / n + np.sum(w**2) / (2 * scale)
        error = (np.exp(logs) - one_hot) / n
        gradient = np.concatenate([(x.T @ error + w / scale).ravel(), error.sum(0)])
        return value, gradient

    solution = optimize.minimize(
        loss,
        np.zeros(d * c + c),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-10},
    )
    w, b = solution.x[: d * c].reshape(d, c), solution.x[d * c :]
    p = special.softmax(x @ w + b, axis=1)
    curvature = (p - p**2).sum(axis=1)
    trace = np.sum((np.sum(x**2, axis=1) + 1) * curvature) + d * c / scale
    flatness = d * c / (2 * scale) * variance_factor / d
    return -float(solution.fun + flatness * np.log(trace * scale / (d * c) + 1e-10))
