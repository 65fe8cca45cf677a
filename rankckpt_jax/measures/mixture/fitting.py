"""Fitting a mixture: validation, the choice of EM, and the division among devices.

The points are centered, padded and cut into blocks (`blocks`). Two programs exist, and
each runs EM to its end on the devices:

- `sparse_em` for full covariances where components have fewer points than dimensions on
  average. Each device computes a part of the components from all points.
- `em` for the rest, and if `sparse_em` gives up. Each device computes all components
  from a part of the points.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.devices import mapping
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.measures.mixture import covariance, em, kmeans, sparse_em
from rankckpt_jax.measures.statistics import blocks

_MAX_ITER = 100
"""Iterations of EM by default."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A fitted mixture.

    Attributes:
      points: [N, D], the training points minus `center`.
      center: [D], their mean.
      setting: The settings of EM.
      ridge: Added to every variance.
      lower_bounds: Mean log likelihood of each E-step, [iterations + 1].
      converged: Whether the bound changed by less than `tol`.
      sparse: The result of `sparse_em`, if it finished; else None.
      data: The points of `em` on the devices; None for `sparse_em`.
      mixture: The result of `em`, of centered and padded points; None for `sparse_em`.
    """

    points: np.ndarray
    center: np.ndarray
    setting: em.Setting
    ridge: float
    lower_bounds: np.ndarray
    converged: bool
    sparse: sparse_em.Result | None = None
    data: em.Data | None = None
    mixture: covariance.Parameters | None = None

    def parameters(self) -> covariance.Parameters:
        """Return the mixture of the centered points, without padding, in NumPy."""
        if self.sparse is not None:
            count, lists = self.setting.num_components, self.sparse.source
            points, values = (np.asarray(a)[:count] for a in lists)
            return covariance.from_lists(self.points, points, values, self.ridge)
        size = self.points.shape[1]
        mixture: Any = self.mixture
        weights, means, *matrices = map(np.asarray, mixture)
        axes = {"full": (1, 2), "tied": (0, 1), "diag": (1,), "spherical": ()}
        cut = [slice(None)] * matrices[0].ndim
        for axis in axes[self.setting.covariance_type]:
            cut[axis] = slice(size)
        matrices = [matrix[tuple(cut)] for matrix in matrices]
        return covariance.Parameters(weights, means[:, :size], *matrices)


def fit(
    x: Any,
    num_components: int,
    *,
    covariance_type: str = "full",
    init_labels: Any = None,
    reg_covar: float = 1e-6,
    tol: float = 1e-3,
    max_iter: int = _MAX_ITER,
    seed: int = 0,
) -> Fitted:
    """Fit a mixture; arguments as for `gmm.fit`."""
    x = np.asarray(jnp.asarray(x))
    _check(x, num_components, covariance_type, max_iter)
    num_components = int(num_components)
    if init_labels is None:
        init_labels = kmeans.fit(x, num_components, seed).assignments
    labels = _check_labels(init_labels, len(x), num_components)
    center = x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    centered = x - center
    setting = em.Setting(covariance_type, num_components, max_iter)
    padded = blocks.pad_dimensions(centered)
    shape = blocks.shape(len(x), max(num_components, padded.shape[1]))
    scalars = (x.shape[1], len(x), reg_covar, tol)
    data = em.Data(
        blocks.split(padded, shape),
        blocks.row_mask(len(x), shape, x.dtype),
        *(np.asarray(scalar, x.dtype) for scalar in scalars),
    )
    fitted = functools.partial(Fitted, centered, center, setting, reg_covar)
    width = sparse_em.width(len(x), num_components)
    few_points = len(x) < num_components * x.shape[1]
    fits = np.bincount(labels).max() <= width
    if covariance_type == "full" and few_points and fits:
        empty = shape[0] * shape[1]
        lists = sparse_em.hard_lists(labels, num_components, width, empty, x.dtype)
        count = -(-num_components // blocks.num_devices())
        divided = [
            blocks.for_devices(blocks.split(array, (blocks.num_devices(), count), fill))
            for array, fill in zip(lists, (empty, 0), strict=True)
        ]
        result = run_sparse(setting)(data, sparse_em.Lists(*divided))
        if not np.asarray(result.failed):
            return fitted(*_progress(result.progress), sparse=result)
    data = data._replace(
        x=blocks.for_devices(data.x), mask=blocks.for_devices(data.mask)
    )
    labels = blocks.for_devices(blocks.split(labels, shape, fill=num_components))
    progress, mixture = run_dense(setting)(data, labels)
    return fitted(*_progress(progress), data=data, mixture=mixture)


def dense_program(
    num_rows: int, dimensions: int, num_components: int, covariance_type: str = "full"
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return dense EM in float32 and the shapes of its arguments, without points.

    Args:
      num_rows: Number of points, N.
      dimensions: D.
      num_components: K.
      covariance_type: One of `covariance.TYPES`.
    """
    size = blocks.padded_size(dimensions)
    count, rows = blocks.shape(num_rows, max(num_components, size))
    local = mapping.local_device_count(), count // blocks.num_devices(), rows
    shape = jax.ShapeDtypeStruct
    scalars = [shape((), np.float32)] * 4
    points, mask = shape((*local, size), np.float32), shape(local, np.float32)
    data = em.Data(points, mask, *scalars)
    setting = em.Setting(covariance_type, num_components, _MAX_ITER)
    return run_dense(setting), (data, shape(local, np.int32))


def _progress(progress: em.Progress) -> tuple[np.ndarray, bool]:
    """Return the lower bounds that were computed, and whether EM converged."""
    bounds, step, converged = map(np.asarray, progress)
    return bounds[: int(step) + 1], bool(converged)


DATA_AXES: Any = em.Data(*(0, 0, None, None, None, None))
"""Axes of `em.Data` for `map_devices` if the points are divided."""


@functools.lru_cache(maxsize=64)
def run_sparse(setting: em.Setting) -> Callable[..., sparse_em.Result]:
    """Return the mapped `sparse_em.run`, from points and divided lists."""

    def run(data: em.Data, lists: sparse_em.Lists) -> sparse_em.Result:
        lists = sparse_em.Lists(*(array[0] for array in lists))
        return sparse_em.run(setting, data, lists)

    return mapping.map_devices(run, in_axes=(None, 0), out_axes=None)


@functools.lru_cache(maxsize=64)
def run_dense(setting: em.Setting) -> Callable[..., Any]:
    """Return the mapped `em.run`, from divided points and labels."""

    def run(data: em.Data, labels: jax.Array) -> Any:
        return em.run(setting, data, labels)

    return mapping.map_devices(run, in_axes=(DATA_AXES, 0), out_axes=None)


def _check(
    x: np.ndarray, num_components: int, covariance_type: str, max_iter: int
) -> None:
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind != "f":
        raise InputError(
            "A mixture needs a matrix of floats",
            expected="shape [N, D] with N and D of at least 1",
            found=f"{x.dtype} of shape {list(x.shape)}",
        )
    if not np.isfinite(x).all():
        bad = int(np.sum(~np.isfinite(x)))
        raise InputError("points must be finite", found=f"{bad} NaN or infinite values")
    if not 1 <= num_components <= len(x):
        raise InputError(
            "num_components must be between 1 and the number of points",
            expected=f"1 to {len(x)} components",
            found=f"{num_components}",
        )
    if covariance_type not in covariance.TYPES:
        raise unknown_name(
            "covariance_type", covariance_type, covariance.TYPES, "covariance_type"
        )
    if max_iter < 1:
        raise InputError("max_iter must be at least 1", found=f"{max_iter}")


def _check_labels(labels: Any, num_rows: int, num_components: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (num_rows,) or labels.dtype.kind not in "iu":
        raise InputError(
            "init_labels must be one integer per point",
            expected=f"integers of shape [{num_rows}]",
            found=f"{labels.dtype} of shape {list(labels.shape)}",
        )
    if labels.min() < 0 or labels.max() >= num_components:
        raise InputError(
            "init_labels must be indices of components",
            expected=f"0 to {num_components - 1}",
            found=f"{labels.min()} to {labels.max()}",
        )
    return labels.astype(np.int32)
