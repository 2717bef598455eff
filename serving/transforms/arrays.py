"""Typed arrays by name → `Batch`, checked against the signature. Never a silent cast.

An array fits a column of another type only if every one of its values is the same number there: whole numbers a float
that holds them, floats an integer where they are whole. True and false are no numbers, texts are nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from serving.errors import InvalidInput
from serving.tensors import NUMPY_TYPES, Batch, Field, Signature
from serving.transforms.values import as_array, as_objects

NAMED_CHARACTERS = 80  # of an array that is none of the model's
LISTED = 12
NUMBERS = "iuf"
EXACT_TO = {8: 2**53, 4: 2**24, 2: 2**11}  # by bytes of a float: the whole numbers up to here are all floats


class ArrayReader:
    """Reads arrays for one signature. What does not differ from request to request is worked out once, here."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self._names = signature.names
        self._known = frozenset(signature.names)
        self._doubles = signature.layout == "columns" and {field.type for field in signature.inputs} == {"double"}
        self._required = np.array([field.required for field in signature.inputs], dtype=np.bool_)

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> Batch:
        """The batch in ``arrays``, whose first axis is the row; texts are objects: `str`, `bytes`, None for a gap.

        One array for each input by its name. Where no input is called so, a single array may stand for all columns
        side by side, or for the only input. Raises `InvalidInput`.
        """
        if self._doubles and (block := self._block(arrays)) is not None:
            return Batch(self._names, block=block)
        _check_rows(arrays)
        if self.signature.layout == "unknown":
            return _read_unknown(arrays)
        alone = next(iter(arrays)) if len(arrays) == 1 else None
        if alone is not None and alone not in self._names:
            if self.signature.layout == "columns":
                return self._side_by_side(alone, arrays[alone])
            if len(self._names) == 1:
                arrays = {self._names[0]: arrays[alone]}
        if unknown := [name for name in arrays if name not in self._names]:
            raise InvalidInput(f"is not an input of this model; it has {self._listed()}", column=_cut(unknown[0]))
        return self._columns(arrays) if self.signature.layout == "columns" else self._tensors(arrays)

    def _block(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The usual: finite doubles, all columns in one array or each in its own. None for what has to be looked at."""
        first = next(iter(arrays.values()))
        if any(array.dtype != np.float64 or array.shape != first.shape for array in arrays.values()):
            return None
        if not first.ndim:
            return None
        width = len(self._names)
        if first.size == 1 and len(arrays) == width and arrays.keys() == self._known:
            row = [arrays[name].item() for name in self._names]  # for one row quicker than NumPy's own ways
            return np.array([row]) if all(map(isfinite, row)) else None
        if len(arrays) == width and first.shape in ((len(first),), (len(first), 1)) and arrays.keys() == self._known:
            block = np.concatenate([arrays[name] for name in self._names], axis=None).reshape(width, -1)
            block = np.ascontiguousarray(block.T)
        elif len(arrays) == 1 and first.ndim == 2 and first.shape[1] == width and self._known.isdisjoint(arrays):
            block = first
        else:
            return None
        return block if len(block) and np.isfinite(block).all() else None

    def _listed(self) -> str:
        more = f" and {len(self._names) - LISTED} more" if len(self._names) > LISTED else ""
        return ", ".join(map(repr, self._names[:LISTED])) + more

    def _side_by_side(self, name: str, array: np.ndarray) -> Batch:
        """One array of shape (rows, columns), the columns in the signature's order."""
        width = len(self._names)
        table = array.reshape(-1, 1) if array.ndim == 1 and width == 1 else array
        if table.ndim != 2 or table.shape[1] != width:
            expected = f"one array for each of {self._listed()}, or one of shape [-1, {width}] for all"
            raise InvalidInput(f"has the shape {list(array.shape)}; expected {expected}", column=_cut(name))
        if self._doubles and table.dtype.kind == "f" and table.dtype.itemsize <= 8:
            block = table.astype(np.float64, copy=False)
            self._check_finite(block)
            return Batch(self._names, block=block)
        return self._columns({field: table[:, position] for position, field in enumerate(self._names)})

    def _check_finite(self, block: np.ndarray) -> None:
        """Numbers everywhere, or gaps where a column may have them."""
        if np.isfinite(block).all():
            return
        wrong = np.isinf(block) | (np.isnan(block) & self._required)
        for position in np.flatnonzero(wrong.any(axis=0))[:1]:
            _refuse_gaps_and_infinities(self.signature.inputs[position], block[:, position])

    def _columns(self, arrays: Mapping[str, np.ndarray]) -> Batch:
        rows = len(next(iter(arrays.values())))
        if self._doubles and len(arrays) == len(self._names):
            block = np.empty((rows, len(self._names)), dtype=np.float64)
            for position, field in enumerate(self.signature.inputs):
                block[:, position] = _converted(field, _flat(field, arrays[field.name]))
            self._check_finite(block)
            return Batch(self._names, block=block)
        columns = tuple(self._column(field, arrays.get(field.name), rows) for field in self.signature.inputs)
        return Batch(self._names, block=np.stack(columns, axis=1)) if self._doubles else Batch(self._names, columns)

    def _column(self, field: Field, array: np.ndarray | None, rows: int) -> np.ndarray:
        if array is not None:
            return as_column(field, array)
        if field.required:
            raise InvalidInput("is missing", column=field.name)
        return as_array(field, [None] * rows)

    def _tensors(self, arrays: Mapping[str, np.ndarray]) -> Batch:
        if missing := [name for name in self._names if name not in arrays]:
            raise InvalidInput("is missing", column=missing[0])
        tensors = tuple(as_tensor(field, arrays[field.name]) for field in self.signature.inputs)
        if len(tensors) == 1 and tensors[0].ndim == 2:
            return Batch(self._names, block=tensors[0])
        return Batch(self._names, tensors)


def as_column(field: Field, array: np.ndarray) -> np.ndarray:
    """``array`` as a column of ``field``'s type, the same as rows of JSON would give. Raises `InvalidInput`."""
    if field.type == "any":
        return as_objects(field, [_plain(field, row, value) for row, value in enumerate(_flat(field, array).tolist())])
    column = _converted(field, _flat(field, array))
    if column.dtype.kind == "f":
        _refuse_gaps_and_infinities(field, column)
    return column


def as_tensor(field: Field, array: np.ndarray) -> np.ndarray:
    """``array`` as a tensor input, whose rows have ``field``'s shape. Raises `InvalidInput`."""
    shape = field.shape
    if not shape and array.ndim == 2 and array.shape[1] == 1:
        array = array.reshape(-1)
    if array.ndim != 1 + len(shape) or any(
        wanted not in (-1, size) for wanted, size in zip(shape, array.shape[1:], strict=True)
    ):
        raise InvalidInput(f"has the shape {list(array.shape)}, expected {[-1, *shape]}", column=field.name)
    flat = Field(field.name, TEXTS.get(field.type, field.type), field.required)
    try:
        values = _converted(flat, array.reshape(-1))
        if values.dtype.kind == "f":
            _refuse_gaps_and_infinities(flat, values)
    except InvalidInput as err:
        row = None if err.row is None else err.row // max(1, array[0].size)
        raise InvalidInput(err.what, row=row, column=field.name, plain=err.plain) from None
    typed = values.astype(np.str_) if field.type == "str" else values
    return typed.reshape(array.shape)


TEXTS = {"str": "string", "datetime64[ns]": "datetime"}  # tensors of texts, by the column type that reads them


def _check_rows(arrays: Mapping[str, np.ndarray]) -> None:
    """Every array has rows, and all have as many."""
    first, rows = "", None
    for name, array in arrays.items():
        if array.ndim == 0:
            raise InvalidInput("has no axis; the first one counts the rows", column=_cut(name))
        if rows is None:
            first, rows = name, len(array)
        if len(array) != rows:
            raise InvalidInput(f"has {len(array)} rows where {_cut(first)!r} has {rows}", column=_cut(name))
    if not rows:
        raise InvalidInput("there are no rows")


def _flat(field: Field, array: np.ndarray) -> np.ndarray:
    """One value a row; a column of free form may hold a list in each."""
    if array.ndim == 1 or (field.type == "any" and array.ndim > 2):
        return array
    if array.ndim == 2 and array.shape[1] == 1:
        return array.reshape(-1)
    if field.type == "any":
        return array
    raise InvalidInput(f"has the shape {list(array.shape)}, expected [-1] or [-1, 1]", column=field.name)


# --- types -----------------------------------------------------------------------------------------------------------


def _converted(field: Field, values: np.ndarray) -> np.ndarray:
    """Values of one axis in ``field``'s type. Numbers may still be gaps or infinite."""
    kind = values.dtype.kind
    if field.type in ("string", "binary", "datetime"):
        return _texts(field, values)
    dtype = NUMPY_TYPES.get(field.type) or np.dtype(field.type)
    if values.dtype == dtype:
        return values
    if kind == "O" and set(map(type, values)) <= {bool, float, int, type(None)}:  # with gaps, as they were read
        return as_array(field, values.tolist())
    if dtype.kind in NUMBERS and kind in NUMBERS:
        return _number(field, values, dtype)
    raise InvalidInput(f"takes {_called(dtype)}, not {_called(values.dtype)}", column=field.name)


def _called(dtype: np.dtype[Any]) -> str:
    return {"b": "true and false", "O": "texts"}.get(dtype.kind, f"numbers ({dtype.name})")


def _number(field: Field, values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """The same numbers as another type."""
    if dtype.kind == "f":
        inexact = _inexact_floats(values, dtype)
    elif values.dtype.kind == "f":
        gaps = np.isnan(values)
        if not field.required and gaps.any():
            # As rows of JSON with gaps: floats, which hold what is whole.
            _refuse(field, _not_whole(values, dtype) & ~gaps, values, dtype)
            return values.astype(np.float64)
        inexact = _not_whole(values, dtype)
    else:
        limits = np.iinfo(dtype)
        inexact = np.array([not limits.min <= value <= limits.max for value in _ends(values)])
        if inexact.any():
            inexact = np.array([not limits.min <= value <= limits.max for value in values.tolist()])
    _refuse(field, inexact, values, dtype)
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _ends(values: np.ndarray) -> Sequence[int]:
    return (int(values.min()), int(values.max())) if values.size else ()


def _inexact_floats(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if values.dtype.kind == "f":
        if values.dtype.itemsize <= dtype.itemsize:
            return np.zeros(0, dtype=np.bool_)
        with np.errstate(over="ignore"):
            back = values.astype(dtype).astype(values.dtype)
        return (back != values) & ~np.isnan(values)
    limit = EXACT_TO[dtype.itemsize]
    if all(-limit <= value <= limit for value in _ends(values)):
        return np.zeros(0, dtype=np.bool_)
    with np.errstate(over="ignore"):
        floats = values.astype(dtype).astype(np.float64).tolist()
    return np.array([whole != number for whole, number in zip(values.tolist(), floats, strict=True)])


def _not_whole(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Where a float is no whole number that ``dtype`` has: both limits of a power of two are floats."""
    limits = np.iinfo(dtype)
    wide = values.astype(np.float64, copy=False)
    return ~((wide == np.floor(wide)) & (wide >= float(limits.min)) & (wide < float(int(limits.max) + 1)))


def _refuse(field: Field, wrong: np.ndarray, values: np.ndarray, dtype: np.dtype[Any]) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        value = values[row].item()
        if isinstance(value, float) and value != value:
            raise InvalidInput("is a missing value, and this column takes none", row=row, column=field.name)
        what = f"is no exact {dtype.name}"
        raise InvalidInput(f"{value!r} ({values.dtype.name}) {what}", row=row, column=field.name, plain=what)


def _refuse_gaps_and_infinities(field: Field, column: np.ndarray) -> None:
    if np.isfinite(column).all():
        return
    infinite = np.isinf(column)
    if infinite.any():
        raise InvalidInput("is not a finite number", row=int(np.argmax(infinite)), column=field.name)
    if field.required:
        row = int(np.argmax(np.isnan(column)))
        raise InvalidInput("is a missing value, and this column takes none", row=row, column=field.name)


# --- texts -----------------------------------------------------------------------------------------------------------


def _texts(field: Field, values: np.ndarray) -> np.ndarray:
    """Texts, times and bytes. In a binary column a `str` is base64, as MLflow writes it, and `bytes` are themselves."""
    items = values.tolist()
    if values.dtype.kind != "O" or not set(map(type, items)) <= {str, bytes, type(None)}:
        raise InvalidInput(f"takes texts (BYTES), not {_called(values.dtype)}", column=field.name)
    if field.type == "binary":
        missing = [row for row, item in enumerate(items) if item is None]
        if missing and field.required:
            raise InvalidInput("is missing (null)", row=missing[0], column=field.name)
        return as_objects(field, items) if bytes in set(map(type, items)) else as_array(field, items)
    return as_array(field, [_plain(field, row, item) for row, item in enumerate(items)])


def _plain(field: Field, row: int, value: Any) -> Any:
    """Bytes as text, also inside lists."""
    if type(value) is list:
        return [_plain(field, row, item) for item in value]
    if type(value) is not bytes:
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidInput("is not text in UTF-8", row=row, column=field.name) from None


# --- nothing known ---------------------------------------------------------------------------------------------------


def _read_unknown(arrays: Mapping[str, np.ndarray]) -> Batch:
    """One array of two axes is rows without names; else each array is a column."""
    name, array = next(iter(arrays.items()))
    if len(arrays) == 1 and array.ndim == 2:
        arrays = {str(position): array[:, position] for position in range(array.shape[1])}
        if not arrays:
            raise InvalidInput("has no values", column=_cut(name))
    columns = tuple(_guessed(column, values) for column, values in arrays.items())
    if all(column.dtype == np.float64 and column.ndim == 1 for column in columns) and len(columns) == len(arrays):
        return Batch(tuple(arrays), block=np.stack(columns, axis=1))
    return Batch(tuple(arrays), columns)


def _guessed(name: str, array: np.ndarray) -> np.ndarray:
    numbers = array.dtype.kind in NUMBERS and array.ndim == 1
    return as_column(Field(_cut(name), "double" if numbers else "any"), array)


def _cut(name: str) -> str:
    return name[:NAMED_CHARACTERS]
