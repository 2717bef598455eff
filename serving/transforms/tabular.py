"""Rows of JSON values → `Batch`, checked against the signature. Never a silent cast.

Where every column is a double, all values become one block at once. Other rows are read column by column, so that the
checks are a few set operations however many rows there are; only when one fails are the values looked at singly, to
name the row and the column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import isfinite
from operator import itemgetter
from typing import Any

import numpy as np

from serving.errors import InvalidInput
from serving.tensors import NUMPY_TYPES, Batch, Field, Signature
from serving.transforms.values import READERS, as_array, kind_of

NAMED_CHARACTERS = 80  # of a column that is none of the model's
NUMBERS = {float, int}


class Reader:
    """Reads rows for one signature. What does not differ from request to request is worked out once, here."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self._names = signature.names
        self._doubles = signature.layout == "columns" and _common_type(signature) == "double"
        self._values: Callable[[dict[str, Any]], tuple[Any, ...]] = (
            itemgetter(*self._names) if len(self._names) > 1 else lambda row: (row[self._names[0]],)
        )

    def __call__(self, features: Any) -> tuple[Batch, bool]:
        """The batch in ``features`` and whether it was written as many rows.

        ``features`` is one row or a list of rows; a row is a list in the signature's order or an object with its
        names. Raises `InvalidInput`.
        """
        if not self._doubles or not features:
            return _parse(self.signature, features)
        many = type(features) is list and type(features[0]) in (list, dict)
        block = self._block(features if many else [features])
        return _parse(self.signature, features) if block is None else (Batch(self._names, block=block), many)

    def _block(self, rows: list[Any]) -> np.ndarray | None:
        """All values at once where every row has every column and every value is a finite number; else None."""
        kinds = set(map(type, rows))
        if kinds not in ({list}, {dict}) or set(map(len, rows)) != {len(self._names)}:
            return None
        try:
            lists = list(map(self._values, rows)) if kinds == {dict} else rows
            if not set(map(type, chain.from_iterable(lists))) <= NUMBERS:
                return None
            if len(lists) == 1:  # NumPy's own check takes longer than all the rest
                return np.array(lists, dtype=np.float64) if all(map(isfinite, lists[0])) else None
            shape = len(lists), len(self._names)
            block = np.fromiter(chain.from_iterable(lists), np.float64, shape[0] * shape[1]).reshape(shape)
        except (KeyError, OverflowError):
            return None
        return block if np.isfinite(block).all() else None


def parse(signature: Signature, features: Any) -> tuple[Batch, bool]:
    """What the signature's `Reader` reads in ``features``. Raises `InvalidInput`."""
    return Reader(signature)(features)


def _parse(signature: Signature, features: Any) -> tuple[Batch, bool]:
    if isinstance(features, dict):
        return _read(signature, [features]), False
    if not isinstance(features, list):
        raise InvalidInput(f"expected a list of values or of rows, not {kind_of(features)}")
    if not features:
        raise InvalidInput("there are no rows")
    many = _is_many(signature, features)
    return _read(signature, features if many else [features]), many


def from_columns(signature: Signature, columns: Mapping[str, np.ndarray]) -> Batch:
    """A batch of columns that are known to fit, such as reference rows."""
    names = signature.names or tuple(columns)
    missing = [name for name in names if name not in columns]
    if missing:
        raise InvalidInput("is missing", column=missing[0])
    if signature.layout == "columns" and _common_type(signature) == "double":
        return Batch(names, block=np.stack([columns[name].astype(np.float64) for name in names], axis=1))
    types = {field.name: _numpy_type(field) for field in signature.inputs}
    return Batch(names, tuple(_typed(columns[name], types.get(name)) for name in names))


def _typed(column: np.ndarray, dtype: np.dtype[Any] | None) -> np.ndarray:
    """``column`` as ``dtype``, but as it is where it has gaps that the type cannot hold."""
    if dtype is None or (dtype.kind in "iub" and column.dtype.kind in "fO" and _has_gaps(column)):
        return column
    return column.astype(dtype)


def _has_gaps(column: np.ndarray) -> bool:
    return any(value is None or value != value for value in column.flat)


def _is_many(signature: Signature, features: list[Any]) -> bool:
    first = features[0]
    if isinstance(first, dict):
        return True
    if signature.layout == "tensors" and len(signature.inputs) == 1:
        return _depth(features) > len(signature.inputs[0].shape)
    return isinstance(first, list)


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


def _read(signature: Signature, rows: list[Any]) -> Batch:
    if signature.layout == "tensors":
        return _read_tensors(signature, rows)
    if signature.layout == "unknown":
        return _read_unknown(rows)
    return _read_columns(signature, rows)


# --- named columns ---------------------------------------------------------------------------------------------------


def _read_columns(signature: Signature, rows: list[Any]) -> Batch:
    kinds = set(map(type, rows))
    if kinds == {dict}:
        columns = _columns_of_objects(signature, rows)
    elif kinds == {list}:
        columns = _columns_of_lists(signature, rows)
    else:
        _refuse_mixed(rows)
    arrays = tuple(
        as_array(field, [None] * len(rows) if values is None else values)
        for field, values in zip(signature.inputs, columns, strict=True)
    )
    if _common_type(signature) == "double":
        return Batch(signature.names, block=np.stack(arrays, axis=1))
    return Batch(signature.names, arrays)


def _columns_of_lists(signature: Signature, rows: list[list[Any]]) -> list[Sequence[Any] | None]:
    width = len(signature.inputs)
    lengths = set(map(len, rows))
    if lengths == {width}:
        return list(zip(*rows, strict=True))
    least = _required_width(signature)
    for number, row in enumerate(rows):
        if not least <= len(row) <= width:
            expected = f"{width}" if least == width else f"{least} to {width}"
            missing = signature.names[len(row)] if len(row) < least else None
            raise InvalidInput(f"has {len(row)} values, expected {expected}", row=number, column=missing)
    padded = [row + [None] * (width - len(row)) for row in rows]
    return list(zip(*padded, strict=True))


def _required_width(signature: Signature) -> int:
    """Optional columns at the end may be left out of a list."""
    required = [position for position, field in enumerate(signature.inputs) if field.required]
    return required[-1] + 1 if required else 1


def _columns_of_objects(signature: Signature, rows: list[dict[str, Any]]) -> list[Sequence[Any] | None]:
    known = set(signature.names)
    seen = set(chain.from_iterable(rows))
    if unknown := sorted(map(str, seen - known)):
        number = next(number for number, row in enumerate(rows) if unknown[0] in row)
        name = unknown[0][:NAMED_CHARACTERS]
        raise InvalidInput(f"is not a column of this model; it has {_listed(signature)}", row=number, column=name)
    columns: list[Sequence[Any] | None] = []
    for field in signature.inputs:
        if field.name not in seen and not field.required:
            columns.append(None)
            continue
        try:
            columns.append([row[field.name] for row in rows])
        except KeyError:
            if field.required:
                number = next(number for number, row in enumerate(rows) if field.name not in row)
                raise InvalidInput("is missing", row=number, column=field.name) from None
            columns.append([row.get(field.name) for row in rows])
    return columns


def _listed(signature: Signature) -> str:
    names = [repr(name) for name in signature.names[:12]]
    return ", ".join(names) + (f" and {len(signature.names) - 12} more" if len(signature.names) > 12 else "")


def _refuse_mixed(rows: list[Any]) -> None:
    first = type(rows[0])
    for number, row in enumerate(rows):
        if type(row) not in (list, dict):
            raise InvalidInput(f"expected a row (a list or an object), not {kind_of(row)}", row=number)
        if type(row) is not first:
            raise InvalidInput(f"is {kind_of(row)} where the row before is {kind_of(rows[0])}", row=number)


# --- tensors ---------------------------------------------------------------------------------------------------------


def _read_tensors(signature: Signature, rows: list[Any]) -> Batch:
    if len(signature.inputs) == 1 and not isinstance(rows[0], dict):
        field = signature.inputs[0]
        array = _tensor(field, rows)
        return Batch(signature.names, block=array) if array.ndim == 2 else Batch(signature.names, (array,))
    if set(map(type, rows)) != {dict}:
        raise InvalidInput(f"this model takes several arrays: write each row as an object with {_listed(signature)}")
    columns = _columns_of_objects(signature, rows)
    for field, values in zip(signature.inputs, columns, strict=True):
        if values is None:
            raise InvalidInput("is missing", row=0, column=field.name)
    arrays = tuple(_tensor(field, list(values or ())) for field, values in zip(signature.inputs, columns, strict=True))
    return Batch(signature.names, arrays)


def _tensor(field: Field, rows: list[Any]) -> np.ndarray:
    for number, row in enumerate(rows):
        _check_shape(field, row, number)
    shape = _row_shape(rows[0])
    if -1 in field.shape:
        _check_same_shape(field, rows, shape)
    leaves = rows
    for _ in field.shape:
        leaves = list(chain.from_iterable(leaves))
    kind = TENSOR_TYPES.get(field.type, field.type)
    flat = Field(field.name, kind, field.required or kind not in WITH_GAPS)
    try:
        array = as_array(flat, leaves)
    except InvalidInput as err:
        size = max(1, len(leaves) // len(rows))
        row = None if err.row is None else err.row // size
        raise InvalidInput(err.what, row=row, column=field.name, plain=err.plain) from None
    narrow = array.astype(field.type) if kind in READERS else array
    return narrow.reshape(len(rows), *shape)


WITH_GAPS = {"double", "float", "float16"}  # no other array has room for a missing value

# The column type whose checks a tensor's values must pass, where it is not called as the tensor's type is.
TENSOR_TYPES = {
    "float64": "double",
    "float32": "float",
    "int64": "long",
    "int32": "integer",
    "bool": "boolean",
    "str": "string",
    "datetime64[ns]": "datetime",
}


def _row_shape(row: Any) -> tuple[int, ...]:
    if not isinstance(row, list):
        return ()
    return (len(row), *_row_shape(row[0])) if row else (0,)


def _check_shape(field: Field, row: Any, number: int) -> None:
    """Nested lists of the field's shape, each level of one length."""
    level = [row]
    for expected in field.shape:
        if not all(isinstance(item, list) for item in level):
            raise InvalidInput(f"expected an array of shape {list(field.shape)}", row=number, column=field.name)
        lengths = set(map(len, level))
        if len(lengths) > 1 or (expected != -1 and lengths != {expected}):
            found = sorted(lengths)
            wanted = "one length" if expected == -1 else str(expected)
            raise InvalidInput(
                f"has {found[0] if len(found) == 1 else found} values, expected {wanted}", row=number, column=field.name
            )
        level = list(chain.from_iterable(level))
    if any(isinstance(item, list) for item in level):
        raise InvalidInput(f"expected an array of shape {list(field.shape)}", row=number, column=field.name)


def _check_same_shape(field: Field, rows: list[Any], shape: tuple[int, ...]) -> None:
    for number, row in enumerate(rows):
        if (found := _row_shape(row)) != shape:
            what = f"has the shape {list(found)} where the first row has {list(shape)}"
            raise InvalidInput(what, row=number, column=field.name)


# --- nothing known ---------------------------------------------------------------------------------------------------


def _read_unknown(rows: list[Any]) -> Batch:
    """What can be checked without a signature: rows of one kind, of one width or with the same names."""
    if rows[0] in ([], {}):
        raise InvalidInput("has no values", row=0)
    if isinstance(rows[0], dict):
        names = tuple(rows[0])
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or set(row) != set(names):
                raise InvalidInput("has other columns than the first row", row=number)
        return Batch(names, tuple(_guessed(name, [row[name] for row in rows]) for name in names))
    _refuse_mixed(rows)
    width = len(rows[0])
    for number, row in enumerate(rows):
        if len(row) != width:
            raise InvalidInput(f"has {len(row)} values where the first row has {width}", row=number)
    names = tuple(str(position) for position in range(width))
    columns = tuple(_guessed(name, values) for name, values in zip(names, zip(*rows, strict=True), strict=True))
    if all(column.dtype == np.float64 for column in columns):
        return Batch(names, block=np.stack(columns, axis=1))
    return Batch(names, columns)


def _guessed(name: str, values: Sequence[Any]) -> np.ndarray:
    return as_array(Field(name, "double" if set(map(type, values)) <= {float, int} else "any"), values)


# --- shared ----------------------------------------------------------------------------------------------------------


def _common_type(signature: Signature) -> str | None:
    types = {field.type for field in signature.inputs}
    return types.pop() if len(types) == 1 else None


def _numpy_type(field: Field) -> np.dtype[Any] | None:
    if field.shape:
        return np.dtype(field.type)
    return NUMPY_TYPES.get(field.type)
