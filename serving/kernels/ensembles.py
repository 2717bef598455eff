"""Models over models: votes, averages and calibrated probabilities, by scikit-learn's own operations."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from serving.kernels import Kernel, Table, kernel
from serving.kernels.columns import check_finite
from serving.kernels.models import expit, labels_of
from serving.tensors import Prediction


@kernel
class Probabilities:
    """A model's probabilities as scores; of two classes only the second's."""

    model: Kernel

    def __call__(self, table: Table) -> np.ndarray:
        found: np.ndarray = self.model(table).probabilities
        return found[:, 1:] if found.shape[1] == 2 else found


@kernel
class Decision:
    """The decision function of a model whose answer does not follow from it alone."""

    model: Kernel

    def __call__(self, table: Table) -> np.ndarray:
        scores: np.ndarray = self.model.decision(table)
        return scores


@kernel
class Thresholded:
    """A classifier of two classes that names the one at position ``positive`` where its probability is large enough."""

    model: Kernel
    labels: tuple[Any, ...]
    positive: int
    threshold: float  # the least probability of it

    @cached_property
    def _labels(self) -> np.ndarray:
        return labels_of(self.labels)

    def __call__(self, table: Table) -> Prediction:
        chances: np.ndarray = self.model(table).probabilities
        enough = chances[:, self.positive] >= self.threshold
        return Prediction(self._labels[np.where(enough, self.positive, 1 - self.positive)], chances)


@kernel
class MeanProbabilities:
    """The class with the largest of the members' weighted mean probabilities. ``weights``: one each, or None."""

    members: tuple[Kernel, ...]
    labels: tuple[Any, ...]
    weights: np.ndarray | None

    @cached_property
    def _labels(self) -> np.ndarray:
        return labels_of(self.labels)

    def __call__(self, table: Table) -> Prediction:
        each = np.asarray([member(table).probabilities for member in self.members])
        means = np.average(each, axis=0, weights=self.weights)
        return Prediction(self._labels[np.argmax(means, axis=1)], means)


@kernel
class Majority:
    """The class that most members name; the first of those that are named equally often.

    Members name classes by their number. ``weights`` says how much each vote counts.
    """

    members: tuple[Kernel, ...]
    labels: tuple[Any, ...]
    weights: np.ndarray

    @cached_property
    def _labels(self) -> np.ndarray:
        return labels_of(self.labels)

    def __call__(self, table: Table) -> Prediction:
        named = [member(table).values for member in self.members]
        votes = np.zeros((len(named[0]), len(self.labels)))
        every = np.arange(len(votes))
        for classes, weight in zip(named, self.weights, strict=True):
            votes[every, classes] += weight
        return Prediction(self._labels[np.argmax(votes, axis=1)])


@kernel
class MeanValues:
    """The members' weighted mean. ``weights``: one each, or None."""

    members: tuple[Kernel, ...]
    weights: np.ndarray | None

    def __call__(self, table: Table) -> Prediction:
        each = np.asarray([member(table).values for member in self.members]).T
        return Prediction(np.average(each, axis=1, weights=self.weights))


@kernel
class Sigmoid:
    """``expit(-(slope * score + intercept))``."""

    slope: float
    intercept: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return expit(-(self.slope * scores + self.intercept))


@kernel
class Steps:
    """Isotonic regression: straight lines between ``scores``, flat beyond the first and the last."""

    scores: np.ndarray
    values: np.ndarray

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        check_finite(scores[:, None], missing_fit=False)
        return np.interp(np.clip(scores, self.scores[0], self.scores[-1]), self.scores, self.values)


@kernel
class Calibrated:
    """One model's probabilities, of shape (rows, ``classes``): each of its scores through its curve, then shared out.

    ``positions`` tells which class a curve is for.
    """

    score: Kernel
    curves: tuple[Kernel, ...]
    positions: tuple[int, ...]
    classes: int

    def __call__(self, table: Table) -> np.ndarray:
        scores = self.score(table)
        found = np.zeros((len(scores), self.classes))
        for position, curve, column in zip(self.positions, self.curves, scores.T, strict=True):
            found[:, position] = curve(column)
        if self.classes == 2:
            found[:, 0] = 1.0 - found[:, 1]
        else:
            sums = np.sum(found, axis=1)[:, np.newaxis]
            found = np.divide(found, sums, out=np.full_like(found, 1 / self.classes), where=sums != 0)
        found[(found > 1.0) & (found <= 1.0 + 1e-5)] = 1.0
        return found


@kernel
class MeanCalibrated:
    """The class with the largest of the members' mean probabilities; members give arrays of them."""

    members: tuple[Kernel, ...]
    labels: tuple[Any, ...]

    @cached_property
    def _labels(self) -> np.ndarray:
        return labels_of(self.labels)

    def __call__(self, table: Table) -> Prediction:
        means: np.ndarray = sum(member(table) for member in self.members) / len(self.members)
        return Prediction(self._labels[np.argmax(means, axis=1)], means)
