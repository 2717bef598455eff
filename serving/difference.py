"""How far two answers lie apart."""

from __future__ import annotations

import numpy as np

from serving.tensors import Prediction


def largest_difference(recorded: Prediction, got: Prediction) -> float:
    """Relative to the larger of 1 and the recorded value; infinite where labels or shapes differ."""
    differences = [_difference(recorded.values, got.values)]
    if recorded.probabilities is not None:
        differences.append(
            np.inf if got.probabilities is None else _difference(recorded.probabilities, got.probabilities)
        )
    return float(max(differences))


def _difference(recorded: np.ndarray, got: np.ndarray) -> float:
    recorded, got = np.asarray(recorded), np.asarray(got)
    if recorded.shape != got.shape:
        return np.inf
    if not (np.issubdtype(recorded.dtype, np.number) and np.issubdtype(got.dtype, np.number)):
        return 0.0 if [str(value) for value in recorded.flat] == [str(value) for value in got.flat] else np.inf
    wanted, found = recorded.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], found[~finite], equal_nan=True):
        return np.inf
    if not np.isfinite(found[finite]).all():
        return np.inf
    wanted, found = wanted[finite], found[finite]
    with np.errstate(over="ignore"):
        difference = np.abs(wanted - found) / np.maximum(1.0, np.abs(wanted))
    return float(np.max(difference, initial=0.0))
