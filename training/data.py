"""Data: rows with what turned out to be true of them, and which of them a model may learn from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from serving.tensors import Batch

# Not the seed of the command: every version of a family is judged on the same holdout, or comparing them would let the
# one that has seen the rows win.
SPLIT_SEED = 20


@dataclass(frozen=True, eq=False)
class Rows:
    """Inputs (a data frame, or an array whose first axis is the row) and one label for each."""

    inputs: Any
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: np.ndarray) -> Rows:
        """The rows at ``positions``, in that order."""
        inputs = self.inputs.iloc[positions] if hasattr(self.inputs, "iloc") else self.inputs[positions]
        return Rows(inputs, self.labels[positions])

    def sample(self, most: int) -> Rows:
        """At most ``most`` rows, spread evenly and always the same."""
        return self.take(np.linspace(0, len(self) - 1, min(most, len(self))).astype(int))

    def batch(self) -> Batch:
        """The inputs as named columns; an array is one column called ``input``."""
        if not hasattr(self.inputs, "columns"):
            return Batch(("input",), (self.inputs,))
        return Batch(tuple(self.inputs.columns), tuple(_array(self.inputs[name]) for name in self.inputs.columns))


@dataclass(frozen=True, eq=False)
class Data:
    """All rows of a family; those at ``learn`` are for learning, those at ``keep`` are the holdout."""

    rows: Rows
    learn: np.ndarray
    keep: np.ndarray
    class_names: tuple[str, ...] = ()

    @classmethod
    def split(cls, rows: Rows, class_names: tuple[str, ...], holdout: float) -> Data:
        """Keep the share ``holdout`` of each class, drawn the same way whoever asks."""
        from sklearn.model_selection import train_test_split

        learn, keep = train_test_split(
            np.arange(len(rows)), test_size=holdout, random_state=SPLIT_SEED, stratify=rows.labels
        )
        return cls(rows, np.sort(learn), np.sort(keep), class_names)

    @cached_property
    def train(self) -> Rows:
        return self.rows.take(self.learn)

    @cached_property
    def holdout(self) -> Rows:
        return self.rows.take(self.keep)

    @cached_property
    def digest(self) -> str:
        """Names these rows: 128 bits of the SHA-256 over all inputs and labels, as many as MLflow has room for."""
        content = hashlib.sha256()
        for name, column in zip(self.rows.batch().names, self.rows.batch().columns, strict=True):
            content.update(name.encode())
            content.update(_bytes(column))
        content.update(_bytes(self.rows.labels))
        return content.hexdigest()[:32]


def _array(column: Any) -> np.ndarray:
    """A column's values; a gap among texts is None, as the service has it."""
    values: np.ndarray = column.to_numpy()
    return values if values.dtype != object else column.astype(object).where(column.notna(), None).to_numpy()


def _bytes(column: np.ndarray) -> bytes:
    return column.tobytes() if column.dtype != object else "\0".join(map(repr, column.tolist())).encode()
