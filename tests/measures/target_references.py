"""Plain statements of the measures for several labels or a number per image.

Each takes features x [N, D] and a target in float64: `labels` bool [N, L], or `number`
float [N]. They are scikit-learn's and SciPy's own figures where these exist.
"""

from __future__ import annotations

import numpy as np
from scipy import stats
from scipy.spatial import distance
from sklearn import covariance, linear_model, metrics, neighbors

from rankckpt_jax.measures import linear as ours


def standardized(target: np.ndarray) -> np.ndarray:
    """Return the columns [N, T]: labels as they are, a number with variance 1."""
    if target.ndim == 2:
        return target.astype(float)
    return ((target - target.mean()) / target.std())[:, None]


def logme(x: np.ndarray, target: np.ndarray) -> float:
    """scikit-learn's log evidence of Bayesian ridge regression, without priors."""
    nothing = dict.fromkeys(("alpha_1", "alpha_2", "lambda_1", "lambda_2"), 0.0)
    model = linear_model.BayesianRidge(
        max_iter=2000, tol=1e-12, compute_score=True, fit_intercept=False, **nothing
    )
    columns = standardized(target).T
    return float(np.mean([model.fit(x, t).scores_[-1] for t in columns]) / len(x))


def h_score(x: np.ndarray, target: np.ndarray) -> float:
    columns = standardized(target).T
    model = linear_model.LinearRegression()
    return float(np.mean([model.fit(x, t).score(x, t) for t in columns]))


def regularized_h_score(x: np.ndarray, target: np.ndarray) -> float:
    x, columns = x - x.mean(axis=0), standardized(target)
    fitted = covariance.LedoitWolf(assume_centered=True).fit(x)
    products = x.T @ (columns - columns.mean(axis=0)) / len(x)
    explained = products * np.linalg.solve(fitted.covariance_, products)
    share = np.mean(explained.sum(axis=0) / columns.var(axis=0))
    return float((1 - fitted.shrinkage_) * share * len(x) / (len(x) - 1))


def cka(x: np.ndarray, target: np.ndarray) -> float:
    center = np.eye(len(x)) - 1 / len(x)
    kernels = (center @ a @ a.T @ center for a in (x, standardized(target)))
    one, other = (kernel / np.linalg.norm(kernel) for kernel in kernels)
    return float(np.sum(one * other))


def rsa(x: np.ndarray, target: np.ndarray) -> float:
    one = distance.pdist(x, "correlation")
    other = distance.pdist(standardized(target), "euclidean")
    # Equal distances differ by rounding errors, which are no ranks.
    return float(stats.spearmanr(one.round(12), other.round(9)).statistic)


def parc(x: np.ndarray, target: np.ndarray) -> float:
    return 100 * rsa((x - x.mean(axis=0)) / x.std(axis=0), target)


def transrate(x: np.ndarray, labels: np.ndarray, eps: float = 1e-4) -> float:
    def rate(z):
        identity = np.eye(z.shape[1])
        return np.linalg.slogdet(identity + z.T @ z / (len(z) * eps))[1] / 2

    x = x - x.mean(axis=0)
    return float(rate(x) - np.mean([rate(x[has]) for has in labels.T]))


def knn(x: np.ndarray, target: np.ndarray, k: int = 5) -> float:
    rows = neighbors.NearestNeighbors(n_neighbors=k).fit(x).kneighbors()[1]
    predicted = target[rows].mean(axis=1)
    if target.ndim == 2:
        return float(metrics.average_precision_score(target, predicted))
    return float(metrics.r2_score(target, predicted))


def linear(x: np.ndarray, target: np.ndarray, strata: np.ndarray) -> float:
    """scikit-learn's ridge or logistic regressions on the split of `linear`."""
    part = ours.split(strata, 0)
    train, selecting, held_out = (part == i for i in range(3))
    x = (x - x[train].mean(axis=0)) / x[train].std(axis=0)
    if target.ndim == 1:
        y = standardized(target)[:, 0]
        fits = [
            linear_model.Ridge(r * train.sum()).fit(x[train], y[train]).predict(x)
            for r in ours.NUMBER_RIDGES
        ]
        best = min(fits, key=lambda p: np.mean((p - y)[selecting] ** 2))
        return float(metrics.r2_score(y[held_out], best[held_out]))

    def precision(scores, rows):
        truth, scores = target[rows], scores[rows]
        share = truth.mean(axis=0)
        varies = (share > 0) & (share < 1)
        return float(
            metrics.average_precision_score(truth[:, varies], scores[:, varies])
        )

    fits = [
        np.stack(
            [
                linear_model.LogisticRegression(
                    C=1 / (r * train.sum()), max_iter=2000, tol=1e-8
                )
                .fit(x[train], t[train])
                .decision_function(x)
                for t in target.T
            ],
            axis=1,
        )
        for r in ours.RIDGES
    ]
    return precision(max(fits, key=lambda s: precision(s, selecting)), held_out)
