"""Linear models and multilayer perceptrons, by scikit-learn's own operations without its checks."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.kernels import Kernel, Table, block, kernel
from serving.kernels.columns import check_finite
from serving.kernels.models import expit, labels_of, softmax
from serving.tensors import Prediction


def numbers_of(table: Table) -> np.ndarray:
    """The table as finite floats. Raises `InvalidInput`."""
    numbers = block(table)
    if numbers.dtype.kind != "f":
        numbers = numbers.astype(np.float64)
    check_finite(numbers, missing_fit=False)
    return numbers


@kernel
class Linear:
    """``x @ weights.T + intercept``, of shape (rows, outputs).

    ``weights`` is (outputs, columns), or (columns,) for a single output. ``sparse`` adds column by column, as the
    product with a sparse matrix does.
    """

    weights: np.ndarray
    intercept: np.ndarray
    sparse: bool = False

    def __call__(self, table: Table) -> np.ndarray:
        numbers = numbers_of(table)
        if self.sparse:
            scores = by_column(numbers, np.atleast_2d(self.weights).T) + self.intercept
        else:
            scores = numbers @ self.weights.T + self.intercept
        return scores.reshape(len(numbers), -1)


def by_column(numbers: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``numbers @ weights``, added up column by column."""
    scores = np.zeros((len(numbers), weights.shape[1]))
    for column in np.flatnonzero(numbers.any(axis=0)):
        scores += numbers[:, column, None] * weights[column]
    return scores


ACTIVATIONS: dict[str, Any] = {
    "identity": lambda numbers: numbers,
    "relu": lambda numbers: np.maximum(numbers, 0),
    "tanh": np.tanh,
    "logistic": expit,
    "softmax": softmax,
}


@kernel
class Layers:
    """A multilayer perceptron; ``activations`` has one for each layer. ``sparse`` is as in `Linear`."""

    weights: tuple[np.ndarray, ...]
    intercepts: tuple[np.ndarray, ...]
    activations: tuple[str, ...]
    sparse: bool = False

    def __call__(self, table: Table) -> np.ndarray:
        numbers = numbers_of(table)
        product = by_column if self.sparse else np.matmul  # only the input is sparse
        for weights, intercepts, activation in zip(self.weights, self.intercepts, self.activations, strict=True):
            numbers = ACTIVATIONS[activation](product(numbers, weights) + intercepts)
            product = np.matmul
        return numbers


@kernel
class SecondClass:
    """``score`` is the second class's probability; above one half it is that class."""

    score: Kernel
    labels: tuple[Any, ...]

    def __call__(self, table: Table) -> Prediction:
        second = self.score(table)[:, 0]
        labels = labels_of(self.labels)[(second > 0.5).astype(np.intp)]
        return Prediction(labels, np.stack([1 - second, second], axis=1))
