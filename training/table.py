"""Table: rows of the user's own, from a CSV or Parquet file with a label column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api import types

from training.data import Rows
from training.options import Unusable

LEAST_ROWS = 10  # of each class: two for each of five folds, or a third of them for the holdout
FREE_TEXT = 0.5  # a text that differs in more of the rows than this is a name or a number of something, not a category


def read(path: Path, label: str) -> Rows:
    """The rows in ``path``: 0 and 1 of the column ``label``, and all other columns as numbers or texts.

    True and false become 1 and 0. Raises `Unusable`, and OSError where the file cannot be opened.
    """
    frame = _frame(path)
    if label not in frame.columns:
        names = ", ".join(map(str, frame.columns[:8]))
        raise Unusable(f"{path} has no column {label!r}, which says what was fraud; it has: {names}")
    if frame.empty:
        raise Unusable(f"{path} has no rows")
    inputs = frame.drop(columns=label)
    if inputs.columns.empty:
        raise Unusable(f"{path} has no other column than {label!r}")
    labels = _labels(frame[label], path)
    return Rows(pd.DataFrame({str(name): _column(inputs[name], path) for name in inputs.columns}), labels)


def _frame(path: Path) -> pd.DataFrame:
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    if path.suffix.lower() not in readers:
        raise Unusable(f"{path} must end in .csv or .parquet")
    try:
        return readers[path.suffix.lower()](path)
    except ValueError as err:  # what pandas, pyarrow and decoding raise for a file that is something else
        raise Unusable(f"{path} cannot be read: {(str(err).splitlines() or [''])[0]}") from err


def _labels(column: pd.Series, path: Path) -> np.ndarray:
    if column.isna().any():
        raise Unusable(f"{path}: {int(column.isna().sum())} rows have no {column.name!r}")
    if not set(column.unique().tolist()) <= {0, 1}:
        other = next(value for value in column.unique().tolist() if value not in (0, 1))
        raise Unusable(f"{path}: {column.name!r} must be 0 or 1, not {other!r}")
    labels: np.ndarray = column.to_numpy(np.int64)
    counts = np.bincount(labels, minlength=2)
    if not counts.all():
        raise Unusable(f"{path}: all rows have {column.name!r} {int(labels[0])}, so there is nothing to tell apart")
    if counts.min() < LEAST_ROWS:
        few = f"{column.name!r} is {counts.argmin()} in {counts.min()} rows only"
        raise Unusable(f"{path}: {few}; at least {LEAST_ROWS} are needed")
    return labels


def _column(column: pd.Series, path: Path) -> pd.Series:
    """Numbers as int64 or, with gaps or fractions, float64; texts as pandas has them."""
    where = f"{path}: column {column.name!r}"
    if column.isna().all():
        raise Unusable(f"{where} has no value in any row; leave it out")
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if column.dtype == object:
        column = column.infer_objects()
    if types.is_bool_dtype(column.dtype) or types.is_numeric_dtype(column.dtype):
        return _numbers(column, where)
    known = column.dropna()
    if not all(isinstance(value, str) for value in known):
        raise Unusable(f"{where} has neither numbers nor texts but {column.dtype}; convert it, or leave it out")
    if known.nunique() > max(2, FREE_TEXT * len(known)):
        raise Unusable(f"{where} has another text in almost every row: it tells of no kind; leave it out")
    return column.astype("str")


def _numbers(column: pd.Series, where: str) -> pd.Series:
    if types.is_complex_dtype(column.dtype):
        raise Unusable(f"{where} has complex numbers")
    whole = not types.is_float_dtype(column.dtype) and not column.isna().any()
    numbers = column.to_numpy(np.int64) if whole else column.to_numpy(np.float64, na_value=np.nan)
    if np.isinf(numbers).any():
        raise Unusable(f"{where} has infinite values")
    return pd.Series(numbers, index=column.index)
