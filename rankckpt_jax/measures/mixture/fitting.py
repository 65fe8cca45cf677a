"""From points to a fitted mixture: checks, devices, and the choice of EM.

The points are centered, padded and cut into blocks, and the blocks divided among the
devices of all processes (`blocks`). Each mapped program is compiled once for the shapes
that it meets and runs EM to its end without a word to the host. With full covariances
and few points for each, `sparse_em` runs first and `em` only if it gives up. It needs
no covariances, which are therefore made when they are asked for.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.devices import mapping, processes
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures.mixture import covariance, em, kmeans, sparse_em
from rankckpt_jax.measures.statistics import blocks

_SPARSE_POINTS = 4
"""Lists are tried where a component has fewer points than this times the dimensions."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A mixture, and its training points as they lie on the devices.

    Attributes:
      state: Where EM ended; its `parameters` are None.
      num_components: K.
      center: [D], the points' mean.
      setting: How it was fitted.
      data: The points, leading axis the local device; by components, all points.
      lists: Where nearly all responsibilities are 0, all others; else None.
      made: What `parameters` needs: the mixture, or the lists that it is made of.
    """

    state: em.State
    num_components: int
    center: np.ndarray
    setting: em.Setting
    data: em.Data
    lists: sparse_em.Lists | None
    made: covariance.Parameters | sparse_em.Lists

    @property
    def lower_bounds(self) -> np.ndarray:
        """[iterations + 1], the mean log likelihood that each E-step found."""
        steps = int(np.asarray(self.state.step))
        return np.asarray(self.state.lower_bounds)[: steps + 1]

    @functools.cached_property
    def parameters(self) -> covariance.Parameters:
        """The mixture, of the centered and padded points."""
        if isinstance(self.made, covariance.Parameters):
            return self.made
        return _m_step(self.num_components)(self.data, self.made)


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
    shard: str = "rows",
) -> Fitted:
    """As `gmm.fit`; the points stay on the devices for what comes next."""
    x = np.asarray(jnp.asarray(x))
    _check(x, num_components, covariance_type, max_iter, shard)
    if init_labels is None:
        init_labels = kmeans.fit(x, num_components, seed).assignments
    labels = _checked_labels(init_labels, len(x), num_components)
    center = x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    padded = blocks.pad_dimensions(x - center)
    shape = blocks.shape(len(x), _columns(covariance_type, num_components, padded))
    scalars = (x.shape[1], len(x), reg_covar, tol)
    data = em.Data(
        blocks.split(padded, shape),
        blocks.row_mask(len(x), shape, x.dtype),
        *(np.asarray(scalar, x.dtype) for scalar in scalars),
    )
    mine = data._replace(
        x=blocks.for_devices(data.x), mask=blocks.for_devices(data.mask)
    )
    setting = em.Setting(covariance_type, max_iter, shard)
    few_points = len(x) < _SPARSE_POINTS * x.shape[1] * num_components
    sparse = covariance_type == "full" and few_points and shard == "rows"
    width = sparse_em.width(int(np.bincount(labels).max()), x.shape[1])
    labels = blocks.for_devices(blocks.split(labels, shape, fill=num_components))
    made: Any
    if sparse:
        run = _run_sparse(setting, num_components, width)
        state, made, lists, dense = run(mine, labels)
        if not bool(np.asarray(dense)):
            return Fitted(state, num_components, center, setting, mine, lists, made)
        state = state._replace(parameters=_m_step(num_components)(mine, made))
    else:
        state = _begin(setting, num_components)(mine, labels)
    if shard == "rows":
        state = _continue(setting)(mine, state)
        made = state.parameters
    else:
        mine = data
        state, made = _by_components(setting, data, state)
    state = state._replace(parameters=None)
    return Fitted(state, num_components, center, setting, mine, None, made)


def _columns(covariance_type: str, num_components: int, x: np.ndarray) -> int:
    """Values that EM makes of each point: K responsibilities, and what leads there."""
    if covariance_type != "full":
        return max(num_components, x.shape[1])
    statistics = x.shape[1] ** 2 // 2
    return max(num_components, min(statistics, num_components * x.shape[1]))


DATA_AXES: Any = em.Data(*(0, 0, None, None, None, None))
"""For `map_devices`: points are divided among the devices, scalars shared."""


@functools.lru_cache(maxsize=64)
def _begin(setting: em.Setting, num_components: int) -> Callable[..., Any]:
    """Maps points and labels to EM before its first iteration."""

    def begin(data: em.Data, labels: jax.Array) -> em.State:
        if setting.covariance_type != "full":
            return em.start(setting, data, labels, num_components)
        lists = sparse_em.hard_lists(labels.reshape(-1), num_components, data.x.dtype)
        mixture = sparse_em.m_step(data, lists, num_components)
        return em.begin(mixture, setting.max_iter)

    return mapping.map_devices(begin, in_axes=(DATA_AXES, 0), out_axes=None)


@functools.lru_cache(maxsize=64)
def _run_sparse(
    setting: em.Setting, num_components: int, width: int | None
) -> Callable[..., Any]:
    """Maps points and labels to what `sparse_em.run` finds."""

    def run(data: em.Data, labels: jax.Array) -> Any:
        lists = sparse_em.hard_lists(labels.reshape(-1), num_components, data.x.dtype)
        return sparse_em.run(setting, data, lists, num_components, width)

    axes = (None, 0, 0, None)
    return mapping.map_devices(run, in_axes=(DATA_AXES, 0), out_axes=axes)


@functools.lru_cache(maxsize=64)
def _m_step(num_components: int) -> Callable[..., Any]:
    """Maps points and lists to the mixture that they make."""

    def m_step(data: em.Data, lists: sparse_em.Lists) -> covariance.Parameters:
        return sparse_em.m_step(data, lists, num_components)

    return mapping.map_devices(m_step, in_axes=(DATA_AXES, 0), out_axes=None)


@functools.lru_cache(maxsize=64)
def _continue(setting: em.Setting) -> Callable[..., Any]:
    """Dense EM, each device with its share of the points and all components."""

    def run(data: em.Data, state: em.State) -> em.State:
        return em.run(setting, data, state)

    return mapping.map_devices(run, in_axes=(DATA_AXES, None), out_axes=None)


@functools.lru_cache(maxsize=64)
def _continue_by_components(setting: em.Setting) -> Callable[..., Any]:
    """Dense EM, each device with all points and its share of the components."""

    def run(
        data: em.Data, state: em.State, mine: covariance.Parameters
    ) -> tuple[em.State, covariance.Parameters]:
        state = em.run(setting, data, state._replace(parameters=mine))
        return state._replace(parameters=None), state.parameters

    return mapping.map_devices(run, in_axes=(None, None, 0), out_axes=(None, 0))


def _by_components(
    setting: em.Setting, data: em.Data, state: em.State
) -> tuple[em.State, covariance.Parameters]:
    """Divides the components among the devices, runs EM, and puts them together."""
    count = len(state.parameters.weights)
    devices = mapping.local_device_count()
    share = -(-count // devices)
    tied = setting.covariance_type == "tied"

    def divide(array: Any, fill: float) -> np.ndarray:
        array = np.asarray(array)
        widths = [(0, share * devices - count)] + [(0, 0)] * (array.ndim - 1)
        array = np.pad(array, widths, constant_values=fill)
        return array.reshape(devices, share, *array.shape[1:])

    def divide_matrices(array: Any) -> np.ndarray:
        if tied:
            return np.repeat(np.asarray(array)[None], devices, axis=0)
        return divide(array, 1)

    weights, means, covariances, factors = state.parameters
    mine = covariance.Parameters(
        divide(weights, 0),
        divide(means, 0),
        divide_matrices(covariances),
        divide_matrices(factors),
    )
    run = _continue_by_components(setting)
    state, parts = run(data, state._replace(parameters=None), mine)

    def join(array: Any) -> np.ndarray:
        array = np.asarray(array)
        return array.reshape(-1, *array.shape[2:])[:count]

    weights, means, covariances, factors = parts
    joined = [np.asarray(a)[0] if tied else join(a) for a in (covariances, factors)]
    return state, covariance.Parameters(join(weights), join(means), *joined)


def _check(
    x: np.ndarray,
    num_components: int,
    covariance_type: str,
    max_iter: int,
    shard: str,
) -> None:
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind != "f":
        raise InputError(
            "A mixture is fitted to a matrix of floats",
            expected="shape [N, D] with N and D of at least 1",
            found=f"{x.dtype} of shape {list(x.shape)}",
        )
    if not np.isfinite(x).all():
        bad = int(np.sum(~np.isfinite(x)))
        raise InputError("points must be finite", found=f"{bad} NaN or infinite values")
    if not 1 <= num_components <= len(x):
        raise InputError(
            "More mixture components than points",
            expected=f"1 to {len(x)} components",
            found=f"{num_components}",
        )
    known = {"covariance_type": covariance.TYPES, "shard": ("rows", "components")}
    for name, value in (("covariance_type", covariance_type), ("shard", shard)):
        if value not in known[name]:
            raise InputError(
                f"Unknown {name} {value!r}", expected=", ".join(known[name])
            )
    if shard == "components" and processes.process_count() > 1:
        raise InputError(
            "Components are divided among the devices of one process only",
            found=f"{processes.process_count()} processes",
            fix="shard by rows",
        )
    if max_iter < 1:
        raise InputError("max_iter must be at least 1", found=f"{max_iter}")


def _checked_labels(labels: Any, num_rows: int, num_components: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (num_rows,) or labels.dtype.kind not in "iu":
        raise InputError(
            "init_labels must be one integer per point",
            expected=f"integers of shape [{num_rows}]",
            found=f"{labels.dtype} of shape {list(labels.shape)}",
        )
    if labels.min() < 0 or labels.max() >= num_components:
        raise InputError(
            "init_labels must name components",
            expected=f"0 to {num_components - 1}",
            found=f"{labels.min()} to {labels.max()}",
        )
    return labels.astype(np.int32)
