"""MLflow's ways to write rows: each becomes the same batch, or an error that names the row and the column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serving.errors import InvalidInput
from serving.tensors import Batch, Field, Signature
from serving.transforms.frames import FEW_ROWS, FORMATS
from serving.transforms.tabular import Reader

DOUBLES = Signature("columns", (Field("a", "double"), Field("b", "double")))
MIXED = Signature("columns", (Field("town", "string"), Field("rooms", "integer"), Field("year", "double", False)))
ONE = Signature("columns", (Field("text", "string"),))
UNNAMED = Signature("columns", (Field("column_0", "double"), Field("column_1", "double")))
ARRAY = Signature("tensors", (Field("input_0", "float32", shape=(2,)),))
IMAGE = Signature("tensors", (Field("image", "int64", shape=(2, 3)),))
PAIR = Signature("tensors", (Field("ids", "int64", shape=(2,)), Field("weight", "float64", shape=(1,))))
ANY = Signature("columns", (Field("messages", "any"),))
NOTHING = Signature("unknown", (), "none")
GUESSED = Signature("tensors", (Field("features", "float64", shape=(2,)),), "inferred")


def read(signature: Signature, form: str, content: Any) -> Batch:
    return FORMATS[form](Reader(signature), content)


def rows_of(batch: Batch) -> list[list[Any]]:
    return [list(row) for row in zip(*(column.tolist() for column in batch.columns), strict=True)]


SPLIT, RECORDS = "dataframe_split", "dataframe_records"
TOWNS = [["Ulm", 2, 1990.0], ["Jena", 3, None]]
READ: dict[str, tuple[Signature, str, Any, list[list[Any]]]] = {
    "split": (DOUBLES, SPLIT, {"columns": ["a", "b"], "data": [[1, 2], [3, 4]]}, [[1.0, 2.0], [3.0, 4.0]]),
    "split in another order": (DOUBLES, SPLIT, {"columns": ["b", "a"], "data": [[2, 1], [4, 3]]}, [[1, 2], [3, 4]]),
    "split with gaps": (MIXED, SPLIT, {"columns": ["rooms", "town"], "data": [[2, "Ulm"]]}, [["Ulm", 2, np.nan]]),
    "split of one column": (ONE, SPLIT, {"columns": ["text"], "data": ["x", "y"]}, [["x"], ["y"]]),
    "split without names": (UNNAMED, SPLIT, {"data": [[1, 2]]}, [[1.0, 2.0]]),
    "split of numbered columns": (UNNAMED, SPLIT, {"columns": [0, 1], "data": [[1, 2]]}, [[1.0, 2.0]]),
    "split without signature": (NOTHING, SPLIT, {"columns": ["x"], "data": [[1], [2]]}, [[1.0], [2.0]]),
    "records": (MIXED, RECORDS, [{"town": "Ulm", "rooms": 2}], [["Ulm", 2, np.nan]]),
    "records as lists": (UNNAMED, RECORDS, [[1, 2]], [[1.0, 2.0]]),
    "instances": (DOUBLES, "instances", [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
    "instances of objects": (DOUBLES, "instances", [{"b": 2, "a": 1}], [[1, 2]]),
    "instances of values": (ONE, "instances", ["x", "y"], [["x"], ["y"]]),
    "inputs": (DOUBLES, "inputs", {"b": [2, 4], "a": [1, 3]}, [[1, 2], [3, 4]]),
    "inputs of many rows": (DOUBLES, "inputs", {"b": [2] * 99, "a": [1] * 99}, [[1, 2]] * 99),
    "inputs with gaps": (MIXED, "inputs", {"rooms": [2], "town": ["Ulm"]}, [["Ulm", 2, np.nan]]),
    "inputs of one row": (MIXED, "inputs", {"rooms": 2, "town": "Ulm", "year": None}, [["Ulm", 2, np.nan]]),
    "inputs of values": (ONE, "inputs", ["x", "y"], [["x"], ["y"]]),
    "inputs of one value": (ONE, "inputs", "x", [["x"]]),
    "inputs without signature": (NOTHING, "inputs", [1, 2, 3], [[1.0], [2.0], [3.0]]),
    "columns without signature": (NOTHING, "inputs", {"x": [1, 2], "y": ["p", "q"]}, [[1.0, "p"], [2.0, "q"]]),
    "lists in a row": (ANY, "inputs", {"messages": [{"role": "user"}]}, [[[{"role": "user"}]]]),
    "an array": (ARRAY, "inputs", [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
    "an array as a frame": (ARRAY, SPLIT, {"columns": ["x", "y"], "data": [[1, 2]]}, [[1, 2]]),
    "an array in one column": (ARRAY, SPLIT, {"columns": ["x"], "data": [[[1, 2]], [[3, 4]]]}, [[1, 2], [3, 4]]),
    "a guessed array": (GUESSED, SPLIT, {"columns": ["x", "y"], "data": [[1, 2]]}, [[1, 2]]),
    "records for an array": (ARRAY, RECORDS, [{"x": 1, "y": 2}], [[1, 2]]),
    "a flat image": (IMAGE, RECORDS, [{"image": [1, 2, 3, 4, 5, 6]}], [[[[1, 2, 3], [4, 5, 6]]]]),
    "an image": (IMAGE, "instances", [[[1, 2, 3], [4, 5, 6]]], [[[[1, 2, 3], [4, 5, 6]]]]),
    "a named image": (IMAGE, "inputs", {"image": [[[1, 2, 3], [4, 5, 6]]]}, [[[[1, 2, 3], [4, 5, 6]]]]),
    "two arrays": (PAIR, "inputs", {"ids": [[1, 2], [3, 4]], "weight": [[5], [6]]}, [[[1, 2], [5]], [[3, 4], [6]]]),
    "two arrays as a frame": (PAIR, SPLIT, {"columns": ["weight", "ids"], "data": [[5, [1, 2]]]}, [[[1, 2], [5]]]),
}


@pytest.mark.parametrize("name", READ)
def test_read(name: str) -> None:
    signature, form, content, expected = READ[name]
    batch = read(signature, form, content)
    assert batch.rows == len(expected)
    np.testing.assert_equal(rows_of(batch), expected)


def test_few_and_many_rows_are_read_alike() -> None:
    for rows in (1, FEW_ROWS, FEW_ROWS + 1):
        batch = read(DOUBLES, "inputs", {"a": list(range(rows)), "b": [0.5] * rows})
        assert batch.block is not None
        assert batch.block.tolist() == [[float(row), 0.5] for row in range(rows)]


MANY = FEW_ROWS + 1
REFUSED: dict[str, tuple[Signature, str, Any, str]] = {
    "columns twice": (DOUBLES, SPLIT, {"columns": ["a", "a"], "data": [[1, 2]]}, "column 'a': is there twice"),
    "no columns": (DOUBLES, SPLIT, {"data": [[1, 2]]}, "'columns' is missing"),
    "an unknown column": (DOUBLES, SPLIT, {"columns": ["a", "c"], "data": [[1, 2]]}, "column 'c': is not a column"),
    "a missing column": (DOUBLES, SPLIT, {"columns": ["a"], "data": [[1]]}, "column 'b': is missing"),
    "ragged": (DOUBLES, SPLIT, {"columns": ["b", "a"], "data": [[1, 2], [1]]}, "row 1: has 1 values, expected 2"),
    "ragged without names": (UNNAMED, SPLIT, {"data": [[1, 2], [1]]}, "row 1: has 1 values, expected 2"),
    "a text for a number": (MIXED, SPLIT, {"columns": ["rooms", "town"], "data": [["2", "U"]]}, "column 'rooms': exp"),
    "a text among many": (DOUBLES, "inputs", {"a": [1] * MANY, "b": [1, "x"] * (MANY // 2) + [1]}, "row 1, column 'b'"),
    "an integer too large": (MIXED, "inputs", {"rooms": [2**31], "town": ["U"]}, "row 0, column 'rooms'"),
    "no row": (DOUBLES, "inputs", {"a": [], "b": []}, "there are no rows"),
    "nothing": (DOUBLES, "inputs", {}, "'inputs' has no columns"),
    "uneven": (DOUBLES, "inputs", {"a": [1, 2], "b": [1]}, "column 'b': has 1 values where the first column has 2"),
    "a value among lists": (DOUBLES, "inputs", {"a": [1, 2], "b": 1}, "column 'b': has a number where others"),
    "a value for two columns": (DOUBLES, "inputs", 5, "'inputs' must be a list of rows, not a number"),
    "an object for rows": (DOUBLES, "instances", {"a": 1}, "'instances' must be a list of rows, not an object"),
    "one row": (ARRAY, "instances", [1, 2], "expected a list of rows; this is one"),
    "an array too deep": (ARRAY, "instances", [[[1, 2]]], "row 0, column 'input_0'"),
    "an array of another width": (ARRAY, SPLIT, {"columns": ["x", "y", "z"], "data": [[1, 2, 3]]}, "row 0"),
    "a fraction in an array": (IMAGE, "instances", [[[1, 2, 3], [4, 5, 6.5]]], "row 0, column 'image'"),
    "an array that is missing": (PAIR, SPLIT, {"columns": ["ids"], "data": [[[1, 2]]]}, "column 'weight': is missing"),
    "an array that is unknown": (PAIR, RECORDS, [{"ids": [1, 2], "x": 1}], "column 'x': is not an input"),
    "records of other columns": (ARRAY, RECORDS, [{"x": 1, "y": 2}, {"x": 1}], "row 1: has other columns"),
    "a record that is a number": (DOUBLES, RECORDS, [{"a": 1, "b": 2}, 5], "row 1: expected an object, not a number"),
    "an index of another length": (DOUBLES, SPLIT, {"columns": ["a", "b"], "data": [[1, 2]], "index": []}, "'index'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    signature, form, content, message = REFUSED[name]
    with pytest.raises(InvalidInput) as caught:
        read(signature, form, content)
    assert message in str(caught.value)


def test_a_name_is_cut() -> None:
    with pytest.raises(InvalidInput) as caught:
        read(DOUBLES, "inputs", {"x" * 500: [1]})
    assert len(str(caught.value)) < 200
