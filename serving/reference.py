"""Reference rows: a sample of a model's input with the model's own outputs, logged beside it as ``reference.npz``.

A NumPy archive, which every server can read: ``header`` is JSON that says which array is which input or output. Columns
of Python objects (texts, values with gaps) are JSON too; nothing is pickled. Versions of an earlier release have a
``reference.parquet`` instead, for which pyarrow is needed.
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.tensors import Batch, Prediction

FILE_NAME = "reference.npz"
EARLIER = "reference.parquet"
MAX_ROWS = 1000
MAX_BYTES = 16 * 1024 * 1024  # of input; of large rows, such as pictures, there are fewer


def write(path: Path, batch: Batch, prediction: Prediction) -> None:
    """Write at most `MAX_ROWS` of ``batch`` with what the model answered for them."""
    rows = min(batch.rows, MAX_ROWS, max(1, MAX_BYTES * batch.rows // max(1, batch.bytes)))
    outputs = {"value": np.asarray(prediction.values)}
    if prediction.probabilities is not None:
        outputs["probability"] = np.asarray(prediction.probabilities).reshape(len(prediction.values), -1)
    inputs = dict(zip(batch.names, batch.columns, strict=True))
    arrays: dict[str, np.ndarray] = {}
    header = {
        kind: [_put(name, np.asarray(column)[:rows], arrays) for name, column in columns.items()]
        for kind, columns in (("inputs", inputs), ("outputs", outputs))
    }
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)


def find(folder: Path) -> Path | None:
    """The reference rows among a version's files; None where there are none."""
    return next((folder / name for name in (FILE_NAME, EARLIER) if (folder / name).is_file()), None)


def read(path: Path) -> tuple[dict[str, np.ndarray], Prediction]:
    """The rows' input columns by name, and the outputs on record.

    Raises ValueError when the file is none of ours, and ImportError for an earlier one where pyarrow is not installed.
    """
    if path.suffix == ".parquet":
        return _read_earlier(path)
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            header = json.loads(str(archive["header"]))
            inputs, outputs = (
                {entry["name"]: _got(entry, archive) for entry in header[kind]} for kind in ("inputs", "outputs")
            )
            return inputs, Prediction(outputs["value"], outputs.get("probability"))
    except (OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as err:
        raise ValueError(f"it cannot be read: {type(err).__name__}: {err}") from err


def _put(name: str, column: np.ndarray, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Add a column to ``arrays``; how the header tells of it."""
    key = f"a{len(arrays)}"
    if column.dtype != object:
        arrays[key] = column
        return {"name": name, "array": key}
    arrays[key] = np.array(json.dumps(column.tolist(), default=_coded))
    return {"name": name, "objects": key}


def _got(entry: Mapping[str, str], archive: Mapping[str, np.ndarray]) -> np.ndarray:
    if "array" in entry:
        return archive[entry["array"]]
    values = json.loads(str(archive[entry["objects"]]), object_hook=_decoded)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _coded(value: Any) -> Any:
    """What JSON has no form for."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a column has a value of type {type(value).__name__}")


def _decoded(plain: dict[str, Any]) -> Any:
    return base64.b64decode(plain["base64"]) if plain.keys() == {"base64"} else plain


# --- of an earlier release -------------------------------------------------------------------------------------------


def _read_earlier(path: Path) -> tuple[dict[str, np.ndarray], Prediction]:
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
