"""A step as skl2onnx converted it, where no kernel of ours has its operations: run by ONNX Runtime in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from serving.kernels import Table, block, kernel, rows
from serving.kernels.columns import Refused, check_finite
from serving.kernels.models import labels_of
from serving.tensors import Prediction

Run = Callable[[list[str], dict[str, np.ndarray], None], list[np.ndarray]]

MISSING = "the model takes no missing or infinite values"


def run_of(graph: np.ndarray) -> Run:
    """Runs the ONNX model in these bytes on one thread: outputs' names and inputs by name, to outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.tobytes(), options, providers=["CPUExecutionProvider"])
    run: Run = getattr(session, "_sess", session).run  # without its Python wrapper: 4 % of a request
    return run


@kernel
class Graph:
    """A transformer's numbers of shape (rows, outputs), or a model's `Prediction`, as ``gives`` says:

    ``block``
        numbers for the next kernel;
    ``values``
        what a regressor, or any other model without labels, predicts; one output or several;
    ``labels``
        a classifier's labels, and its probabilities where ``outputs`` has a second name.

    ``inputs`` names the graph's inputs: one for the whole table where ``types`` is ``("block",)``, else one for each
    column, ``double``, ``int64``, ``bool`` or ``string``. Raises `InvalidInput` for infinities, for gaps in numbers
    unless ``missing_fit``, and for gaps elsewhere.
    """

    graph: np.ndarray  # the ONNX model's bytes
    inputs: tuple[str, ...]
    types: tuple[str, ...]
    outputs: tuple[str, ...]
    gives: str
    missing_fit: bool
    labels: tuple[Any, ...] = ()

    @cached_property
    def _run(self) -> Run:
        return run_of(self.graph)

    @cached_property
    def _label_type(self) -> np.dtype[Any]:
        return labels_of(self.labels).dtype

    def __call__(self, table: Table) -> Any:
        first, *others = self._run(list(self.outputs), self._fed(table), None)
        if self.gives == "block":
            return first
        values = first.reshape(rows(table), -1)  # some graphs give labels as one row, others as one column
        if values.shape[1] == 1:
            values = values[:, 0]
        if self.gives == "values":
            return Prediction(values)
        labels = values.astype(self._label_type, copy=False) if self.labels else values
        return Prediction(labels, others[0] if others else None)

    def _fed(self, table: Table) -> dict[str, np.ndarray]:
        if self.types == ("block",):
            numbers = np.ascontiguousarray(block(table), np.float64)
            check_finite(numbers, missing_fit=self.missing_fit)
            return {self.inputs[0]: numbers}
        columns = table if isinstance(table, tuple) else tuple(table.T)
        named = zip(self.inputs, self.types, columns, strict=True)
        return {name: self._column(kind, column, position) for position, (name, kind, column) in enumerate(named)}

    def _column(self, kind: str, column: np.ndarray, position: int) -> np.ndarray:
        if kind == "double":
            column = column.astype(np.float64)
            wrong = np.isinf(column) if self.missing_fit else ~np.isfinite(column)
        else:
            wrong = np.array([value is None or value != value for value in column.tolist()])
        if wrong.any():
            raise Refused(MISSING, int(np.argmax(wrong)), position)
        return column.reshape(-1, 1) if kind in ("double", "string") else column.astype(kind).reshape(-1, 1)
