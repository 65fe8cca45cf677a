"""What many measures read of a feature matrix, computed once and shared.

N images, D dimensions, C classes; m the mean of all features, g_c that of class c less
m, n_c its count:

    scatter  T = sum_i (x_i - m)(x_i - m)'        within  W = T - sum_c n_c g_c g_c'

All are float64, whatever the features are: sums over the images on the device (see
`symmetric`), decompositions on the host. One pass of 2 N D^2 FLOP and one eigenvalue
problem of D^3 serve all measures of a checkpoint.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rankckpt_jax.measures import symmetric


class Statistics:
    """Sums over features [N, D] with labels [N], each made when first asked for.

    Attributes:
      features: [N, D], as given.
      labels: int [N] in 0 ... C-1.
      num_classes: C.
    """

    def __init__(self, features: Any, labels: Any, num_classes: int):
        """Takes checked features and labels; computes nothing."""
        self.features = np.asarray(features)
        self.labels = np.asarray(labels)
        self.num_classes = num_classes

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Images of each class: float64 [C]."""
        return np.bincount(self.labels, minlength=self.num_classes).astype(np.float64)

    @functools.cached_property
    def by_class(self) -> np.ndarray:
        """Images ordered by class: int [N]."""
        return np.argsort(self.labels, kind="stable")

    @functools.cached_property
    def _rough_mean(self) -> np.ndarray:
        mean = self.features.mean(axis=0, dtype=np.float64)
        return mean.astype(self.features.dtype)

    @functools.cached_property
    def centred(self) -> np.ndarray:
        """Features less their mean, rounded to their own dtype: [N, D]."""
        return self.features - self._rough_mean

    @functools.cached_property
    def rest(self) -> np.ndarray:
        """What rounding left of the mean in `centred`: float64 [D]."""
        return self.centred.mean(axis=0, dtype=np.float64)

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """Mean m of the features: float64 [D]."""
        return self._rough_mean.astype(np.float64) + self.rest

    @functools.cached_property
    def class_means(self) -> np.ndarray:
        """Means g_c of the classes about m: float64 [C, D]."""
        starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(int)
        ordered = self.centred[self.by_class]
        sums = np.add.reduceat(ordered, starts, axis=0, dtype=np.float64)
        return sums / self.counts[:, None] - self.rest

    @functools.cached_property
    def scatter(self) -> np.ndarray:
        """T, float64 [D, D]."""
        rest = self.rest
        return symmetric.gram(self.centred) - len(self.labels) * np.outer(rest, rest)

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
    def rank(self) -> int:
        """Number of eigenvalues of T that are more than rounding error."""
        values = self.spectrum[0]
        shape = max(self.features.shape)
        return int(np.sum(values > values[-1] * shape * np.finfo(np.float64).eps))

    def principal(self, count: int) -> np.ndarray:
        """Features on their first principal components: float64 [N, min(count, D)]."""
        vectors = self.spectrum[1][:, ::-1][:, :count]
        return self.centred @ vectors - self.rest @ vectors
