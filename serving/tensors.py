"""Batch, Signature and Prediction: the only currency between edges and core."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# MLflow's column types and the NumPy types that carry them; everything else travels as Python objects.
NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "double": np.dtype(np.float64),
    "float": np.dtype(np.float32),
    "long": np.dtype(np.int64),
    "integer": np.dtype(np.int32),
    "boolean": np.dtype(np.bool_),
    "datetime": np.dtype("datetime64[ns]"),
}

# Each type with those whose every value it holds exactly.
WIDER = {"long": {"integer"}, "double": {"float", "integer"}, "any": {"*"}}


@dataclass(frozen=True)
class Field:
    """One input: a column (``shape`` is empty) or a tensor, whose ``shape`` is that of one row; -1 is any length.

    ``type`` is MLflow's column type, a NumPy type name for tensors, or ``any`` where nothing is known.
    """

    name: str
    type: str
    required: bool = True
    shape: tuple[int, ...] = ()

    def holds(self, other: Field) -> bool:
        """Whether every value that fits ``other`` fits this field too."""
        wider = WIDER.get(self.type, set())
        return (
            self.name == other.name
            and (self.type == other.type or other.type in wider or "*" in wider)
            and self.required <= other.required
            and len(self.shape) == len(other.shape)
            and all(mine in (-1, theirs) for mine, theirs in zip(self.shape, other.shape, strict=True))
        )

    def as_json(self) -> dict[str, Any]:
        plain = {"name": self.name, "type": self.type, "required": self.required}
        return {**plain, "shape": list(self.shape)} if self.shape else plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Field:
        return cls(plain["name"], plain["type"], plain["required"], tuple(plain.get("shape", ())))


@dataclass(frozen=True)
class Signature:
    """What a model takes. ``layout`` says how rows are written:

    ``columns``
        named columns, one value each;
    ``tensors``
        one or more arrays, whose first axis is the row;
    ``unknown``
        the model has no signature and none could be read off it: rows go to it as they come.

    ``origin`` is ``model`` when the version carries it, ``inferred`` when it was read off the model itself, ``none``.
    """

    layout: str
    inputs: tuple[Field, ...]
    origin: str = "model"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.inputs)

    def accepts(self, other: Signature) -> bool:
        """Whether every request that fits ``other`` fits this signature too: new inputs come last and are optional."""
        if "none" in (self.origin, other.origin):
            return True
        if self.layout != other.layout or len(self.inputs) < len(other.inputs):
            return False
        known = len(other.inputs)
        return all(mine.holds(theirs) for mine, theirs in zip(self.inputs, other.inputs, strict=False)) and not any(
            field.required for field in self.inputs[known:]
        )

    def as_json(self) -> dict[str, Any]:
        return {"layout": self.layout, "origin": self.origin, "inputs": [field.as_json() for field in self.inputs]}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Signature:
        return cls(plain["layout"], tuple(map(Field.from_json, plain["inputs"])), plain["origin"])

    @classmethod
    def from_mlmodel(cls, written: Mapping[str, Any] | None) -> Signature | None:
        """The signature of an MLmodel file (its ``signature`` entry), or None when it has none for inputs."""
        if not written or not written.get("inputs"):
            return None
        specs = json.loads(written["inputs"])
        if not specs:
            return None
        if all(spec["type"] == "tensor" for spec in specs):
            return cls("tensors", tuple(_tensor(spec, position) for position, spec in enumerate(specs)))
        return cls("columns", tuple(_column(spec, position) for position, spec in enumerate(specs)))


def _tensor(spec: Mapping[str, Any], position: int) -> Field:
    tensor = spec["tensor-spec"]
    return Field(_name(spec, f"input_{position}"), tensor["dtype"], True, tuple(tensor["shape"][1:]))


def _column(spec: Mapping[str, Any], position: int) -> Field:
    known = spec["type"] in NUMPY_TYPES or spec["type"] in ("string", "binary")
    name = _name(spec, f"column_{position}")
    return Field(name, spec["type"] if known else "any", bool(spec.get("required", True)))


def _name(spec: Mapping[str, Any], default: str) -> str:
    """MLflow writes the columns of a frame without names as whole numbers, the first of them 0."""
    name = spec.get("name")
    return default if name in (None, "") else str(name)


class Batch:
    """Named columns over rows.

    Columns of one common type may come as one block of shape (rows, columns), which numeric models take as it is.
    ``params`` are what this call asks of the model beside its rows, checked against the version's own; None for none.
    """

    __slots__ = ("_columns", "block", "names", "params", "rows")

    def __init__(
        self, names: Sequence[str], columns: Sequence[np.ndarray] | None = None, *, block: np.ndarray | None = None
    ) -> None:
        self.names = tuple(names)
        self.params: Mapping[str, Any] | None = None
        self.block = block
        self._columns = columns
        self.rows: int = len(block) if block is not None else len(columns[0]) if columns else 0

    @property
    def bytes(self) -> int:
        """What the arrays take in memory, and the texts and binary values in them."""
        return self.block.nbytes if self.block is not None else sum(map(_size, self._columns or ()))

    @property
    def columns(self) -> Sequence[np.ndarray]:
        """One array for each name, each of shape (rows, ...)."""
        if self._columns is None:
            assert self.block is not None
            self._columns = tuple(self.block[:, position] for position in range(self.block.shape[1]))
        return self._columns

    def column(self, name: str) -> np.ndarray:
        """The column called ``name``. Raises ValueError when there is none."""
        return self.columns[self.names.index(name)]


def _size(column: np.ndarray) -> int:
    if column.dtype != object:
        return column.nbytes
    return column.nbytes + sum(len(value) for value in column.flat if isinstance(value, (bytes, str)))


class Own(NamedTuple):
    """How a model itself formed its answer, for callers who know it by that form:

    ``records``
        a frame: one object a row
    ``arrays``
        an object of arrays, one value a row in each
    ``graph``
        a graph's outputs, all of them, by its own names
    ``one``
        no list at all, which answers a single row; it stands alone in ``columns[""]``
    """

    form: str
    columns: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model answered: ``values`` of shape (rows, ...), and where it gave them ``probabilities`` (rows, classes).

    For a classifier ``values`` are the model's own labels. A model with several outputs has them all in ``named``, and
    the first of them in ``values``. ``own`` is None where the model answered with the plain list of ``values``.
    ``tokens`` are those of each row, where the model takes texts apart into tokens.
    """

    values: np.ndarray
    probabilities: np.ndarray | None = None
    named: Mapping[str, np.ndarray] | None = None
    own: Own | None = None
    tokens: np.ndarray | None = None


def by_name(prediction: Prediction, name: str) -> dict[str, np.ndarray]:
    """All that was answered: several outputs as they are called, ``label`` and ``probabilities``, else ``name``."""
    if prediction.probabilities is not None:
        return {"label": prediction.values, "probabilities": prediction.probabilities}
    return dict(prediction.named) if prediction.named is not None else {name: prediction.values}


def described(arrays: Mapping[str, np.ndarray]) -> tuple[Field, ...]:
    """Outputs as fields: NumPy's type names, ``str`` for texts, ``any`` for other objects; shapes of one row."""
    return tuple(Field(name, _type_name(array), True, array.shape[1:]) for name, array in arrays.items())


def _type_name(array: np.ndarray) -> str:
    if array.dtype.kind == "U" or (array.dtype.kind == "O" and all(isinstance(value, str) for value in array.flat)):
        return "str"
    return "any" if array.dtype.kind == "O" else array.dtype.name


@dataclass(frozen=True)
class Classes:
    """A classifier's labels in the order of its probabilities, and how people call them."""

    labels: tuple[Any, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, labels: Sequence[Any], names: Sequence[str] | None = None) -> Classes:
        """Labels as plain Python values; without ``names`` a class is called as its label is written."""
        plain = tuple(_plain(label) for label in labels)
        fitting = names if names is not None and len(names) == len(plain) else [str(label) for label in plain]
        return cls(plain, tuple(fitting))

    def class_id(self, position: int) -> int:
        """A whole-number label itself, else the label's position."""
        label = self.labels[position]
        return label if isinstance(label, int) and not isinstance(label, bool) else position


def _plain(label: Any) -> Any:
    value = label.item() if isinstance(label, np.generic) else label
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True)
class Description:
    """What a runtime learned about a model when it converted it."""

    signature: Signature
    classes: Classes | None = None
    libraries: tuple[str, ...] = ()  # distributions whose exact version the converted form depends on
    output: str | None = None  # how the model calls its only output
    tolerance: float | None = None  # of the proof, where answers are as good as the processor rounds them
    variant: Mapping[str, Any] | None = None  # how it was made, for people; ``top_k``: how many classes it names
    example: Any = None  # a row that any such model answers, where the version has none
