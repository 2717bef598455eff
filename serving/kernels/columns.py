"""Transforms: scalers, imputers, encoders and the choice of columns, with scikit-learn's operations and their order.

``origin(output)`` tells which input column an output column comes from and how its values go back there, so that the
proof can put rows on the far side of a threshold.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from serving.errors import InvalidInput
from serving.kernels import Kernel, Table, block, columns, kernel

# How scikit-learn computes: each in place on a copy, so that the type of the input stays.
FORWARD = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide}
BACKWARD = {"add": np.subtract, "subtract": np.add, "multiply": np.divide, "divide": np.multiply}


class Refused(InvalidInput):
    """A value that the model does not take, by its ``row`` and its column's ``position`` in the kernel's own table."""

    def __init__(self, message: str, row: int, position: int | None) -> None:
        super().__init__(message, row=row)
        self.position = position


def check_finite(numbers: np.ndarray, *, missing_fit: bool) -> None:
    """Raise `Refused` as scikit-learn's own check of its input does; NaN passes where ``missing_fit``."""
    if np.count_nonzero(np.isfinite(numbers)) == numbers.size:  # half of what all() takes for one row
        return
    wrong = np.isinf(numbers) if missing_fit else ~np.isfinite(numbers)
    if wrong.any():
        row = int(np.argmax(wrong.any(axis=1)))
        raise Refused("the model takes no missing or infinite values", row, int(np.argmax(wrong[row])))


@kernel
class Chain:
    """One kernel after the other."""

    steps: tuple[Kernel, ...]

    def __call__(self, table: Table) -> Any:
        for number, step in enumerate(self.steps):
            try:
                table = step(table)
            except Refused as err:
                before = Chain(self.steps[:number]).origin(err.position) if err.position is not None else None
                raise Refused(err.what, err.row or 0, before[0] if before else None) from None
        return table

    def origin(self, output: int) -> tuple[int, Any] | None:
        ways = []
        for step in reversed(self.steps):
            found = step.origin(output) if hasattr(step, "origin") else None
            if found is None:
                return None
            output, way = found
            ways.append(way)

        def back(values: np.ndarray) -> np.ndarray:
            for way in ways:
                values = way(values)
            return values

        return output, back


def _same(values: np.ndarray) -> np.ndarray:
    return values


def _nowhere(values: np.ndarray) -> np.ndarray:
    """The way back of a column whose values do not follow from numbers."""
    return values[:0]


@kernel
class Take:
    """Some columns, in this order."""

    positions: tuple[int, ...]

    def __call__(self, table: Table) -> Table:
        if isinstance(table, tuple):
            return tuple(table[position] for position in self.positions)
        return table[:, self._index]

    @cached_property
    def _index(self) -> Any:
        first, last = self.positions[0], self.positions[-1]
        in_order = self.positions == tuple(range(first, last + 1))
        return slice(first, last + 1) if in_order else list(self.positions)

    def origin(self, output: int) -> tuple[int, Any] | None:
        return self.positions[output], _same


@kernel
class Same:
    """The table as it is."""

    def __call__(self, table: Table) -> Table:
        return table

    def origin(self, output: int) -> tuple[int, Any] | None:
        return output, _same


@kernel
class Beside:
    """Several kernels on the same table, their outputs side by side; ``widths`` counts the columns of each."""

    parts: tuple[Kernel, ...]
    widths: tuple[int, ...]

    def __call__(self, table: Table) -> np.ndarray:
        return np.concatenate([block(part(table)) for part in self.parts], axis=1)

    def origin(self, output: int) -> tuple[int, Any] | None:
        for part, width in zip(self.parts, self.widths, strict=True):
            if output < width:
                found: tuple[int, Any] | None = part.origin(output)
                return found
            output -= width
        return None


@kernel
class Arithmetic:
    """One operation after the other on every row: ``operations`` of `FORWARD` with an operand each."""

    operations: tuple[str, ...]
    operands: tuple[np.ndarray, ...]
    clip: tuple[float, float] | None = None

    def __call__(self, table: Table) -> np.ndarray:
        numbers = block(table)
        check_finite(numbers, missing_fit=True)
        numbers = np.array(numbers, dtype=numbers.dtype if numbers.dtype.kind == "f" else np.float64)
        for operation, operand in zip(self.operations, self.operands, strict=True):
            FORWARD[operation](numbers, operand, out=numbers, casting="same_kind")
        return np.clip(numbers, *self.clip, out=numbers) if self.clip else numbers

    def origin(self, output: int) -> tuple[int, Any] | None:
        def back(values: np.ndarray) -> np.ndarray:
            for operation, operand in zip(reversed(self.operations), reversed(self.operands), strict=True):
                values = BACKWARD[operation](values, operand[output])
            return values

        return output, back


def is_missing(column: np.ndarray) -> np.ndarray:
    """Where a column has NaN or None."""
    if column.dtype == object:
        return np.fromiter((value is None or value != value for value in column), bool, len(column))
    return np.isnan(column) if column.dtype.kind == "f" else np.zeros(len(column), bool)


@kernel
class FillNumbers:
    """NaN becomes the column's ``fill``; of the columns only ``kept`` stay; ``marked`` ones add one that says where."""

    fill: np.ndarray
    kept: tuple[int, ...]
    marked: tuple[int, ...] = ()

    def __call__(self, table: Table) -> np.ndarray:
        numbers = block(table)
        check_finite(numbers, missing_fit=True)
        missing, filled = np.isnan(numbers), numbers
        if missing.any():
            filled = np.where(missing, self.fill.astype(numbers.dtype), numbers)
        if len(self.kept) != numbers.shape[1]:
            filled = filled[:, list(self.kept)]
        return np.hstack([filled, missing[:, list(self.marked)]]) if self.marked else filled

    def origin(self, output: int) -> tuple[int, Any] | None:
        return (
            (self.kept[output], _same) if output < len(self.kept) else (self.marked[output - len(self.kept)], _nowhere)
        )


@kernel
class FillTexts:
    """A missing text becomes the column's ``fill``; ``marked`` columns add one that says where."""

    fill: tuple[Any, ...]
    marked: tuple[int, ...] = ()

    def __call__(self, table: Table) -> tuple[np.ndarray, ...]:
        parts = columns(table)
        filled = tuple(self._filled(column, fill) for column, fill in zip(parts, self.fill, strict=True))
        return (*filled, *(is_missing(parts[position]) for position in self.marked)) if self.marked else filled

    def _filled(self, column: np.ndarray, fill: Any) -> np.ndarray:
        if column.dtype == object and set(map(type, column.tolist())) == {str}:
            return column
        missing = is_missing(column)
        if not missing.any():
            return column
        filled = column.astype(object)
        filled[missing] = fill
        return filled

    def origin(self, output: int) -> tuple[int, Any] | None:
        return (output, _same) if output < len(self.fill) else (self.marked[output - len(self.fill)], _nowhere)


class _Lookup(dict[Any, Any]):
    """What each category becomes. NaN and None are one category; ``otherwise`` is what an unknown value becomes."""

    def __init__(self, categories: tuple[Any, ...], values: tuple[Any, ...], otherwise: Any) -> None:
        named = [None if category != category else category for category in categories]
        super().__init__(zip(named, values, strict=True))
        self.otherwise = otherwise

    def __missing__(self, value: Any) -> Any:
        return self.get(None, self.otherwise) if value != value else self.otherwise


@kernel
class Codes:
    """Each of a column's ``categories`` becomes its one of ``values``, any other value the column's ``otherwise``.

    NaN and None are one category. Where ``otherwise`` is None an unknown value is refused.
    """

    categories: tuple[tuple[Any, ...], ...]
    values: tuple[tuple[Any, ...], ...]
    otherwise: tuple[Any, ...]
    dtype: str = "float64"

    @cached_property
    def _lookups(self) -> tuple[_Lookup, ...]:
        return tuple(map(_Lookup, self.categories, self.values, self.otherwise))

    def __call__(self, table: Table) -> np.ndarray:
        parts = columns(table)
        codes = np.empty((len(parts[0]), len(parts)), self.dtype)
        for position, (column, lookup) in enumerate(zip(parts, self._lookups, strict=True)):
            if column.dtype.kind == "f" and np.isinf(column).any():
                row = int(np.argmax(np.isinf(column)))
                raise Refused("the model takes no infinite values", row, position)
            values = column.tolist()
            found = list(map(lookup.__getitem__, values))
            if lookup.otherwise is None and None in found:
                row = found.index(None)
                raise Refused(f"{repr(values[row])[:80]} is a category that the model does not know", row, position)
            codes[:, position] = found
        return codes

    def origin(self, output: int) -> tuple[int, Any] | None:
        return output, _nowhere


@kernel
class OneHot:
    """Zeros, and ones where ``codes`` says: each of its values is an output's position, or -1 for none."""

    codes: Codes
    width: int
    dtype: str = "float64"

    def __call__(self, table: Table) -> np.ndarray:
        places = self.codes(table)
        hot = np.zeros((len(places), self.width), self.dtype)
        known = places >= 0
        if known.all():
            hot[np.arange(len(places))[:, None], places] = 1
        else:
            rows, every = np.nonzero(known)
            hot[rows, places[rows, every]] = 1
        return hot

    def origin(self, output: int) -> tuple[int, Any] | None:
        for position, values in enumerate(self.codes.values):
            if output in values or output == self.codes.otherwise[position]:
                return position, _nowhere
        return None
