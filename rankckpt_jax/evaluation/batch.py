"""Metrics of many rankings at once, for resampling.

All functions take B rankings of n checkpoints: scores s [B, n] and accuracies a [B, n],
float64, finite. `scores.score_ranking` defines the metrics. It calls SciPy for single
rankings, which would take a second for a thousand of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

DEPTHS = (1, 3)
"""The k of Recall@k and Rel@k."""

CORRELATIONS = ("pearson", "kendall", "spearman", "weighted_kendall")
"""The correlations among the METRICS."""

METRICS = ("recall@1", "recall@3", "rel@1", "rel@3", *CORRELATIONS)
"""The metrics that `evaluate` computes, those of `score_ranking`."""

_BLOCK_ELEMENTS = 1 << 16
"""Number of elements of an array of pairs, which then fits in the cache: 0.5 MB."""


def evaluate(
    s: np.ndarray, a: np.ndarray, metrics: Collection[str] = METRICS
) -> dict[str, np.ndarray]:
    """Return some of the METRICS, each float64 [B], NaN where undefined."""
    correlations = {
        "pearson": pearson,
        "kendall": kendall,
        "spearman": spearman,
        "weighted_kendall": weighted_kendall,
    }
    is_correlation = set(metrics) <= correlations.keys()
    values = {} if is_correlation else top_metrics(s, a)
    values |= {
        name: correlation(s, a)
        for name, correlation in correlations.items()
        if name in metrics
    }
    return {name: values[name] for name in METRICS if name in metrics}


def top_metrics(s: np.ndarray, a: np.ndarray) -> dict[str, np.ndarray]:
    """Return Recall@k and Rel@k for k in DEPTHS, each float64 [B]."""
    parts = {k: _top(s, a, k) for k in DEPTHS}
    return {f"recall@{k}": part[0] for k, part in parts.items()} | {
        f"rel@{k}": part[1] for k, part in parts.items()
    }


def _top(s: np.ndarray, a: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (Recall@k, Rel@k), the means over all ways to break ties of the scores.

    Of the t checkpoints that tie at place k, m are drawn in one of comb(t, m) ways. The
    j-th best of them (from 0) is the best one drawn in comb(t - j - 1, m - 1) ways,
    since the other m - 1 are worse. If u of the t are not the best of all checkpoints,
    comb(u, m) ways draw none of the best.
    """
    # Imported here for start-up time.
    from scipy.special import comb

    size, n = s.shape
    if not n:
        return np.full(size, np.nan), np.full(size, np.nan)
    k = min(k, n)
    order = np.lexsort((-a, -s), axis=-1)
    s = np.take_along_axis(s, order, axis=1)
    a = np.take_along_axis(a, order, axis=1)
    threshold = s[:, k - 1 : k]
    chosen, tied = s > threshold, s == threshold
    c, t = chosen.sum(1), tied.sum(1)
    m = k - c
    highest = a.max(1)
    best = a == highest[:, None]
    ways = comb(t, m)
    none_of_best = comb((tied & ~best).sum(1), m) / ways
    recall = np.where((chosen & best).any(1), 1.0, 1.0 - none_of_best)
    base = np.where(chosen, a, -np.inf).max(1, keepdims=True)
    j = np.arange(n) - c[:, None]
    share = comb(t[:, None] - j - 1, m[:, None] - 1) / ways[:, None]
    share = np.where(tied, share, 0.0)
    mean_best = (share * np.where(tied, np.maximum(base, a), 0.0)).sum(1)
    positive = highest > 0
    rel = np.where(positive, mean_best / np.where(positive, highest, 1.0), np.nan)
    return recall, rel


def pearson(s: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Return Pearson's r, float64 [B]."""
    return _defined(s, a, _pearson)


def spearman(s: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Return Spearman's rho, float64 [B]: Pearson's r of the mean ranks."""
    # Imported here for start-up time.
    from scipy.stats import rankdata

    return _defined(
        s, a, lambda s, a: _pearson(rankdata(s, axis=1), rankdata(a, axis=1))
    )


def kendall(s: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-b, float64 [B]: the cosine of the signs of all pairs."""
    return _of_pairs(s, a, _kendall)


def weighted_kendall(s: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Return Vigna's weighted tau, float64 [B], as `scipy.stats.weightedtau` does.

    A pair of ranks r and t weighs 1 / (r + 1) + 1 / (t + 1). The result is the mean of
    those for the ranks by s and for the ranks by a.
    """
    by_s = _of_pairs(s, a, _weighted_kendall)
    return (by_s + _of_pairs(a, s, _weighted_kendall)) / 2


def _of_pairs(
    s: np.ndarray,
    a: np.ndarray,
    correlation: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Apply a correlation of all pairs to blocks of rankings."""
    num_pairs = s.shape[1] * (s.shape[1] - 1) // 2
    rows = max(1, _BLOCK_ELEMENTS // max(1, num_pairs))
    starts = range(0, len(s), rows)
    parts = [_defined(s[i : i + rows], a[i : i + rows], correlation) for i in starts]
    return np.concatenate(parts) if parts else np.zeros(0)


def _pearson(s: np.ndarray, a: np.ndarray) -> np.ndarray:
    s = s - s.mean(1, keepdims=True)
    a = a - a.mean(1, keepdims=True)
    # Scaling prevents overflow: scores may be numbers of parameters.
    s = s / np.abs(s).max(1, keepdims=True)
    a = a / np.abs(a).max(1, keepdims=True)
    norms = np.sqrt((s * s).sum(1) * (a * a).sum(1))
    return np.clip((s * a).sum(1) / norms, -1.0, 1.0)


def _kendall(s: np.ndarray, a: np.ndarray) -> np.ndarray:
    i, j = np.triu_indices(s.shape[1], 1)
    pairs_s = np.sign(s[:, i] - s[:, j])
    pairs_a = np.sign(a[:, i] - a[:, j])
    agree = np.einsum("bp,bp->b", pairs_s, pairs_a)
    untied_s = np.einsum("bp,bp->b", pairs_s, pairs_s)
    untied_a = np.einsum("bp,bp->b", pairs_a, pairs_a)
    return agree / np.sqrt(untied_s * untied_a)


def _weighted_kendall(s: np.ndarray, a: np.ndarray) -> np.ndarray:
    i, j = np.triu_indices(s.shape[1], 1)
    # The highest s has rank 0. The order by a decides ties of s.
    order = np.lexsort((-a, -s), axis=-1)
    importance = np.empty_like(s, dtype=np.float64)
    ranks = np.broadcast_to(1.0 / np.arange(1, s.shape[1] + 1), s.shape)
    np.put_along_axis(importance, order, ranks, axis=1)
    weights = importance[:, i] + importance[:, j]
    pairs_s = np.sign(s[:, i] - s[:, j])
    pairs_a = np.sign(a[:, i] - a[:, j])
    agree = (weights * pairs_s * pairs_a).sum(1)
    untied_s = (weights * pairs_s * pairs_s).sum(1)
    untied_a = (weights * pairs_a * pairs_a).sum(1)
    return agree / np.sqrt(untied_s * untied_a)


def _defined(
    s: np.ndarray,
    a: np.ndarray,
    correlation: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Apply a correlation to the rankings in which neither side is constant."""
    result = np.full(len(s), np.nan)
    if s.shape[1] < 2:
        return result
    varied = (np.ptp(s, axis=1) > 0) & (np.ptp(a, axis=1) > 0)
    if varied.any():
        result[varied] = correlation(s[varied], a[varied])
    return result
