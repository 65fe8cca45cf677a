"""Fill a Keras model with the weights of its file.

HDF5 files of Keras 2 list the weights of a nested model in an order that depends on
which layers were frozen. Weights are therefore found by their names where these are
unambiguous, and by their order otherwise, as Keras does.
"""

from __future__ import annotations

import collections
import pathlib
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from rankckpt_jax.checkpoints.sources import keras_config

_MEMBER = "model.weights.h5"
# Keras 2 calls the kernel of a depthwise convolution by another name.
_RENAMED = {"depthwise_kernel": "kernel"}

_Key = tuple[str, str]


def load(model: Any, path: epath.Path) -> None:
    """Set a model's variables to the values in a file.

    Args:
      model: The `keras.Model`.
      path: The `.keras` or HDF5 file.

    Raises:
      ValueError: The weights do not fit the model.
    """
    if not model.built:
        raise ValueError("the shape of its images is not in the file")
    if path.suffix != ".keras":
        _load_hdf5(model, path)
        return
    with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(path) as archive:
        model.load_weights(archive.extract(_MEMBER, directory))


def _load_hdf5(model: Any, path: epath.Path) -> None:
    # Imported late for start-up time.
    import h5py

    with h5py.File(pathlib.Path(path), "r") as file:
        assigned = _assign_by_name(model, file.get("model_weights", file))
    if not assigned:
        model.load_weights(str(path))
    for layer in _leaves(model):
        # Normalization computes with values that it derives from its variables.
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def _assign_by_name(model: Any, weights: Any) -> bool:
    """Set all variables from the data of their names; False if any is ambiguous."""
    groups = {
        keras_config.layer_name(name): weights[name] for name in _layer_names(weights)
    }
    found = []
    for layer in model.layers:
        values = {}
        if layer.name in groups:
            data = list(_datasets(groups[layer.name]))
            inner = [((key[0].split("/")[-1], key[1]), item) for key, item in data]
            whole = [((key[0].replace("/", "_"), key[1]), item) for key, item in data]
            values = _unique(inner) | _unique(whole)
        variables = [pair for leaf in _leaves(layer) for pair in _variables(leaf)]
        if len(_unique(variables)) != len(variables):
            return False
        found += [(variable, values.get(key)) for key, variable in variables]
    if any(v is None or tuple(v.shape) != tuple(var.shape) for var, v in found):
        return False
    for variable, value in found:
        variable.assign(np.asarray(value))
    return True


def _layer_names(weights: Any) -> list[str]:
    # A long list is kept in several attributes, with numbers at their ends.
    listed = [weights.attrs[key] for key in weights.attrs if "layer_names" in key]
    names = [name for part in listed for name in part]
    return [n.decode() if isinstance(n, bytes) else str(n) for n in names]


def _leaves(layer: Any) -> Iterator[Any]:
    """Yield a layer, or the layers of a nested model."""
    if not hasattr(layer, "layers"):
        yield layer
        return
    for child in layer.layers:
        yield from _leaves(child)


def _variables(layer: Any) -> Iterator[tuple[_Key, Any]]:
    """Yield the variables of a layer by the names of layer and variable."""
    for variable in layer.weights:
        yield (layer.name, _RENAMED.get(variable.name, variable.name)), variable


def _datasets(group: Any, scope: str = "") -> Iterator[tuple[_Key, Any]]:
    """Yield the data of a group by the path and the name of a variable."""
    # Imported late for start-up time.
    import h5py

    for name in group:
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(item, f"{scope}/{name}" if scope else name)
            continue
        leaf = name.split(":")[0]
        yield (scope, _RENAMED.get(leaf, leaf)), item


def _unique(items: list[tuple[_Key, Any]]) -> dict[_Key, Any]:
    """Return the items whose keys occur once."""
    counts = collections.Counter(key for key, _ in items)
    return {key: item for key, item in items if counts[key] == 1}
