"""Agreement: do two versions answer the same rows alike?"""

from __future__ import annotations

import numpy as np

from serving.tensors import Prediction

CLOSE = 0.01  # numbers this close to each other agree, relative to the larger of them
COSINE = 0.99  # vectors of at least this cosine agree


def compare(champion: Prediction, challenger: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """For each row whether the two agree, and by how much they differ.

    Labels agree where they are equal, and differ by the largest difference of a probability (0 or 1 without any).
    Numbers agree within `CLOSE` and differ by what they are apart, relative to the larger; vectors agree from `COSINE`
    on, and differ by what theirs lacks to 1. What has another shape agrees nowhere, and differs by 1.
    """
    ours, theirs = np.asarray(champion.values), np.asarray(challenger.values)
    if ours.shape != theirs.shape:
        return np.zeros(len(ours), bool), np.ones(len(ours))
    if ours.dtype.kind == "f" and champion.probabilities is None:
        return _numbers(ours, theirs) if ours.ndim == 1 else _vectors(ours, theirs)
    equal = np.asarray(np.all(np.asarray(ours == theirs).reshape(len(ours), -1), axis=1))
    if champion.probabilities is None or challenger.probabilities is None:
        return equal, (~equal).astype(float)
    apart = np.abs(np.asarray(champion.probabilities) - np.asarray(challenger.probabilities))
    return equal, np.asarray(np.nan_to_num(apart.reshape(len(ours), -1).max(axis=1), nan=1.0))


def _numbers(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.maximum(np.maximum(np.abs(ours), np.abs(theirs)), np.finfo(float).tiny)
    apart = np.nan_to_num(np.abs(ours - theirs.astype(float)) / scale, nan=1.0, posinf=1.0)
    return np.asarray(apart <= CLOSE), np.asarray(apart)


def _vectors(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, two = (np.asarray(array, dtype=float).reshape(len(ours), -1) for array in (ours, theirs))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    cosine = np.nan_to_num(np.einsum("ij,ij->i", one, two) / np.where(lengths > 0, lengths, np.nan), nan=0.0)
    return np.asarray(cosine >= COSINE), np.asarray(1.0 - cosine)
