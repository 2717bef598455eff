"""MLflow's four ways to write rows as JSON → `Batch`, by the reader of the version that answers.

Frames name their columns once (``dataframe_split``) or in every row (``dataframe_records``); ``instances`` are rows,
``inputs`` are columns. What a frame without names means, or a signature without names takes, goes by position.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from serving.errors import InvalidInput
from serving.tensors import Batch, Field, Signature
from serving.transforms.tabular import NAMED_CHARACTERS, Reader
from serving.transforms.values import as_array, kind_of

SPLIT_KEYS = {"columns", "index", "data"}
UNNAMED = re.compile(r"(column|input)_\d+|\d+")  # what a signature calls a column or an array that has no name
FEW_ROWS = 16  # so few are read faster as rows than as columns
SCALARS = {str, int, float, bool, type(None)}


def split(reader: Reader, content: Any) -> Batch:
    """``{"columns": names, "index": ignored, "data": rows}``. Raises `InvalidInput`."""
    if not isinstance(content, dict):
        raise InvalidInput(f"'dataframe_split' must be an object with 'columns' and 'data', not {kind_of(content)}")
    if "data" not in content:
        raise InvalidInput("'dataframe_split' has no 'data'")
    if unknown := sorted(content.keys() - SPLIT_KEYS):
        raise InvalidInput(f"unknown field {unknown[0][:NAMED_CHARACTERS]!r} in 'dataframe_split'")
    rows = _rows(content["data"], "'data'")
    index = content.get("index")
    if index is not None and not (isinstance(index, list) and len(index) == len(rows)):
        raise InvalidInput(f"'index' must be a list with a label for each of the {len(rows)} rows")
    names = content.get("columns")
    if type(names) is list and type(rows[0]) is list and tuple(names) == reader.signature.names:
        texts: Sequence[str] | None = names
    else:
        texts = None if names is None else column_names(names)
    return frame(reader, texts, rows)


def records(reader: Reader, content: Any) -> Batch:
    """``[{name: value, …}, …]``. Raises `InvalidInput`."""
    rows = _rows(content, "'dataframe_records'")
    kinds = set(map(type, rows))
    if kinds == {list} and _by_position(reader.signature):
        return frame(reader, None, rows)
    if kinds != {dict}:
        row = next(row for row, item in enumerate(rows) if type(item) is not dict)
        raise InvalidInput(f"expected an object, not {kind_of(rows[row])}", row=row)
    signature = reader.signature
    if signature.layout == "tensors":
        names = tuple(rows[0])
        if any(row.keys() != rows[0].keys() for row in rows):
            row = next(row for row, item in enumerate(rows) if item.keys() != rows[0].keys())
            raise InvalidInput("has other columns than the first row", row=row)
        return frame(reader, names, [list(map(row.__getitem__, names)) for row in rows])
    return reader(rows)[0]


def instances(reader: Reader, content: Any) -> Batch:
    """Rows: lists, objects, or values where there is one column; nested lists for arrays. Raises `InvalidInput`."""
    return _listed(reader, _rows(content, "'instances'"))


def inputs(reader: Reader, content: Any) -> Batch:
    """Columns: an object of lists, of values (one row) or of nested arrays; or what ``instances`` are.

    Raises `InvalidInput`.
    """
    signature = reader.signature
    if not isinstance(content, dict):
        if _only_any(signature) or (type(content) in SCALARS and _takes_values(signature)):
            return reader([_alone(content)])[0]
        return _listed(reader, _rows(content, "'inputs'"))
    if not content:
        raise InvalidInput("'inputs' has no columns")
    if signature.layout == "columns" and any(field.type == "any" for field in signature.inputs):
        return reader(content)[0]  # a value may itself be a list, so this is one row
    if list not in set(map(type, content.values())):
        return reader(content)[0]
    rows = _common_length(content)
    if signature.layout == "columns":
        names = signature.names
        if rows <= FEW_ROWS and len(content) == len(names) and all(map(content.__contains__, names)):
            return reader(list(map(list, zip(*map(content.__getitem__, names), strict=True))))[0]
        return by_name(signature, content)
    return reader([dict(zip(content, row, strict=True)) for row in zip(*content.values(), strict=True)])[0]


FORMATS = {"dataframe_split": split, "dataframe_records": records, "instances": instances, "inputs": inputs}


def frame(reader: Reader, names: Sequence[str] | None, rows: list[Any]) -> Batch:
    """Rows under ``names``, in whatever order; by position where the frame has none. Raises `InvalidInput`."""
    signature = reader.signature
    width = 1 if names is None else len(names)
    if width == 1 and not any(type(row) is list for row in rows):
        rows = [[row] for row in rows]  # as pandas takes a single column
    _check_width(rows, names)
    if signature.layout == "tensors":
        return _arrays(reader, names, rows)
    if names is not None and tuple(names) == signature.names:
        return reader(rows)[0]
    if signature.layout == "unknown":
        return reader(rows if names is None else [dict(zip(names, row, strict=True)) for row in rows])[0]
    if _by_position(signature):
        return reader(rows)[0]
    if names is None:
        raise InvalidInput("'columns' is missing, and this model's columns have names")
    if len(names) == len(signature.names) and set(names) == set(signature.names):
        in_order = _ordered(names, signature.names)
        return reader([list(in_order(row)) for row in rows])[0]
    return by_name(signature, dict(zip(names, zip(*rows, strict=True), strict=True)))


def column_names(names: Any) -> tuple[str, ...]:
    """Names as texts; MLflow writes those of a frame without names as whole numbers. Raises `InvalidInput`."""
    if not isinstance(names, list) or not set(map(type, names)) <= {str, int}:
        raise InvalidInput("'columns' must be a list of names")
    texts = tuple(map(str, names))
    if len(set(texts)) < len(texts):
        twice = next(name for name in texts if texts.count(name) > 1)
        raise InvalidInput("is there twice", column=twice[:NAMED_CHARACTERS])
    return texts


def by_name(signature: Signature, columns: Mapping[str, Sequence[Any]]) -> Batch:
    """Columns of one length as a batch in the signature's order. Raises `InvalidInput`."""
    if unknown := sorted(columns.keys() - set(signature.names)):
        raise InvalidInput("is not a column of this model", column=unknown[0][:NAMED_CHARACTERS])
    for field in signature.inputs:
        if field.required and field.name not in columns:
            raise InvalidInput("is missing", column=field.name)
    rows = len(next(iter(columns.values())))
    nothing = [None] * rows
    arrays = tuple(as_array(field, columns.get(field.name, nothing)) for field in signature.inputs)
    if {field.type for field in signature.inputs} == {"double"}:
        return Batch(signature.names, block=np.stack(arrays, axis=1))
    return Batch(signature.names, arrays)


# --- rows ------------------------------------------------------------------------------------------------------------


def _rows(content: Any, what: str) -> list[Any]:
    if not isinstance(content, list):
        raise InvalidInput(f"{what} must be a list of rows, not {kind_of(content)}")
    if not content:
        raise InvalidInput("there are no rows")
    return content


def _listed(reader: Reader, rows: list[Any]) -> Batch:
    signature = reader.signature
    if _only_any(signature) or (set(map(type, rows)) <= SCALARS and _takes_values(signature)):
        return reader(list(map(_alone, rows)))[0]
    batch, many = reader(rows)
    if not many:
        raise InvalidInput("expected a list of rows; this is one")
    return batch


def _alone(value: Any) -> Any:
    """A row that is only a value, for a model of one column."""
    return value if isinstance(value, dict) else [value]


def _takes_values(signature: Signature) -> bool:
    """Whether a row may be written as its only value."""
    return signature.layout == "unknown" or (signature.layout == "columns" and len(signature.inputs) == 1)


def _only_any(signature: Signature) -> bool:
    return signature.layout == "columns" and [field.type for field in signature.inputs] == ["any"]


def _ordered(names: Sequence[str], wanted: Sequence[str]) -> Any:
    """What brings a row's values into the ``wanted`` order."""
    position = {name: number for number, name in enumerate(names)}
    return itemgetter(*(position[name] for name in wanted))


def _check_width(rows: list[Any], names: Sequence[str] | None) -> None:
    """Each row is a list, and all are as long as there are names, or as the first."""
    if set(map(type, rows)) != {list}:
        row = next(row for row, item in enumerate(rows) if type(item) is not list)
        raise InvalidInput(f"expected a list of values, not {kind_of(rows[row])}", row=row)
    width = len(rows[0]) if names is None else len(names)
    for row, values in enumerate(rows if set(map(len, rows)) != {width} else ()):
        if len(values) != width:
            raise InvalidInput(f"has {len(values)} values, expected {width}", row=row)


def _common_length(columns: Mapping[str, Any]) -> int:
    """How long all columns are. Raises `InvalidInput` where one is no list or of another length."""
    for name, values in columns.items():
        if type(values) is not list:
            raise InvalidInput(f"has {kind_of(values)} where others have a list", column=name[:NAMED_CHARACTERS])
    first = len(next(iter(columns.values())))
    if set(map(len, columns.values())) != {first}:
        name = next(name for name, values in columns.items() if len(values) != first)
        what = f"has {len(columns[name])} values where the first column has {first}"
        raise InvalidInput(what, column=name[:NAMED_CHARACTERS])
    if not first:
        raise InvalidInput("there are no rows")
    return first


def _by_position(signature: Signature) -> bool:
    """Whether there are no names that a frame's columns could have."""
    if signature.layout == "unknown":
        return True
    if signature.layout == "tensors" and signature.origin != "model":
        return len(signature.inputs) == 1
    return all(map(UNNAMED.fullmatch, signature.names))


# --- arrays ----------------------------------------------------------------------------------------------------------


def _arrays(reader: Reader, names: Sequence[str] | None, rows: list[list[Any]]) -> Batch:
    """A frame for a model of arrays: a column holds an array each row, maybe flat, or is itself a part of the row."""
    fields = {field.name: field for field in reader.signature.inputs}
    if names is not None and set(names) == set(fields):
        shaped = [[_shaped(fields[name], value) for name, value in zip(names, row, strict=True)] for row in rows]
        return reader([dict(zip(names, row, strict=True)) for row in shaped])[0]
    if not _by_position(reader.signature) or len(fields) != 1:
        known = set(fields)
        for name in names or ():
            if name not in known:
                raise InvalidInput("is not an input of this model", column=name[:NAMED_CHARACTERS])
        raise InvalidInput("is missing", column=next(name for name in fields if name not in set(names or ())))
    field = reader.signature.inputs[0]
    if len(rows[0]) == 1:
        return _listed(reader, [_shaped(field, row[0]) for row in rows])
    return _listed(reader, rows)


def _shaped(field: Field, value: Any) -> Any:
    """MLflow takes an array within a frame as a flat list, and a single number as it is."""
    if field.shape == (1,) and not isinstance(value, list):
        return [value]
    size = int(np.prod(field.shape)) if -1 not in field.shape else -1
    if len(field.shape) < 2 or type(value) is not list or len(value) != size or any(type(v) is list for v in value):
        return value
    level: list[Any] = value
    for length in reversed(field.shape[1:]):
        level = list(map(list, zip(*[iter(level)] * length, strict=True)))
    return level
