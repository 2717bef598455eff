"""Naive Bayes: joint log-likelihoods of the classes and what follows from them, by scikit-learn's own operations."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from serving.kernels import Kernel, Table, kernel
from serving.kernels.linear import numbers_of
from serving.kernels.models import labels_of
from serving.tensors import Prediction


@kernel
class Gaussians:
    """Log-likelihoods of shape (rows, classes); ``constants`` are those parts of them that no value changes.

    ``means`` and ``variances`` are (classes, columns), ``log_priors`` and ``constants`` (classes,).
    """

    log_priors: np.ndarray
    constants: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def __call__(self, table: Table) -> np.ndarray:
        numbers = numbers_of(table)
        each = []
        with np.errstate(over="ignore", invalid="ignore"):
            for log_prior, constant, mean, variance in zip(
                self.log_priors, self.constants, self.means, self.variances, strict=True
            ):
                distances = np.sum((numbers - mean) ** 2 / variance, axis=1)
                each.append(log_prior + (constant - 0.5 * distances))
        return np.stack(each).T  # its layout decides in which order classes are added up later


@kernel
class Above:
    """1 where a number is above ``threshold``, else 0."""

    threshold: float

    def __call__(self, table: Table) -> np.ndarray:
        return (numbers_of(table) > self.threshold).astype(np.float64)

    def origin(self, output: int) -> tuple[int, Any] | None:
        return output, lambda values: values + self.threshold


@kernel
class Posterior:
    """The class with the largest of ``score``'s log-likelihoods, and the probabilities of all."""

    score: Kernel
    labels: tuple[Any, ...]

    @cached_property
    def _labels(self) -> np.ndarray:
        return labels_of(self.labels)

    def __call__(self, table: Table) -> Prediction:
        likelihoods = self.score(table)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            totals = log_sum_exp(likelihoods)
            probabilities = np.exp(likelihoods - np.atleast_2d(totals).T)
        return Prediction(self._labels[np.argmax(likelihoods, axis=1)], probabilities)


def log_sum_exp(numbers: np.ndarray) -> np.ndarray:
    """Over the second axis; sklearn.utils._array_api._logsumexp."""
    largest = np.max(numbers, axis=1, keepdims=True)
    is_largest = numbers == largest
    others = np.array(numbers)
    others[is_largest] = -np.inf
    count = np.sum(is_largest.astype(numbers.dtype), axis=1, keepdims=True)
    rest = np.sum(np.exp(others - np.where(np.isfinite(largest), largest, 0)), axis=1, keepdims=True)
    rest = np.where(rest == 0, rest, rest / count)
    return np.squeeze(np.log1p(rest) + np.log(count) + largest, axis=1)
