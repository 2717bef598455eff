"""Agreement: how close the answers of an exported or quantised model are to those of the model it was made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Numbers by name, and what they were compared with and on."""

    reference: str
    rows: int
    numbers: dict[str, float]

    def as_json(self) -> dict[str, str | int | float]:
        return {"with": self.reference, "rows": self.rows, **self.numbers}


def of_vectors(answered: np.ndarray, alone: np.ndarray, reference: np.ndarray, name: str) -> Agreement:
    """Of vectors of length 1, answered in groups and each text alone.

    ``cosine_min`` and ``cosine_mean`` are those of a vector and its reference; ``same_neighbour`` is the share of texts
    whose nearest other text is the same one; ``largest_difference`` is that of a number, ``group_difference`` that
    between a text in a group and alone.
    """
    cosines = (answered * reference).sum(axis=1)
    same = _neighbours(answered) == _neighbours(reference)
    numbers = {
        "cosine_min": float(cosines.min()),
        "cosine_mean": float(cosines.mean()),
        "same_neighbour": float(same.mean()),
        "largest_difference": float(np.abs(answered - reference).max()),
        "group_difference": float(np.abs(answered - alone).max()),
    }
    return Agreement(name, len(answered), numbers)


def of_probabilities(answered: np.ndarray, reference: np.ndarray, name: str) -> Agreement:
    """Of chances: ``top1_agreement`` is the share of rows with the same first class.

    ``probability_difference`` is the largest difference of a chance. Raises ValueError where the two have not the same
    classes.
    """
    if answered.shape != reference.shape:
        raise ValueError(f"it has {answered.shape[1]} classes, not {reference.shape[1]}")
    same = answered.argmax(axis=1) == reference.argmax(axis=1)
    numbers = {
        "top1_agreement": float(same.mean()),
        "probability_difference": float(np.abs(answered - reference).max()),
    }
    return Agreement(name, len(answered), numbers)


def _neighbours(vectors: np.ndarray) -> np.ndarray:
    """The row of the most similar other vector."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    nearest: np.ndarray = similar.argmax(axis=1)
    return nearest
