"""Statistics of a feature matrix, computed once and shared by measures.

N images, D dimensions, C classes, m the mean of all features, g_c the mean of class c
minus m, n_c the number of images of class c:

    scatter  T = sum_i (x_i - m)(x_i - m)'    within  W = T - sum_c n_c g_c g_c'

Where an image has several labels or a number instead of a class, "classes" are the
strata of `inputs`, and the target has columns t [N, T]: 0 or 1 per label, or the
standardized number. Classes have the columns t_ic = 1[y_i = c]. With the mean t of a
column, measures of linear prediction read

    sums  s = sum_i t_i     squares  q = sum_i (t_i - t)^2
    products  P = sum_i (t_i - t)(x_i - m)

All statistics are float64, whatever the features are. Sums over images run on the
device (see `symmetric`), decompositions on the host. One pass of 2 N D^2 FLOP, and one
eigenvalue problem if eigenvectors are needed, serve all measures of a checkpoint.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rankckpt_jax.measures.statistics import symmetric

_BLOCK = 4096
"""Rows that are converted to float64 at once."""

_CONDITION = 1e-7
"""Smallest reciprocal condition number of T for which its Cholesky factor is used."""


class Statistics:
    """Statistics of features [N, D] with labels [N], computed on first use.

    Attributes:
      features: [N, D].
      labels: int [N] in 0 ... C-1: the classes, or the strata of another target.
      num_classes: C.
      columns: float64 [N, T], the target if it is not classes; else None.
    """

    def __init__(
        self,
        features: Any,
        labels: Any,
        num_classes: int,
        columns: np.ndarray | None = None,
    ):
        """Store features and labels, which are not checked."""
        self.features = np.asarray(features)
        self.labels = np.asarray(labels)
        self.num_classes = num_classes
        self.columns = columns

    def take(self, rows: np.ndarray) -> Statistics:
        """Return statistics of the images `rows` [M]."""
        columns = None if self.columns is None else self.columns[rows]
        return Statistics(
            self.features[rows], self.labels[rows], self.num_classes, columns=columns
        )

    @property
    def num_columns(self) -> int:
        """T, the number of columns of the target."""
        return self.num_classes if self.columns is None else self.columns.shape[1]

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.labels)

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Number of images n_c of each class: int [C]."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def class_sums(self, rows: np.ndarray) -> np.ndarray:
        """Return sums of rows [N, K] over each class: float64 [C, K]."""
        sums = np.zeros((self.num_classes, rows.shape[1]))
        for label, group in enumerate(self.groups):
            for start in range(0, len(group), _BLOCK):
                part = rows[group[start : start + _BLOCK]]
                sums[label] += part.sum(axis=0, dtype=np.float64)
        return sums

    @property
    def groups(self) -> list[np.ndarray]:
        """Indices of the rows of each class: C arrays."""
        return np.split(self.by_class, np.cumsum(self.sizes)[:-1])

    @functools.cached_property
    def by_class(self) -> np.ndarray:
        """Indices of all rows, sorted by class: int [N]."""
        return np.argsort(self.labels, kind="stable")

    @functools.cached_property
    def _rough_mean(self) -> np.ndarray:
        mean = self.features.mean(axis=0, dtype=np.float64)
        return mean.astype(self.features.dtype)

    @functools.cached_property
    def centered(self) -> np.ndarray:
        """Features minus their mean, which is rounded to their dtype: [N, D]."""
        return self.features - self._rough_mean

    @functools.cached_property
    def _centered_sums(self) -> np.ndarray:
        """Sums of `centered` over each class: float64 [C, D]."""
        return self.class_sums(self.centered)

    @functools.cached_property
    def rest(self) -> np.ndarray:
        """Mean of `centered`, which is about 0: float64 [D]."""
        return self._centered_sums.sum(axis=0) / self.num_images

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """Mean m of the features: float64 [D]."""
        return self._rough_mean.astype(np.float64) + self.rest

    @functools.cached_property
    def class_means(self) -> np.ndarray:
        """Centered means g_c of the classes: float64 [C, D]."""
        return self._centered_sums / self.sizes[:, None] - self.rest

    @functools.cached_property
    def sums(self) -> np.ndarray:
        """Sums s of each column of the target: float64 [T]."""
        columns = self.columns
        return self.sizes.astype(float) if columns is None else columns.sum(axis=0)

    @functools.cached_property
    def squares(self) -> np.ndarray:
        """Squares q of each column of the target: float64 [T]."""
        if self.columns is None:
            return self.sizes * (1 - self.sizes / self.num_images)
        return np.square(self.columns - self.sums / self.num_images).sum(axis=0)

    @functools.cached_property
    def products(self) -> np.ndarray:
        """Products P of each column of the target: float64 [T, D]."""
        if self.columns is None:
            return self.sizes[:, None] * self.class_means
        products = np.zeros((self.num_columns, self.features.shape[1]))
        mean = self.sums / self.num_images
        for start in range(0, len(self.columns), _BLOCK):
            part = slice(start, start + _BLOCK)
            columns = self.columns[part] - mean
            products += columns.T @ (self.centered[part] - self.rest)
        return products

    @functools.cached_property
    def squared_norms(self) -> np.ndarray:
        """|x_i - m|^2: float64 [N]."""
        blocks = range(0, len(self.labels), _BLOCK)
        rows = (self.centered[start : start + _BLOCK] - self.rest for start in blocks)
        return np.concatenate([np.einsum("ij,ij->i", row, row) for row in rows])

    @functools.cached_property
    def scatter(self) -> np.ndarray:
        """T, float64 [D, D]."""
        rest = self.rest
        product = symmetric.gram(self.centered)
        product -= self.num_images * np.outer(rest, rest)
        return product

    @functools.cached_property
    def within(self) -> np.ndarray:
        """W, float64 [D, D]."""
        means = self.class_means
        return self.scatter - (self.sizes[:, None] * means).T @ means

    @functools.cached_property
    def decomposition(self) -> symmetric.Decomposition:
        """Eigenvalues of T, and eigenvectors that are not formed yet."""
        return symmetric.decompose(self.scatter)

    @functools.cached_property
    def spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues [D] of T, ascending and at least 0, and eigenvectors [D, D]."""
        values = self.decomposition.values
        return np.maximum(values, 0), self.decomposition.leading(len(values))

    @functools.cached_property
    def factor(self) -> np.ndarray | None:
        """Cholesky factor L [D, D] of T = L L', or None if T is nearly singular.

        Solving with L could then lose more than half of the digits, and `spectrum`
        separates directions of variance from rounding error.
        """
        if len(self.labels) <= self.features.shape[1]:
            return None
        return symmetric.factor(self.scatter, least=_CONDITION)

    @functools.cached_property
    def rank(self) -> int:
        """Number of eigenvalues of T above rounding error."""
        if self.factor is not None:
            return len(self.factor)
        return symmetric.rank(self.spectrum[0], max(self.features.shape))

    @functools.cached_property
    def num_distinct(self) -> int:
        """Number of different rows of the features."""
        rows = np.ascontiguousarray(self.features)
        weights = np.random.default_rng(0).normal(size=rows.shape[1])
        blocks = range(0, len(rows), _BLOCK)
        sums = [(rows[i : i + _BLOCK] * weights).sum(axis=1) for i in blocks]
        # Rows with equal sums are almost surely equal, and equal rows have equal sums.
        return len(np.unique(np.concatenate(sums)))

    @functools.cached_property
    def has_equal_rows(self) -> bool:
        """Whether all rows of the features are equal."""
        x = self.features
        # The first rows of ordinary features differ already.
        return bool((x[:_BLOCK] == x[:1]).all() and (x == x[:1]).all())

    @functools.cached_property
    def has_equal_classes(self) -> bool:
        """Whether each row equals the others of its class, and some class has two."""
        firsts = self.by_class[np.cumsum(self.sizes) - self.sizes]
        blocks = range(0, len(self.labels), _BLOCK)
        return len(firsts) < len(self.labels) and all(
            (x == self.features[firsts[self.labels[i : i + _BLOCK]]]).all()
            for i in blocks
            for x in [self.features[i : i + _BLOCK]]
        )

    def principal(self, count: int) -> np.ndarray:
        """Return the first principal components: float64 [N, min(count, N, D)].

        The computation runs in blocks, so that no N x D copy in float64 exists.
        """
        count = min(count, *self.features.shape)
        vectors = self.spectrum[1][:, ::-1][:, :count]
        projected = np.empty((len(self.labels), count))
        for start in range(0, len(projected), _BLOCK):
            block = self.centered[start : start + _BLOCK] - self.rest
            projected[start : start + _BLOCK] = block @ vectors
        return projected

    @functools.cached_property
    def coordinates(self) -> np.ndarray:
        """Features minus m along the eigenvectors of T: [N, max(rank, 1)].

        The first has the largest variance. They are as precise as the features: the
        products are computed in their dtype, in half the time of float64.
        """
        dtype = self.features.dtype
        vectors = self.spectrum[1][:, ::-1][:, : max(self.rank, 1)]
        projected = self.centered @ vectors.astype(dtype)
        projected -= (self.rest @ vectors).astype(dtype)
        return projected
