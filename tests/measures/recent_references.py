"""Plain references of the measures since 2021, as in `references`."""

from __future__ import annotations

import numpy as np
from scipy import spatial, special, stats
from sklearn import discriminant_analysis, model_selection, neighbors


def cka(x: np.ndarray, y: np.ndarray) -> float:
    x, one_hot = x - x.mean(axis=0), np.eye(y.max() + 1)[y]
    one_hot -= one_hot.mean(axis=0)
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(one_hot.T @ one_hot)
    return float(np.linalg.norm(x.T @ one_hot) ** 2 / norms)


def lfc(x: np.ndarray, y: np.ndarray, variant: str) -> float:
    kernel = np.corrcoef(x) if variant == "lfc_correlation" else x @ x.T
    if variant == "lfc_cosine":
        length = np.sqrt(np.diagonal(kernel))
        kernel = kernel / np.outer(length, length)
    same = np.where(y[:, None] == y, 1.0, -1.0)
    if variant == "lfc_uncentered":
        norms = np.linalg.norm(kernel) * np.linalg.norm(same)
        return float(np.sum(kernel * same) / norms)
    return float(stats.pearsonr(kernel.ravel(), same.ravel()).statistic)


def tmi(x: np.ndarray, y: np.ndarray, least: float | None = 0.0) -> float:
    """TMI with distances of at least `least`; None for the smallest positive one."""
    groups = [x[y == c] for c in np.unique(y) if np.sum(y == c) > 3]
    distances = []
    for group in groups:
        search = neighbors.NearestNeighbors(n_neighbors=3, metric="chebyshev").fit(
            group
        )
        distances.append(search.kneighbors()[0][:, -1])
    if least is None:
        least = min(r[r > 0].min() for r in distances)
    entropies = [
        special.digamma(len(r))
        - special.digamma(3)
        + x.shape[1] * np.log(2 * np.maximum(r, least)).mean()
        for r in distances
    ]
    return float(np.average(entropies, weights=[len(r) for r in distances]))


def lda_accuracy(x: np.ndarray, y: np.ndarray, shrinkage: str = "none") -> float:
    lda = discriminant_analysis.LinearDiscriminantAnalysis
    plain = shrinkage == "none"
    model = lda() if plain else lda(solver="lsqr", shrinkage="auto")
    folds = model_selection.StratifiedKFold(5)
    return float(np.mean(model_selection.cross_val_predict(model, x, y, cv=folds) == y))


def rankme(x: np.ndarray) -> float:
    singular = np.linalg.svd(x, compute_uv=False)
    shares = singular / singular.sum() + 1e-7
    return float(np.exp(special.entr(shares).sum()))


def disco(x: np.ndarray, y: np.ndarray) -> float:
    x = x - x.mean(axis=0)
    _, singular, right = np.linalg.svd(x, full_matrices=False)
    accuracies = []
    for projected in (x @ right.T).T:
        model = neighbors.NearestCentroid().fit(projected[:, None], y)
        accuracies.append(model.score(projected[:, None], y))
    kept = singular > 1e-10 * singular[0]
    return float(np.average(np.array(accuracies)[kept], weights=singular[kept]))


def concept_variation(x: np.ndarray, y: np.ndarray) -> float:
    """As pymfe's `ft_conceptvar`, averaged over images."""
    width = np.ptp(x, axis=0)
    x = (x - x.min(axis=0)) / np.where(width > 0, width, 1)
    d = spatial.distance.cdist(x, x)
    weights = 2 ** (-2 * d / np.maximum(np.sqrt(x.shape[1]) - d, 1e-9))
    np.fill_diagonal(weights, 0)
    other = weights * (y[:, None] != y)
    return float(np.mean(other.sum(axis=1) / weights.sum(axis=1)))
