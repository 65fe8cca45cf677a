"""Converts what users pass as features, logits and labels to plain arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankckpt_jax.data import targets
from rankckpt_jax.errors import InputError, unknown_name

# Methods that make a dense array of a sparse one, of SciPy, PyTorch and JAX.
_DENSE = ("toarray", "to_dense", "todense")


def to_numbers(name: str, values: Any, where: str = "") -> np.ndarray | jax.Array:
    """Convert array-like values to a dense array of real numbers.

    Args:
      name: Name of the argument, for errors.
      values: Anything that NumPy converts, a PyTorch tensor on any device, or a sparse
        matrix. JAX arrays are returned unchanged.
      where: The file or entry that the values came from, for errors.

    Returns:
      An array of integers, booleans or floats in the machine's byte order.

    Raises:
      InputError: The values are ragged, or not real numbers.
    """
    array = _to_array(name, values, where)
    is_real = jnp.issubdtype(array.dtype, np.number) or array.dtype == bool
    if not is_real or jnp.issubdtype(array.dtype, np.complexfloating):
        raise InputError(
            f"{name} must be real numbers",
            where=where or name,
            expected="an array of floats or integers",
            found=f"{_describe(values)} of dtype {array.dtype}",
            fix="pass one array with a row of numbers per image",
        )
    return array


def to_target(
    labels: Any, num_rows: int, target: str = targets.CLASSES, where: str = ""
) -> np.ndarray:
    """Convert what is predicted for each image to an array.

    Args:
      labels: See `to_labels`, `to_label_matrix` or `to_target_numbers`.
      num_rows: N, the number of rows of the features.
      target: A kind of `targets.TARGETS`.
      where: The file or entry that the labels came from, for errors.

    Returns:
      classes: integers or booleans [N]. multi_label: bool [N, L]. regression: float64
      [N].

    Raises:
      InputError: The kind does not exist, or the labels are not of this kind.
    """
    if target not in targets.TARGETS:
        raise unknown_name("target", target, targets.TARGETS, "target")
    if target == targets.MULTI_LABEL:
        return to_label_matrix(labels, num_rows, where)
    if target == targets.REGRESSION:
        return to_target_numbers(labels, num_rows, where)
    return to_labels(labels, num_rows, where)


def to_label_matrix(labels: Any, num_rows: int, where: str = "") -> np.ndarray:
    """Convert several labels per image to bool [N, L].

    Args:
      labels: [N, L], booleans or numbers 0 and 1.
      num_rows: N, the number of rows of the features.
      where: The file or entry that the labels came from, for errors.

    Raises:
      InputError: The shape or a value differs.
    """
    array = np.asarray(to_numbers("labels", labels, where))
    if array.ndim != 2 or len(array) != num_rows or not array.shape[1]:
        raise InputError(
            "Several labels per image need one column per label",
            where=where or "labels",
            expected=f"booleans of shape [{num_rows}, L] with L of at least 1",
            found=f"{array.dtype} of shape {list(array.shape)}",
            fix="set the entry of image i and label l to whether i has l",
        )
    wrong = (array != 0) & (array != 1)
    if wrong.any():
        raise InputError(
            "Several labels per image must be 0 or 1",
            where=where or "labels",
            expected="booleans, or the numbers 0 and 1",
            found=f"{int(wrong.sum())} other values, such as {array[wrong][0]}",
            fix="leave out images whose labels are unknown",
        )
    return array.astype(bool)


def to_target_numbers(labels: Any, num_rows: int, where: str = "") -> np.ndarray:
    """Convert one number per image to float64 [N].

    Args:
      labels: [N] or [N, 1], real numbers.
      num_rows: N, the number of rows of the features.
      where: The file or entry that the numbers came from, for errors.

    Raises:
      InputError: There is not one finite number per row.
    """
    array = np.asarray(to_numbers("labels", labels, where)).astype(np.float64)
    if array.shape not in ((num_rows,), (num_rows, 1)):
        raise InputError(
            "Regression needs one number per row of the features",
            where=where or "labels",
            expected=f"numbers of shape [{num_rows}]",
            found=f"shape {list(array.shape)}",
            fix="rank the checkpoints for each number separately",
        )
    array = array.reshape(-1)
    if bad := int((~np.isfinite(array)).sum()):
        raise InputError(
            "The numbers to predict must be finite",
            where=where or "labels",
            expected="finite numbers",
            found=f"{bad} NaN or infinite values",
            fix="leave out images whose number is unknown",
        )
    return array


def to_labels(labels: Any, num_rows: int, where: str = "") -> np.ndarray:
    """Convert labels in any coding to integers.

    Args:
      labels: [N] or [N, 1]: integers, booleans, whole floats or strings. Strings become
        their positions in alphabetical order.
      num_rows: N, the number of rows of the features.
      where: The file or entry that the labels came from, for errors.

    Returns:
      Integers or booleans, [N].

    Raises:
      InputError: There is not one label per row, or the labels are not classes.
    """
    array = np.asarray(_to_array("labels", labels, where))
    if array.dtype.kind in "OUS":
        array = _encode_objects(array, labels, where)
    _check_single_class(array, num_rows, where)
    if array.shape == (num_rows, 1):
        array = array[:, 0]
    is_float = bool(jnp.issubdtype(array.dtype, np.floating))
    if is_float:
        values = array.astype(np.float64)
        if not np.isfinite(values).all() or (values != np.rint(values)).any():
            raise InputError(
                "labels must be classes, not real numbers",
                where=where or "labels",
                expected="integers, whole floats or strings",
                found=f"NaN, infinite or fractional values of dtype {array.dtype}",
                fix="number the classes, or pass target='regression'",
            )
        array = values.astype(np.int64)
    if array.shape != (num_rows,) or array.dtype.kind not in "iub":
        raise InputError(
            "labels must be one integer per row of the features",
            where=where or "labels",
            expected=f"integers or strings of shape [{num_rows}]",
            found=f"{array.dtype} of shape {list(array.shape)}",
            fix="compute both in the same pass over the images",
        )
    return array


def _to_array(name: str, values: Any, where: str) -> Any:
    """Return a JAX array unchanged, anything else as a NumPy array of any dtype."""
    if isinstance(values, jax.Array):
        return values
    try:
        if np.ma.is_masked(values):
            raise ValueError("it has masked values")
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            if str(getattr(values, "dtype", "")) == "torch.bfloat16":
                values = values.float()
        dense = next((method for method in _DENSE if hasattr(values, method)), None)
        array = np.asarray(values if dense is None else getattr(values, dense)())
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if array.dtype == np.longdouble:
            array = array.astype(np.float64)
        return array
    except Exception as error:  # The objects of other libraries raise anything.
        lines = str(error).splitlines()
        raise InputError(
            f"{name} cannot be converted to an array",
            where=where or name,
            expected="rows of equal length in one array",
            found=f"{_describe(values)}: {lines[0] if lines else type(error).__name__}",
            fix="pass one array with a row per image",
        ) from error


def _encode_objects(array: np.ndarray, labels: Any, where: str) -> np.ndarray:
    """Return strings as positions, and Python's numbers as numbers."""
    # Again from the given values, because NumPy turns None and NaN among strings into
    # strings.
    objects = np.asarray(labels, dtype=object) if array.dtype.kind != "O" else array
    kinds = {type(value) for value in objects.ravel().tolist()}
    for text in (str, bytes):
        if kinds and all(issubclass(kind, text) for kind in kinds):
            _, positions = np.unique(objects.astype(text), return_inverse=True)
            return positions.reshape(objects.shape)
    if kinds and all(issubclass(kind, int | float | np.number) for kind in kinds):
        return np.asarray(objects.tolist())
    raise InputError(
        "labels must be of one kind",
        where=where or "labels",
        expected="only integers, or only strings",
        found="values of type " + ", ".join(sorted(kind.__name__ for kind in kinds)),
        fix="give every image a label, or leave it out",
    )


def _check_single_class(array: np.ndarray, num_rows: int, where: str) -> None:
    """Raise with a hint for labels that have a column per class."""
    if array.ndim != 2 or len(array) != num_rows or array.shape[1] < 2:
        return
    sums = array.astype(np.float64).sum(axis=1)
    if np.allclose(sums, 1) and (array >= 0).all():
        what = "labels have a column per class (one-hot)"
        fix = "pass labels.argmax(axis=1)"
    elif ((array == 0) | (array == 1)).all():
        what = "labels have several classes per image (multi-label)"
        fix = "pass one class per image, or target='multi_label'"
    else:
        return
    raise InputError(
        what,
        where=where or "labels",
        expected=f"one class per row, of shape [{num_rows}]",
        found=f"{array.dtype} of shape {list(array.shape)}",
        fix=fix,
    )


def _describe(values: Any) -> str:
    kind = type(values)
    module = kind.__module__.partition(".")[0]
    return kind.__name__ if module == "builtins" else f"{module}.{kind.__name__}"
