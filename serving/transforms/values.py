"""The values of one column → an array, checked against the column's type. Never a silent cast."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from serving.errors import InvalidInput
from serving.tensors import NUMPY_TYPES, Field

SHOWN_CHARACTERS = 40  # of a value at fault

# What 64 bits of nanoseconds hold, to the whole second.
FIRST_TIME, LAST_TIME = datetime(1677, 9, 21, 0, 12, 44), datetime(2262, 4, 11, 23, 47, 16)
BEYOND_MICROSECONDS = re.compile(r"[.,]\d{6}(\d+)")


def as_array(field: Field, values: Sequence[Any]) -> np.ndarray:
    """The values of ``field``, one for each row. Raises `InvalidInput` for the first that does not fit."""
    return READERS.get(field.type, as_objects)(field, values)


def as_objects(_field: Field, values: Sequence[Any]) -> np.ndarray:
    """The values as they are."""
    array = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):  # one by one: NumPy would spread values that are lists
        array[row] = value
    return array


def kind_of(value: Any) -> str:
    """What kind of JSON value this is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def shown(value: Any) -> str:
    """A value at fault, as much of it as an answer may hold."""
    text = repr(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else kind_of(value)
    text = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(text, text)  # as it was written
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _floats(field: Field, values: Sequence[Any]) -> np.ndarray:
    kinds = set(map(type, values))
    if not kinds <= {float, int} and (field.required or not kinds <= {float, int, type(None)}):
        _fail(field, values, "a number", lambda value: type(value) in (float, int))
    try:
        array = np.array(values, dtype=np.float64)
    except OverflowError:
        row = next(row for row, value in enumerate(values) if _overflows(value))
        raise InvalidInput("is too large for a number", row=row, column=field.name) from None
    _check_finite(field, array, values)
    if field.type == "double":
        return array
    dtype = _dtype(field)
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    _first(field, np.isinf(narrow), f"is beyond the range of a {8 * dtype.itemsize}-bit float", values)
    return narrow


def _dtype(field: Field) -> np.dtype[Any]:
    return NUMPY_TYPES.get(field.type) or np.dtype(field.type)


def _overflows(value: Any) -> bool:
    try:
        float(value or 0)
    except OverflowError:
        return True
    return False


def _check_finite(field: Field, array: np.ndarray, values: Sequence[Any]) -> None:
    if np.isfinite(array).all():
        return
    _first(field, np.isinf(array), "is not a finite number", values)
    if field.required:
        _first(field, np.isnan(array), "is a missing value, and this column takes none", values)


def _integers(field: Field, values: Sequence[Any]) -> np.ndarray:
    # NumPy has no missing integer: an optional column that has gaps travels as floats, as it does in pandas.
    gaps = not field.required and None in values
    kept = [value for value in values if value is not None] if gaps else values

    def whole(value: Any) -> bool:
        return type(value) is int or (type(value) is float and value.is_integer())

    if set(map(type, kept)) - {int} and not all(map(whole, kept)):
        _fail(field, values, "a whole number", whole)
    limits = np.iinfo(_dtype(field))
    if kept and not (limits.min <= min(kept) and max(kept) <= limits.max):
        row = next(row for row, v in enumerate(values) if v is not None and not limits.min <= v <= limits.max)
        raise _misfit(field, row, values[row], f"is beyond the range of {field.type}")
    _check_written(field, values)
    if gaps:
        _check_exact(field, values)
        return np.array(values, dtype=np.float64)
    return np.array([int(value) for value in kept], dtype=_dtype(field))


def _check_written(field: Field, values: Sequence[Any]) -> None:
    """Raise for the first float that may not be the number that was written: JSON readers round from 2**53 on."""
    for row, value in enumerate(values if float in set(map(type, values)) else ()):
        if type(value) is float and abs(value) >= 2**53:
            raise _misfit(field, row, value, "is too large to be exact")


def _check_exact(field: Field, values: Sequence[Any]) -> None:
    """Raise for the first whole number that a float does not hold."""
    for row, value in enumerate(values):
        if value is not None and int(float(value)) != value:
            raise _misfit(field, row, value, "cannot be held exactly beside missing values")


def _booleans(field: Field, values: Sequence[Any]) -> np.ndarray:
    if set(map(type, values)) == {bool}:
        return np.array(values, dtype=np.bool_)
    _fail(field, values, "true or false", lambda value: type(value) is bool)
    return np.array(values, dtype=object)


def _strings(field: Field, values: Sequence[Any]) -> np.ndarray:
    if set(map(type, values)) != {str}:
        _fail(field, values, "a text", lambda value: type(value) is str)
    return as_objects(field, values)


def _datetimes(field: Field, values: Sequence[Any]) -> np.ndarray:
    def read(value: Any) -> np.datetime64 | None:
        if value is None:
            return np.datetime64("NaT", "ns")
        moment = datetime.fromisoformat(value)
        naive = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
        if not FIRST_TIME <= naive <= LAST_TIME:
            raise ValueError("NumPy would wrap it around")
        return np.datetime64(naive, "ns") + _nanoseconds(value)

    return _parsed(field, values, "an ISO 8601 time", read, NUMPY_TYPES["datetime"])


def _nanoseconds(text: str) -> np.timedelta64:
    """What is written beyond microseconds, which Python's own reader drops."""
    beyond = BEYOND_MICROSECONDS.search(text)
    digits = beyond.group(1) if beyond else ""
    if digits[3:].strip("0"):
        raise ValueError("finer than nanoseconds")
    return np.timedelta64(int(digits[:3].ljust(3, "0")), "ns")


def _binaries(field: Field, values: Sequence[Any]) -> np.ndarray:
    return _parsed(
        field,
        values,
        "base64 text",
        lambda value: None if value is None else base64.b64decode(value, validate=True),
        np.dtype(object),
    )


def _parsed(
    field: Field, values: Sequence[Any], expected: str, read: Callable[[Any], Any], dtype: np.dtype[Any]
) -> np.ndarray:
    _fail(field, values, expected, lambda value: type(value) is str)
    array = np.empty(len(values), dtype=dtype)
    for row, value in enumerate(values):
        try:
            array[row] = read(value)
        except (ValueError, binascii.Error, OverflowError):
            raise _another(field, row, value, expected) from None
    return array


READERS: dict[str, Callable[[Field, Sequence[Any]], np.ndarray]] = {
    "double": _floats,
    "float": _floats,
    "float16": _floats,
    "long": _integers,
    "integer": _integers,
    **dict.fromkeys(("int8", "int16", "uint8", "uint16", "uint32", "uint64"), _integers),
    "boolean": _booleans,
    "string": _strings,
    "datetime": _datetimes,
    "binary": _binaries,
}


def _fail(field: Field, values: Sequence[Any], expected: str, fits: Callable[[Any], bool]) -> None:
    """Raise for the first value that does not fit; a gap fits where the column may have one."""
    for row, value in enumerate(values):
        if fits(value) or (value is None and not field.required):
            continue
        if value is None:
            raise InvalidInput("is missing (null)", row=row, column=field.name)
        raise _another(field, row, value, expected)


def _first(field: Field, wrong: np.ndarray, what: str, values: Sequence[Any]) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        if values[row] is None:
            raise InvalidInput(what, row=row, column=field.name)
        raise _misfit(field, row, values[row], what)


def _misfit(field: Field, row: int, value: Any, what: str) -> InvalidInput:
    return InvalidInput(f"{shown(value)} {what}", row=row, column=field.name, plain=what)


def _another(field: Field, row: int, value: Any, expected: str) -> InvalidInput:
    broken = expected == "a whole number" and type(value) is float
    plain = f"expected {expected}, not {'a fraction' if broken else kind_of(value)}"
    return InvalidInput(f"expected {expected}, not {shown(value)}", row=row, column=field.name, plain=plain)
