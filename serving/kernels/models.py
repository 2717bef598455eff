"""Models: what turns numbers into a `Prediction`, as scikit-learn's estimators of that kind do."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from serving.kernels import Kernel, Table, kernel
from serving.tensors import Prediction


def expit(numbers: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-x))`` with the C library's exp, as SciPy has it: NumPy's own differs in the last bit."""
    try:
        powers = list(map(math.exp, (-numbers).ravel().tolist()))
    except OverflowError:
        powers = [math.exp(x) if x < 709.0 else float(np.exp(np.float64(min(x, 1e4)))) for x in (-numbers).ravel()]
    return (1.0 / (1.0 + np.array(powers))).reshape(numbers.shape)


def softmax(numbers: np.ndarray) -> np.ndarray:
    """Over the second axis; sklearn.utils.extmath.softmax."""
    numbers = numbers - np.max(numbers, axis=1).reshape(-1, 1)
    np.exp(numbers, out=numbers)
    numbers /= np.sum(numbers, axis=1).reshape(-1, 1)
    return numbers


def labels_of(labels: tuple[Any, ...]) -> np.ndarray:
    """Labels as an array that positions can be taken from."""
    return np.array(labels, dtype=object if any(isinstance(label, str) for label in labels) else None)


@kernel
class Average:
    """Sums divided by how many there were."""

    sums: Kernel
    count: int

    def __call__(self, table: Table) -> np.ndarray:
        numbers: np.ndarray = self.sums(table)
        numbers /= self.count
        return numbers


@kernel
class ByColumns:
    """Numbers column after column in memory, which decides in what order NumPy adds up a row of eight or more."""

    score: Kernel

    def __call__(self, table: Table) -> np.ndarray:
        return np.asfortranarray(self.score(table))


@kernel
class Values:
    """A regressor: ``score`` as it is (``link`` "identity") or its exponential ("log"); one output or several."""

    score: Kernel
    link: str = "identity"

    def __call__(self, table: Table) -> Prediction:
        numbers: np.ndarray = self.score(table)
        if self.link == "log":
            numbers = np.exp(numbers)
        return Prediction(numbers[:, 0] if numbers.ndim == 2 and numbers.shape[1] == 1 else numbers)


@kernel
class Classifier:
    """Scores become a class.

    ``link`` says how scores become probabilities: ``none`` (they are), ``expit`` and ``softmax``; ``one_vs_rest`` is
    expit of each class, divided by their sum; ``labels_only`` gives none. ``binary`` scores are one column, and the
    second class is what ``score > 0`` (``inclusive``: >= 0) names.
    """

    score: Kernel
    labels: tuple[Any, ...]
    link: str = "none"
    inclusive: bool = False

    @cached_property
    def _labels(self) -> np.ndarray:
        return labels_of(self.labels)

    def __call__(self, table: Table) -> Prediction:
        scores: np.ndarray = self.score(table)
        if scores.shape[1] == 1 and len(self.labels) == 2:
            return self._binary(scores[:, 0])
        positions = scores.argmax(axis=1)
        return Prediction(self._labels[positions], self._probabilities(scores))

    def _binary(self, scores: np.ndarray) -> Prediction:
        positions = (scores >= 0 if self.inclusive else scores > 0).astype(np.intp)
        if self.link == "labels_only":
            return Prediction(self._labels[positions])
        second = expit(scores)
        return Prediction(self._labels[positions], np.stack([1 - second, second], axis=1))

    def _probabilities(self, scores: np.ndarray) -> np.ndarray | None:
        if self.link == "softmax":
            return softmax(scores)
        if self.link == "one_vs_rest":
            each = expit(scores)
            each /= each.sum(axis=1).reshape(-1, 1)
            return each
        return None if self.link == "labels_only" else scores


@kernel
class SeveralClassifiers:
    """Several outputs at once, each a class; ``labels`` has those of each, side by side in ``score``."""

    score: Kernel
    labels: tuple[tuple[Any, ...], ...]

    def __call__(self, table: Table) -> Prediction:
        scores: np.ndarray = self.score(table)
        chosen, start = [], 0
        for labels in self.labels:
            positions = np.argmax(scores[:, start : start + len(labels)], axis=1)
            chosen.append(labels_of(labels)[positions])
            start += len(labels)
        return Prediction(np.stack(chosen, axis=1))
