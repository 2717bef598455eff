"""Reference rows: a sample of a model's input with the model's own outputs, logged beside it as ``reference.parquet``.

Columns ``input:<name>`` hold what the model took, ``output:value`` what it answered (``output:value:<k>`` where it
answers several), and ``output:probability:<k>`` its probabilities in the order of its classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from serving.tensors import Batch, Prediction

FILE_NAME = "reference.parquet"
MAX_ROWS = 1000


def write(path: Path, batch: Batch, prediction: Prediction) -> None:
    """Write at most `MAX_ROWS` of ``batch`` with what the model answered for them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = min(batch.rows, MAX_ROWS)
    columns = {f"input:{name}": _plain(batch.column(name)[:rows]) for name in batch.names}
    values = np.asarray(prediction.values)[:rows]
    columns.update(_spread("output:value", values))
    if prediction.probabilities is not None:
        columns.update(_spread("output:probability", prediction.probabilities[:rows].reshape(rows, -1)))
    pq.write_table(pa.table(columns), path)


def read(path: Path) -> tuple[dict[str, np.ndarray], Prediction]:
    """The rows' input columns by name, and the outputs on record. Raises ValueError when the file is none of ours."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except OSError as err:  # also what pyarrow raises for a file that it cannot make out
        raise ValueError(f"it cannot be read: {err}") from err
    columns = {name: _array(table.column(name)) for name in table.column_names}
    inputs = {name.removeprefix("input:"): column for name, column in columns.items() if name.startswith("input:")}
    values = _gather("output:value", columns)
    if not inputs or values is None:
        raise ValueError("it has no input: and output:value columns")
    return inputs, Prediction(values, _gather("output:probability", columns, flat=False))


def _plain(column: np.ndarray) -> Any:
    return column if column.ndim == 1 and column.dtype != object else column.tolist()


def _spread(name: str, values: np.ndarray) -> dict[str, Any]:
    if values.ndim == 1:
        return {name: _plain(values)}
    return {f"{name}:{k}": _plain(values[:, k]) for k in range(values.shape[1])}


def _gather(name: str, columns: dict[str, np.ndarray], *, flat: bool = True) -> np.ndarray | None:
    if flat and name in columns:
        return columns[name]
    parts = [columns[f"{name}:{k}"] for k in range(len(columns)) if f"{name}:{k}" in columns]
    return np.stack(parts, axis=1) if parts else None


def _array(column: Any) -> np.ndarray:
    import pyarrow.types as types

    if types.is_list(column.type) or types.is_large_list(column.type):
        return np.asarray(column.to_pylist())
    if types.is_string(column.type) or types.is_large_string(column.type):
        return np.asarray(column.to_pylist(), dtype=object)
    return np.asarray(column.to_numpy(zero_copy_only=False))
