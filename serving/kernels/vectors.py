"""Support vector machines by the formulas of libsvm, in float64: equal to it within rounding, not bit by bit."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from serving.kernels import Table, kernel
from serving.kernels.linear import numbers_of
from serving.kernels.models import labels_of
from serving.tensors import Prediction

LEAST_PROBABILITY = 1e-7  # libsvm keeps the probabilities of pairs of classes that far from 0 and 1
ROUNDS = 100
LARGE = 1e6
BLOCK = 2_000_000  # how many likenesses are held at once


@kernel
class Likeness:
    """How alike rows and support vectors are, of shape (rows, vectors), by one of libsvm's kernel functions.

    For "rbf" ``vectors`` lie around ``centre`` and rows are moved there too, because distances come from products.
    """

    function: str  # "linear", "poly", "rbf", "sigmoid"
    vectors: np.ndarray
    centre: np.ndarray
    gamma: float
    degree: int
    zero: float  # scikit-learn's coef0

    @cached_property
    def _squares(self) -> np.ndarray:
        return np.einsum("ij,ij->i", self.vectors, self.vectors)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        if self.function == "rbf":
            return self._of_distances(numbers)
        products = numbers @ self.vectors.T
        if self.function == "linear":
            return products
        products *= self.gamma
        products += self.zero
        return np.tanh(products) if self.function == "sigmoid" else power(products, self.degree)

    def large(self, likeness: np.ndarray) -> np.ndarray:
        """The rows whose sums cancel or overflow otherwise when they are not added up in libsvm's order."""
        if self.function in ("rbf", "sigmoid"):
            return np.zeros(len(likeness), bool)
        found: np.ndarray = ~(np.abs(likeness).max(axis=1, initial=0.0) < LARGE)
        return found

    def _of_distances(self, numbers: np.ndarray) -> np.ndarray:
        numbers = numbers - self.centre
        distances = numbers @ self.vectors.T
        distances *= -2.0
        squares = np.einsum("ij,ij->i", numbers, numbers)
        distances += squares[:, None]
        distances += self._squares
        np.maximum(distances, 0.0, out=distances)
        distances *= -self.gamma
        np.exp(distances, out=distances)
        distances[~np.isfinite(squares)] = 0.0  # so far away is like no vector
        return distances


def power(base: np.ndarray, times: int) -> np.ndarray:
    """By squaring, as libsvm's powi; many times faster than NumPy's power."""
    found = np.ones_like(base)
    while times > 0:
        if times % 2:
            found *= base
        times //= 2
        if times:
            base = base * base
    return found


@kernel
class Pairs:
    """What speaks for the first of two classes against the second: of shape (rows, pairs), in libsvm's order.

    ``weights`` is (classes - 1, vectors); ``counts`` says how many vectors each class has.
    """

    likeness: Likeness
    weights: np.ndarray
    intercepts: np.ndarray
    counts: tuple[int, ...]

    def __call__(self, table: Table) -> np.ndarray:
        numbers = np.ascontiguousarray(numbers_of(table), np.float64)
        size = max(1, BLOCK // max(1, len(self.likeness.vectors)))
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            parts = [self._pairs(numbers[start : start + size]) for start in range(0, len(numbers), size)]
        return parts[0] if len(parts) == 1 else np.vstack(parts)

    @cached_property
    def _of_class(self) -> list[tuple[slice, np.ndarray]]:
        ends = np.cumsum(self.counts).tolist()
        slices = [slice(end - count, end) for end, count in zip(ends, self.counts, strict=True)]
        return [(part, np.ascontiguousarray(self.weights[:, part].T)) for part in slices]

    @cached_property
    def of(self) -> tuple[np.ndarray, np.ndarray]:
        """The first and the second class of each pair."""
        return np.triu_indices(len(self.counts), 1)

    def _pairs(self, numbers: np.ndarray) -> np.ndarray:
        likeness = self.likeness(numbers)
        of_class = np.stack([likeness[:, part] @ weights for part, weights in self._of_class])
        first, second = self.of
        scores: np.ndarray = (of_class[first, :, second - 1] + of_class[second, :, first]).T + self.intercepts
        large = self.likeness.large(likeness)
        if large.any():
            scores[large] = self._in_order(likeness[large])
        return scores

    def _in_order(self, likeness: np.ndarray) -> np.ndarray:
        """Added up one by one as libsvm does."""
        slices, each = [part for part, _ in self._of_class], []
        for i, j in zip(*self.of, strict=True):
            first = likeness[:, slices[i]] * self.weights[j - 1, slices[i]]
            second = likeness[:, slices[j]] * self.weights[i, slices[j]]
            each.append(np.add.accumulate(np.hstack([first, second]), axis=1)[:, -1])
        return np.stack(each, axis=1) + self.intercepts


@kernel
class VectorRegressor:
    """SVR and NuSVR: weighted likenesses and an intercept."""

    likeness: Likeness
    weights: np.ndarray
    intercept: float

    def __call__(self, table: Table) -> Prediction:
        numbers = np.ascontiguousarray(numbers_of(table), np.float64)
        size = max(1, BLOCK // max(1, len(self.weights)))
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            parts = [self._values(numbers[start : start + size]) for start in range(0, len(numbers), size)]
        return Prediction(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def _values(self, numbers: np.ndarray) -> np.ndarray:
        likeness = self.likeness(numbers)
        values: np.ndarray = likeness @ self.weights + self.intercept
        large = self.likeness.large(likeness)
        if large.any():
            values[large] = np.add.accumulate(likeness[large] * self.weights, axis=1)[:, -1] + self.intercept
        return values


@kernel
class VectorClassifier:
    """SVC and NuSVC: each pair of classes votes; ``by_confidence`` decides between classes with as many votes.

    ``slopes`` and ``offsets`` (one for each pair; or none) make probabilities of the votes.
    """

    pairs: Pairs
    labels: tuple[Any, ...]
    one_vs_rest: bool
    by_confidence: bool
    slopes: np.ndarray
    offsets: np.ndarray

    @cached_property
    def _labels(self) -> np.ndarray:
        return labels_of(self.labels)

    def __call__(self, table: Table) -> Prediction:
        scores = self.pairs(table)
        found = self._confidence(scores) if self.by_confidence else self._votes(scores > 0)
        labels = self._labels[np.argmax(found, axis=1)]
        return Prediction(labels, self._probabilities(scores) if len(self.slopes) else None)

    def decision(self, table: Table) -> np.ndarray:
        """SVC.decision_function, of shape (rows, 1) for two classes."""
        scores = self.pairs(table)
        if len(self.labels) == 2:
            return -scores
        return self._confidence(scores) if self.one_vs_rest else scores

    @cached_property
    def _second(self) -> np.ndarray:
        return (self.pairs.of[1][:, None] == np.arange(len(self.labels))).astype(np.float64)

    @cached_property
    def _first_less_second(self) -> np.ndarray:
        return (self.pairs.of[0][:, None] == np.arange(len(self.labels))) - self._second

    def _votes(self, for_first: np.ndarray) -> np.ndarray:
        votes: np.ndarray = for_first.astype(np.float64) @ self._first_less_second + self._second.sum(axis=0)
        return votes

    def _confidence(self, scores: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(scores), len(self.labels)))
        for pair, (i, j) in enumerate(zip(*self.pairs.of, strict=True)):
            sums[:, i] += scores[:, pair]
            sums[:, j] -= scores[:, pair]
        confidence: np.ndarray = self._votes(~(scores < 0)) + sums / (3 * (np.abs(sums) + 1))
        return confidence

    def _probabilities(self, scores: np.ndarray) -> np.ndarray:
        exponents = scores * self.slopes + self.offsets
        powers = np.exp(-np.abs(exponents))
        of_first = np.where(exponents >= 0, powers, 1.0) / (1.0 + powers)
        of_first = np.clip(of_first, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        if len(of_first) > FEW:
            return coupled_together(of_first, len(self.labels))
        return np.array([coupled(row, len(self.labels)) for row in of_first.tolist()])


FEW = 8  # rows; more are coupled faster together


def _coupling(of_first: np.ndarray, classes: int) -> np.ndarray:
    """The matrix Q of Wu, Lin and Weng's second method, of shape (rows, classes, classes)."""
    first, second = np.triu_indices(classes, 1)
    pairwise = np.zeros((len(of_first), classes, classes))
    pairwise[:, first, second] = of_first
    pairwise[:, second, first] = 1 - of_first
    coupling = -np.swapaxes(pairwise, 1, 2) * pairwise
    every = np.arange(classes)
    coupling[:, every, every] = (pairwise**2).sum(axis=1)
    return coupling


def coupled(of_first: list[float], classes: int) -> list[float]:
    """Probabilities of all classes from those of each pair, for one row: libsvm's multiclass_probability."""
    coupling = _coupling(np.array([of_first]), classes)[0].tolist()
    every = range(classes)
    found, close = [1.0 / classes] * classes, 0.005 / classes
    for _ in range(max(ROUNDS, classes)):
        slopes = [sum(map(float.__mul__, line, found)) for line in coupling]
        total = sum(map(float.__mul__, found, slopes))
        if max([abs(slope - total) for slope in slopes]) < close:
            break
        for t in every:
            line = coupling[t]
            step = (total - slopes[t]) / line[t]
            scale = 1 + step
            found[t] += step
            total = (total + step * (step * line[t] + 2 * slopes[t])) / scale / scale
            slopes = [(slope + step * entry) / scale for slope, entry in zip(slopes, line, strict=True)]
            found = [value / scale for value in found]
    return found


def coupled_together(of_first: np.ndarray, classes: int) -> np.ndarray:
    """As `coupled`, for many rows; each stops when it is close enough."""
    coupling = _coupling(of_first, classes)
    answer = np.full((len(of_first), classes), 1.0 / classes)
    active, found, close = np.arange(len(of_first)), answer.copy(), 0.005 / classes
    for _ in range(max(ROUNDS, classes)):
        slopes = (coupling * found[:, None, :]).sum(axis=2)
        total = (found * slopes).sum(axis=1)
        going = np.abs(slopes - total[:, None]).max(axis=1) >= close
        if not going.all():
            answer[active[~going]] = found[~going]
            active, found, coupling = active[going], found[going], coupling[going]
            slopes, total = slopes[going], total[going]
        if not len(active):
            return answer
        for t in range(classes):
            own = coupling[:, t, t]
            step = (total - slopes[:, t]) / own
            scale = (1 + step)[:, None]
            found[:, t] += step
            total = (total + step * (step * own + 2 * slopes[:, t])) / scale[:, 0] / scale[:, 0]
            slopes = (slopes + step[:, None] * coupling[:, t]) / scale
            found /= scale
    answer[active] = found
    return answer
