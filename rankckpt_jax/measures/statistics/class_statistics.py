"""What many measures read of a feature matrix, computed once and shared.

N images that count w_i times (once, unless resampled), D dimensions, C classes; m the
mean of all features, g_c that of class c less m, n_c its count:

    scatter  T = sum_i w_i (x_i - m)(x_i - m)'    within  W = T - sum_c n_c g_c g_c'

All are float64, whatever the features are: sums over the images on the device (see
`symmetric`), decompositions on the host. One pass of 2 N D^2 FLOP and one eigenvalue
problem, where eigenvectors are needed at all, serve all measures of a checkpoint.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rankckpt_jax.measures.statistics import symmetric

_BLOCK = 4096
"""Rows that are taken to float64 at once."""

_CONDITION = 1e-7
"""Reciprocal of the worst condition number of T that is solved with its factor."""


class Statistics:
    """Sums over features [N, D] with labels [N], each made when first asked for.

    Attributes:
      features: [N, D], as given.
      labels: int [N] in 0 ... C-1.
      num_classes: C.
      weights: float64 [N], how often each image counts; some image of every class does.
    """

    def __init__(
        self,
        features: Any,
        labels: Any,
        num_classes: int,
        weights: np.ndarray | None = None,
    ):
        """Takes checked features and labels; computes nothing."""
        self.features = np.asarray(features)
        self.labels = np.asarray(labels)
        self.num_classes = num_classes
        self.weights = np.ones(len(self.labels)) if weights is None else weights

    def reweight(self, weights: np.ndarray) -> Statistics:
        """Those of the same images, counted `weights` [N] times; nothing is copied."""
        made = Statistics(self.features, self.labels, self.num_classes, weights)
        for shared in ("sizes", "by_class", "_rough_mean", "centered"):
            made.__dict__[shared] = getattr(self, shared)
        return made

    @property
    def total(self) -> float:
        """Number of images, counted as often as they count."""
        return float(self.weights.sum())

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Images of each class, counted as often as they count: float64 [C]."""
        return np.bincount(self.labels, self.weights, self.num_classes)

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Rows of each class, each counted once: int [C]."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def average(self, values: np.ndarray) -> float:
        """The mean over the images of values [N]."""
        return float(self.weights @ values / self.total)

    def class_sums(self, rows: np.ndarray) -> np.ndarray:
        """Sums over each class of rows [N, K], weighted: float64 [C, K]."""
        sums = np.zeros((self.num_classes, rows.shape[1]))
        for label, group in enumerate(self.groups):
            for start in range(0, len(group), _BLOCK):
                part = group[start : start + _BLOCK]
                sums[label] += self.weights[part] @ rows[part]
        return sums

    @property
    def groups(self) -> list[np.ndarray]:
        """Rows of each class."""
        return np.split(self.by_class, np.cumsum(self.sizes)[:-1])

    @functools.cached_property
    def by_class(self) -> np.ndarray:
        """Images ordered by class: int [N]."""
        return np.argsort(self.labels, kind="stable")

    @functools.cached_property
    def _rough_mean(self) -> np.ndarray:
        mean = self.features.mean(axis=0, dtype=np.float64)
        return mean.astype(self.features.dtype)

    @functools.cached_property
    def centered(self) -> np.ndarray:
        """Features less their mean, rounded to their own dtype: [N, D]."""
        return self.features - self._rough_mean

    @functools.cached_property
    def rest(self) -> np.ndarray:
        """The mean of `centered`, which is rounding unless weighted: float64 [D]."""
        return self.class_sums(self.centered).sum(axis=0) / self.total

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """Mean m of the features: float64 [D]."""
        return self._rough_mean.astype(np.float64) + self.rest

    @functools.cached_property
    def class_means(self) -> np.ndarray:
        """Means g_c of the classes about m: float64 [C, D]."""
        return self.class_sums(self.centered) / self.counts[:, None] - self.rest

    @functools.cached_property
    def squared_norms(self) -> np.ndarray:
        """|x_i - m|^2: float64 [N], block by block."""
        blocks = range(0, len(self.labels), _BLOCK)
        rows = (self.centered[start : start + _BLOCK] - self.rest for start in blocks)
        return np.concatenate([np.einsum("ij,ij->i", row, row) for row in rows])

    @functools.cached_property
    def scatter(self) -> np.ndarray:
        """T, float64 [D, D]."""
        rest = self.rest
        product = symmetric.gram(self.centered, self.weights)
        product -= self.total * np.outer(rest, rest)
        return product

    @functools.cached_property
    def within(self) -> np.ndarray:
        """W, float64 [D, D]."""
        means = self.class_means
        return self.scatter - (self.counts[:, None] * means).T @ means

    @functools.cached_property
    def spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues [D], rising and not below 0, and eigenvectors [D, D] of T."""
        values, vectors = symmetric.eigh(self.scatter)
        return np.maximum(values, 0), vectors

    @functools.cached_property
    def factor(self) -> np.ndarray | None:
        """L of T = L L' [D, D]; None where T is singular or near it.

        So near that a solution could lose more than half of its digits: `spectrum`
        then tells which directions are rounding error.
        """
        if len(self.labels) <= self.features.shape[1]:
            return None
        return symmetric.factor(self.scatter, least=_CONDITION)

    @functools.cached_property
    def rank(self) -> int:
        """Number of eigenvalues of T that are more than rounding error."""
        if self.factor is not None:
            return len(self.factor)
        return symmetric.rank(self.spectrum[0], max(self.features.shape))

    def principal(self, count: int) -> np.ndarray:
        """Features on their first principal components: float64 [N, min(count, N, D)].

        Block by block, so that no N x D copy in float64 exists.
        """
        count = min(count, *self.features.shape)
        vectors = self.spectrum[1][:, ::-1][:, :count]
        found = np.empty((len(self.labels), count))
        for start in range(0, len(found), _BLOCK):
            block = self.centered[start : start + _BLOCK] - self.rest
            found[start : start + _BLOCK] = block @ vectors
        return found
