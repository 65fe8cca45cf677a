"""The ranking as a pandas DataFrame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rankckpt_jax.errors import InputError
from rankckpt_jax.report import columns
from rankckpt_jax.results.ranking import Ranking

if TYPE_CHECKING:
    import pandas


def to_pandas(ranking: Ranking) -> pandas.DataFrame:
    """Return all columns of a ranking, with one row for each checkpoint.

    Returns:
      Columns of dtype float64, Int64 (whole numbers) and object (texts), in the order
      and with the names of the CSV file. Unknown numbers are missing values, unknown
      texts are empty.

    Raises:
      InputError: pandas is not installed.
    """
    try:
        # Imported here: an optional extra.
        import pandas
    except ModuleNotFoundError as error:
        raise InputError(
            "pandas is not installed",
            where="Ranking.to_pandas",
            fix="pip install pandas, or use to_csv",
        ) from error
    return pandas.DataFrame(
        {
            column.name: pandas.Series(
                [column.value(row) for row in ranking.rows], dtype=_dtype(column)
            )
            for column in columns.columns(ranking)
        }
    )


def _dtype(column: columns.Column) -> Any:
    if column.format is None:
        return object
    return "Int64" if column.format is columns.WHOLE else "float64"
