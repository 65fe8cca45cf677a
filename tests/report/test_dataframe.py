"""The ranking as a pandas DataFrame."""

import math
import sys

import pytest

from rankckpt_jax.errors import InputError
from rankckpt_jax.report import columns
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row


def test_to_pandas_has_every_column_with_its_dtype(realistic):
    pandas = pytest.importorskip("pandas")
    frame = realistic.to_pandas()
    assert list(frame.columns) == [c.name for c in columns.columns(realistic)]
    assert list(frame["checkpoint"]) == [row.checkpoint for row in realistic.rows]
    assert (
        frame["rank"].tolist()[:5] == [1, 2, 3, 4, 5] and frame["rank"][5] is pandas.NA
    )
    dtypes = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    assert dtypes["rank"] == dtypes["num_parameters"] == "Int64"
    assert dtypes["nleep"] == dtypes["accuracy"] == "float64"
    assert dtypes["checkpoint"] == dtypes["nleep_saturated"] == "object"
    assert frame["accuracy"].mean() == pytest.approx(0.7436)
    assert math.isnan(frame["leep"][4]) and frame["failure"][0] == ""


def test_to_pandas_of_degenerate_rankings(degenerate):
    pytest.importorskip("pandas")
    assert len(degenerate.to_pandas()) == len(degenerate.rows)


def test_to_pandas_raises_if_pandas_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    ranking = rank("t", ["nleep"], [Row("a")])
    with pytest.raises(InputError, match="pandas is not installed[\\s\\S]*pip install"):
        ranking.to_pandas()
