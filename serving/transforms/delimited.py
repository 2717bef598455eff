"""Comma-separated text with a header → `Batch`. A cell is read by its column's type, never by what it looks like.

An empty cell is a missing value; in a column that is no text, so are the words that pandas writes for one. A first
column without a name is the index that pandas writes, and is left out.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from serving.errors import InvalidInput
from serving.tensors import Batch, Signature
from serving.transforms import frames
from serving.transforms.tabular import NAMED_CHARACTERS, Reader
from serving.transforms.values import READERS

MISSING = frozenset({"", "NA", "N/A", "n/a", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None", "<NA>", "#N/A"})
WHOLE = re.compile(r"\s*[+-]?\d{1,400}\s*", re.ASCII)
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
NUMERIC = str.maketrans("", "", "0123456789.+-eE")  # leaves what is in no number
EXACT_CHARACTERS = 15  # a whole number of so many digits is a float, exactly
TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
TEXTS = {"string", "str", "datetime", "datetime64[ns]", "binary"}


def read(reader: Reader, data: bytes) -> Batch:
    """The table in ``data``. Raises `InvalidInput`; rows count from 0 below the header."""
    names, rows = _table(data)
    if names[0] == "":
        names, rows = names[1:], [row[1:] for row in rows]
    names = list(frames.column_names(names))
    _check_widths(names, rows)
    if not rows:
        raise InvalidInput("there are no rows")
    kinds = _kinds(reader.signature, names)
    if reader.signature.layout == "unknown":
        kinds = [_guessed([row[position] for row in rows]) for position in range(len(names))]
    columns = list(map(_column, kinds, zip(*rows, strict=True)))
    return frames.frame(reader, names, list(map(list, zip(*columns, strict=True))))


def _table(data: bytes) -> tuple[list[str], list[list[str]]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise InvalidInput(f"the body is not UTF-8 (byte {err.start})") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        table = [line for line in lines if line]
    except csv.Error as err:
        raise InvalidInput(f"the body is not CSV: {err} (line {lines.line_num})") from None
    if not table:
        raise InvalidInput("the body is empty; send a header line and a line for each row")
    return table[0], table[1:]


def _check_widths(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if set(map(len, rows)) - {len(names)}:
        row = next(row for row, cells in enumerate(rows) if len(cells) != len(names))
        raise InvalidInput(f"has {len(rows[row])} values, expected {len(names)}", row=row)
    if "" in names:
        raise InvalidInput("a column after the first has no name")


def _kinds(signature: Signature, names: Sequence[str]) -> list[str]:
    """The type of each column, by its name or its place; of those that the model does not have, none."""
    types = {field.name: field.type for field in signature.inputs}
    if not set(names) & types.keys() and len(types) == 1:
        return list(types.values()) * len(names)
    by_place = list(types.values()) + [""] * len(names)
    return [types.get(name, by_place[place]) for place, name in enumerate(names)]


def _guessed(cells: Sequence[str]) -> str:
    """Where no signature says it, a column of numbers is one of numbers."""
    return "double" if all(cell in MISSING or NUMBER.fullmatch(cell) for cell in cells) else "string"


def _column(kind: str, cells: Sequence[str]) -> list[Any]:
    """The cells as a reader of ``kind`` takes them; numbers written as most are, all at once."""
    if kind in ("double", "float64") and max(map(len, cells)) <= EXACT_CHARACTERS:
        with contextlib.suppress(ValueError):
            if not "".join(cells).translate(NUMERIC):
                return list(map(float, cells))
    return [_value(kind, cell) for cell in cells]


def _value(kind: str, cell: str) -> Any:
    """What a reader of ``kind`` takes; a cell that is none stays a text, which that reader refuses by row and name."""
    if kind in TEXTS:
        return cell if cell != "" else None
    if cell in MISSING:
        return None
    if kind in ("boolean", "bool"):
        return TRUTH.get(cell, cell)
    if kind not in READERS and kind not in ("float64", "float32", "int64", "int32"):
        return cell
    if WHOLE.fullmatch(cell):
        return int(cell)
    return float(cell) if NUMBER.fullmatch(cell) else cell[:NAMED_CHARACTERS]
