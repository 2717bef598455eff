"""Kernels answer: what prepare compiled from a scikit-learn model. Needs NumPy, and ONNX Runtime for trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from serving import kernels
from serving.errors import InvalidInput
from serving.kernels import Kernel, Table
from serving.tensors import Batch, Prediction

FOLDER = "compiled"
LIBRARIES = ("numpy", "onnxruntime")


def load(folder: Path) -> Callable[[Batch], Prediction]:
    """The kernels in ``folder``. What scikit-learn refuses of a row is refused as `InvalidInput`."""
    return predictor(kernels.load(folder / FOLDER))


def predictor(root: Kernel) -> Callable[[Batch], Prediction]:
    """What kernels in memory answer."""

    def predict(batch: Batch) -> Prediction:
        try:
            prediction: Prediction = root(table_of(batch))
            return prediction
        except InvalidInput as err:
            raise _with_column(err, batch) from None

    return predict


def table_of(batch: Batch) -> Table:
    """A batch as kernels take it: one array where it is one, else its columns."""
    if batch.block is not None:
        return batch.block
    if len(batch.columns) == 1 and batch.columns[0].ndim > 1:
        return batch.columns[0]
    return tuple(batch.columns)


def _with_column(err: InvalidInput, batch: Batch) -> InvalidInput:
    """Kernels know the row and the position; where they lost it, it is the first column with no finite number."""
    if err.row is None or err.column is not None:
        return err
    if len(batch.names) == len(batch.columns):
        position = getattr(err, "position", None)
        if position is not None:
            return InvalidInput(err.what, row=err.row, column=batch.names[position])
        for name, column in zip(batch.names, batch.columns, strict=True):
            if column.dtype.kind == "f" and not np.isfinite(column[err.row]).all():
                return InvalidInput(err.what, row=err.row, column=name)
    return InvalidInput(err.what, row=err.row)
