import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from rankckpt_jax import measures
from rankckpt_jax.errors import InputError
from rankckpt_jax.measures import arrays

X = np.arange(12.0).reshape(4, 3)


class Broken:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("the device is gone")


@pytest.mark.parametrize(
    "values",
    [
        X,
        X.tolist(),
        X.astype(">f4"),
        X.astype(">i8"),
        X.astype(np.float16),
        X.astype(np.longdouble),
        jnp.asarray(X),
        jnp.asarray(X, jnp.bfloat16),
        np.asarray(jnp.asarray(X, jnp.bfloat16)),
        scipy.sparse.csr_array(X),
        scipy.sparse.coo_matrix(X),
        np.ma.masked_array(X, mask=False),
    ],
)
def test_to_numbers_returns_dense_arrays_in_native_byte_order(values):
    array = arrays.to_numbers("features", values)
    assert array.dtype.isnative
    np.testing.assert_array_equal(np.asarray(jnp.asarray(array), np.float64), X)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, 2.0], [3.0]], r"cannot be converted[\s\S]*list: "),
        (X.astype(object), r"must be real numbers[\s\S]*object"),
        (X.astype(str), "must be real numbers"),
        ([["a", "b"]], "must be real numbers"),
        (None, r"must be real numbers[\s\S]*NoneType"),
        (X + 1j, r"must be real numbers[\s\S]*complex128"),
        (np.zeros(3, "f4,i4"), "must be real numbers"),
        (Broken(), r"cannot be converted[\s\S]*the device is gone"),
        (np.ma.masked_array(X, mask=X > 5), "it has masked values"),
    ],
)
def test_to_numbers_refuses_what_is_no_array_of_numbers(values, message):
    with pytest.raises(InputError, match=message):
        arrays.to_numbers("features", values, "here")


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 0, 2],
        np.array([0, 1, 0, 2], ">i4"),
        np.array([0, 1, 0, 2], np.uint8),
        np.array([0.0, 1.0, 0.0, 2.0], np.float32),
        np.array([[0], [1], [0], [2]]),
        np.array([[0.0], [1.0], [0.0], [2.0]]),
        jnp.array([0, 1, 0, 2]),
        ["cat", "dog", "cat", "fox"],
        np.array([["cat"], ["dog"], ["cat"], ["fox"]]),
        np.array(["cat", "dog", "cat", "fox"], object),
        np.array([b"cat", b"dog", b"cat", b"fox"]),
        np.array([0, 1, 0, 2], object),
        scipy.sparse.csr_array([[0], [1], [0], [2]]),
    ],
)
def test_to_labels_accepts_any_coding(labels):
    converted = arrays.to_labels(labels, 4)
    assert converted.dtype.kind in "iu"
    np.testing.assert_array_equal(converted, [0, 1, 0, 2])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.eye(4), r"one-hot[\s\S]*argmax"),
        (np.eye(4, dtype=bool)[:, :3] | [True, False, False], "multi-label"),
        ([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0, 1]], r"one-hot[\s\S]*argmax"),
        ([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]], "multi-label"),
        ([0.5, 1.0, 0.0, 2.0], r"not real numbers[\s\S]*regression"),
        ([0.0, np.nan, 1.0, 1.0], "not real numbers"),
        (["a", None, "b", "b"], r"one kind[\s\S]*NoneType, str"),
        (["a", np.nan, "b", "b"], r"one kind[\s\S]*float, str"),
        ([1, "a", 2, 2], r"one kind[\s\S]*int, str"),
        ([0, 1, 0], r"one integer per row[\s\S]*shape \[4\][\s\S]*shape \[3\]"),
        ([[0, 1, 0, 2]], "one integer per row"),
        (3, "one integer per row"),
        ([[0, 1], [2]], "cannot be converted"),
        (np.arange(4).astype("M8[s]"), "one integer per row"),
    ],
)
def test_to_labels_refuses_what_is_no_single_class(labels, message):
    with pytest.raises(InputError, match=message):
        arrays.to_labels(labels, 4, "here")


def test_compute_accepts_strings_and_big_endian_features():
    features = np.random.default_rng(0).normal(size=(30, 4))
    labels = np.arange(30) % 3
    expected = measures.compute("h_score", features, labels).score
    for labels_given in (
        labels[:, None],
        labels * 1.0,
        np.array(["x", "y", "z"])[labels],
    ):
        score = measures.compute("h_score", features.astype(">f8"), labels_given).score
        assert score == expected
