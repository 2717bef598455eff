"""Whether an answer is right: equal to what scikit-learn itself says, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# JSON keeps every bit of a float; this is for servers that compute in another order.
TOLERANCE = 1e-6

Expected = tuple[np.ndarray, np.ndarray]


class Wrong(Exception):
    """What is wrong with an answer."""


@dataclass(frozen=True)
class Said:
    """What a server said of some rows: labels, and probabilities (rows × classes) where it gives them."""

    labels: list[Any]
    probabilities: list[list[float]] | None = None


def check(said: Said, expected: Expected) -> None:
    """Raises `Wrong` unless labels are equal and probabilities within `TOLERANCE` of ``expected``."""
    labels, probabilities = expected
    if len(said.labels) != len(labels):
        raise Wrong(f"{len(said.labels)} answers for {len(labels)} rows")
    for row, (got, want) in enumerate(zip(said.labels, labels.tolist(), strict=True)):
        if got != want:
            raise Wrong(f"row {row} is class {want}, not {got}")
    if said.probabilities is None:
        return
    got_array = np.asarray(said.probabilities, dtype=np.float64)
    if got_array.shape != probabilities.shape:
        raise Wrong(f"probabilities of shape {got_array.shape}, not {probabilities.shape}")
    differs = np.abs(got_array - probabilities).max()
    if not differs <= TOLERANCE:
        raise Wrong(f"a probability is off by {differs:.3g}")


def steady_part(first: bytes, second: bytes, other: bytes) -> bytes:
    """What two right answers to one request share, to know further ones by: their longer common end.

    Ids and times differ from answer to answer, so it is either the beginning or the end; and only whole fields of it,
    for an id may begin with the time. ``other`` answers another request: raises `Wrong` if it has that part too,
    because then it would tell nothing.
    """
    if first == second:
        part = first
    else:
        start = _common_start(first, second).rpartition(b",")[0]
        end = _common_start(first[::-1], second[::-1])[::-1].partition(b",")[2]
        part = max(start, end, key=len)
    if not part or part in other:
        raise Wrong("answers to different rows cannot be told apart")
    return part


def _common_start(first: bytes, second: bytes) -> bytes:
    differs = (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return first[: next(differs, min(len(first), len(second)))]
