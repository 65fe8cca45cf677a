"""Fitting a mixture: validation, division among devices, and the choice of EM.

The points are centered, padded, cut into blocks, and divided among the devices of all
processes (`blocks`). Each mapped program is compiled once per shape and runs EM to its
end on the device. With full covariances and few points per component, `sparse_em` runs
first, and `em` only if it gives up. `sparse_em` does not need [D, D] covariances, so
they are computed only when they are read.
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

_SPARSE_POINTS = 4
"""`sparse_em` is tried if components have fewer points than this times D on average."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A fitted mixture with its training points on the devices.

    Attributes:
      state: The final state of EM; its `parameters` are None.
      num_components: K.
      center: [D], the mean of the points.
      setting: The settings of EM.
      data: The points; the leading axis is the local device.
      lists: All responsibilities that are not 0, if `sparse_em` finished; else None.
      source: What `parameters` is computed from: the mixture itself, or the lists from
        which an M-step computes it.
    """

    state: em.State
    num_components: int
    center: np.ndarray
    setting: em.Setting
    data: em.Data
    lists: sparse_em.Lists | None
    source: covariance.Parameters | sparse_em.Lists

    @property
    def lower_bounds(self) -> np.ndarray:
        """Mean log likelihood of each E-step, [iterations + 1]."""
        steps = int(np.asarray(self.state.step))
        return np.asarray(self.state.lower_bounds)[: steps + 1]

    @functools.cached_property
    def parameters(self) -> covariance.Parameters:
        """The mixture of the centered and padded points."""
        if isinstance(self.source, covariance.Parameters):
            return self.source
        return _m_step(self.num_components)(self.data, self.source)


def fit(
    x: Any,
    num_components: int,
    *,
    covariance_type: str = "full",
    init_labels: Any = None,
    reg_covar: float = 1e-6,
    tol: float = 1e-3,
    max_iter: int = 100,
    seed: int = 0,
) -> Fitted:
    """Fit a mixture and keep the points on the devices; arguments as for `gmm.fit`."""
    x = np.asarray(jnp.asarray(x))
    _check(x, num_components, covariance_type, max_iter)
    if init_labels is None:
        init_labels = kmeans.fit(x, num_components, seed).assignments
    labels = _check_labels(init_labels, len(x), num_components)
    center = x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    padded = blocks.pad_dimensions(x - center)
    shape = blocks.shape(len(x), _num_columns(covariance_type, num_components, padded))
    mask = blocks.row_mask(len(x), shape, x.dtype)
    scalars = (x.shape[1], len(x), reg_covar, tol)
    data = em.Data(
        blocks.for_devices(blocks.split(padded, shape)),
        blocks.for_devices(mask),
        *(np.asarray(scalar, x.dtype) for scalar in scalars),
    )
    setting = em.Setting(covariance_type, max_iter)
    few_points = len(x) < _SPARSE_POINTS * x.shape[1] * num_components
    width = sparse_em.width(int(np.bincount(labels).max()), x.shape[1])
    labels = blocks.for_devices(blocks.split(labels, shape, fill=num_components))
    if covariance_type == "full" and few_points:
        run = _run_sparse(setting, num_components, width)
        state, source, lists, dense = run(data, labels)
        if not bool(np.asarray(dense)):
            return Fitted(state, num_components, center, setting, data, lists, source)
        state = state._replace(parameters=_m_step(num_components)(data, source))
    else:
        state = _init(setting, num_components)(data, labels)
    state = _run_dense(setting)(data, state)
    source, state = state.parameters, state._replace(parameters=None)
    return Fitted(state, num_components, center, setting, data, None, source)


def _num_columns(covariance_type: str, num_components: int, x: np.ndarray) -> int:
    """Return the size of the largest array per point that EM computes."""
    if covariance_type != "full":
        return max(num_components, x.shape[1])
    statistics = x.shape[1] ** 2 // 2
    return max(num_components, min(statistics, num_components * x.shape[1]))


DATA_AXES: Any = em.Data(*(0, 0, None, None, None, None))
"""Axes of `em.Data` for `map_devices`: points are divided, scalars replicated."""


@functools.lru_cache(maxsize=64)
def _init(setting: em.Setting, num_components: int) -> Callable[..., Any]:
    """Return the mapped initialization: points and labels -> `em.State`."""

    def init(data: em.Data, labels: jax.Array) -> em.State:
        if setting.covariance_type != "full":
            return em.init_from_labels(setting, data, labels, num_components)
        lists = sparse_em.hard_lists(labels.reshape(-1), num_components, data.x.dtype)
        mixture = sparse_em.m_step(data, lists, num_components)
        return em.init_state(mixture, setting.max_iter)

    return mapping.map_devices(init, in_axes=(DATA_AXES, 0), out_axes=None)


@functools.lru_cache(maxsize=64)
def _run_sparse(
    setting: em.Setting, num_components: int, width: int | None
) -> Callable[..., Any]:
    """Return the mapped `sparse_em.run`, from points and labels."""

    def run(data: em.Data, labels: jax.Array) -> Any:
        lists = sparse_em.hard_lists(labels.reshape(-1), num_components, data.x.dtype)
        return sparse_em.run(setting, data, lists, num_components, width)

    axes = (None, 0, 0, None)
    return mapping.map_devices(run, in_axes=(DATA_AXES, 0), out_axes=axes)


@functools.lru_cache(maxsize=64)
def _m_step(num_components: int) -> Callable[..., Any]:
    """Return the mapped M-step: points and lists -> `covariance.Parameters`."""

    def m_step(data: em.Data, lists: sparse_em.Lists) -> covariance.Parameters:
        return sparse_em.m_step(data, lists, num_components)

    return mapping.map_devices(m_step, in_axes=(DATA_AXES, 0), out_axes=None)


@functools.lru_cache(maxsize=64)
def _run_dense(setting: em.Setting) -> Callable[..., Any]:
    """Return the mapped `em.run`: points and state -> state."""

    def run(data: em.Data, state: em.State) -> em.State:
        return em.run(setting, data, state)

    return mapping.map_devices(run, in_axes=(DATA_AXES, None), out_axes=None)


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
