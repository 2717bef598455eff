"""MLflow's own pyfunc answers: for any flavor that nothing else serves. Needs mlflow and pandas in the worker."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import InvalidInput
from serving.tensors import Batch, Description, Own, Prediction, Signature

FLAVOR = "python_function"
FOLDER = "model"
WHOLE_TYPES = {"DataType.integer", "DataType.long"}
MISFIT = "SCHEMA_ENFORCEMENT_FAILED"  # as MLflow calls input that its signature does not take


def serves(model: Mapping[str, Any], _: Path) -> bool:
    """Whatever was logged with this flavor."""
    return FLAVOR in model["flavors"]


def convert(model: Mapping[str, Any], folder: Path, into: Path) -> Description:
    """Copy the model as it was logged."""
    shutil.copytree(folder, into / FOLDER)
    signature = Signature.from_mlmodel(model.get("signature")) or Signature("unknown", (), "none")
    return Description(signature)


def load(folder: Path) -> Callable[[Batch], Prediction]:
    """The model's ``predict``, on a frame of named columns or on the array that its signature asks for."""
    import mlflow.exceptions
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(folder / FOLDER))
    inputs = model.metadata.get_input_schema()
    takes_tensors = inputs is not None and inputs.is_tensor_spec()
    whole = () if inputs is None or takes_tensors else _whole_numbers(inputs)

    def predict(batch: Batch) -> Prediction:
        for name in whole:
            _check_whole(name, batch.column(name))
        given = _tensors(batch) if takes_tensors else _frame(batch)
        params = None if batch.params is None else dict(batch.params)
        try:
            return _prediction(model.predict(given, params=params), batch.rows)
        except mlflow.exceptions.MlflowException as err:
            if inputs is not None and err.error_class == MISFIT:
                _refuse_misfit(given, inputs)
            raise

    return predict


def _refuse_misfit(given: Any, inputs: Any) -> None:
    """Raise `InvalidInput` where ``given`` does not fit ``inputs``; MLflow says that it does not, but not where."""
    from mlflow.types import Schema

    if _fits(given, inputs):  # so it is the input of a model inside this one
        return
    named = inputs.inputs if hasattr(given, "columns") and inputs.has_input_names() else ()
    for column in (column for column in named if column.name in given.columns):
        one, only = given[[column.name]], Schema([column])
        if not _fits(one, only):
            row = next(
                (row for row in range(len(one)) if not _fits(one.iloc[[row]].reset_index(drop=True), only)), None
            )
            raise InvalidInput(f"does not fit the type {column.type}", row=row, column=str(column.name))
    raise InvalidInput("the input does not fit the model's signature")


def _fits(given: Any, inputs: Any) -> bool:
    from mlflow.exceptions import MlflowException
    from mlflow.models import validate_schema

    try:
        validate_schema(given, inputs)
    except MlflowException:
        return False
    return True


def _whole_numbers(inputs: Any) -> tuple[str, ...]:
    return tuple(str(column.name) for column in inputs if column.name and str(column.type) in WHOLE_TYPES)


def _check_whole(name: str, column: np.ndarray) -> None:
    """Whole numbers with gaps come as floats, which MLflow takes for another type."""
    if column.dtype.kind == "f":
        row = int(np.argmax(np.isnan(column)))
        raise InvalidInput("MLflow takes no missing values among whole numbers", row=row, column=name)


def _tensors(batch: Batch) -> Any:
    if batch.block is not None:
        return batch.block
    return batch.columns[0] if len(batch.columns) == 1 else dict(zip(batch.names, batch.columns, strict=True))


def _frame(batch: Batch) -> Any:
    """A frame of named columns; rows that came as plain lists stay an array."""
    import pandas as pd

    if batch.names == tuple(map(str, range(len(batch.names)))):
        return batch.block if batch.block is not None else np.stack(batch.columns, axis=1)
    if batch.block is not None:
        return pd.DataFrame(batch.block, columns=list(batch.names))
    return pd.DataFrame(dict(zip(batch.names, batch.columns, strict=True)))


def _prediction(got: Any, rows: int) -> Prediction:
    import pandas as pd

    if isinstance(got, pd.Series):  # which MLflow writes as a frame of one column
        values = np.asarray(got.to_numpy())
        return Prediction(values, own=Own("records", {"0" if got.name is None else str(got.name): values}))
    if isinstance(got, pd.DataFrame):
        named = {str(name): got[name].to_numpy() for name in got.columns}
        own = Own("records", named)
    elif isinstance(got, dict) and got:
        named = {str(name): _values(values, rows) for name, values in got.items()}
        own = Own("arrays", named) if all(map(_is_list, got.values())) else Own("one", {"": _alone(got)})
    elif _is_list(got):
        return Prediction(_values(got, rows))
    else:
        return Prediction(_alone(got), own=Own("one", {"": _alone(got)}))
    first = next(iter(named.values()))
    return Prediction(first, named=named if len(named) > 1 else None, own=own)


def _is_list(got: Any) -> bool:
    return isinstance(got, (list, tuple)) or (hasattr(got, "__array__") and np.ndim(got) > 0)


def _alone(got: Any) -> np.ndarray:
    """One answer, whatever it is, to the only row."""
    values = np.empty(1, dtype=object)
    values[0] = got
    return values


def _values(got: Any, rows: int) -> np.ndarray:
    """An array as it is; anything else one object a row, so that answers that are lists or texts stay whole."""
    if isinstance(got, np.ndarray):
        return got
    if hasattr(got, "to_numpy"):
        return np.asarray(got.to_numpy())
    items = list(got) if _is_list(got) else [got]
    if len(items) == rows and all(isinstance(item, (int, float)) for item in items):
        return np.asarray(items)
    values = np.empty(len(items), dtype=object)
    for row, item in enumerate(items):
        values[row] = item
    return values
