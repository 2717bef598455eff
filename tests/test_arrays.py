"""Typed arrays → batch: only what is the same number, or the same text, in the column's own type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serving.errors import InvalidInput
from serving.tensors import Batch, Field, Signature
from serving.transforms.arrays import ArrayReader, as_column, as_tensor
from serving.transforms.tabular import parse

DOUBLES = Signature("columns", (Field("a", "double"), Field("b", "double", False)))
HOUSE = Signature(
    "columns",
    (
        Field("town", "string"),
        Field("rooms", "long"),
        Field("area", "double"),
        Field("garden", "boolean"),
        Field("year", "double", False),
    ),
)
NO_SIGNATURE = Signature("unknown", (), "none")


def texts(*values: Any) -> np.ndarray:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def read(signature: Signature, **arrays: Any) -> Batch:
    return ArrayReader(signature)({name: np.asarray(array) for name, array in arrays.items()})


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("double", np.array([1, 2**53], np.int64), np.float64),
        ("double", np.array([2**63], np.uint64), np.float64),  # a power of two is a float, however large
        ("double", np.array([0.1], np.float32), np.float64),
        ("double", np.array([0.1], np.float16), np.float64),
        ("float", np.array([0.5, -(2.0**100)], np.float64), np.float32),
        ("float", np.array([2**24], np.int32), np.float32),
        ("long", np.array([5.0, -(2.0**63)], np.float64), np.int64),
        ("long", np.array([7], np.uint64), np.int64),
        ("integer", np.array([2**31 - 1], np.int64), np.int32),
        ("integer", np.array([3.0], np.float32), np.int32),
        ("boolean", np.array([True, False]), np.bool_),
    ],
)
def test_the_same_number_fits_another_type(kind: str, values: np.ndarray, expected: type) -> None:
    column = as_column(Field("x", kind), values)
    assert column.dtype == expected
    assert column.tolist() == values.tolist()


@pytest.mark.parametrize(
    ("kind", "values", "row"),
    [
        ("double", np.array([0, 2**53 + 1], np.int64), 1),
        ("double", np.array([0, 2**64 - 1], np.uint64), 1),
        ("double", np.array([0, 2**63 - 1], np.int64), 1),
        ("float", np.array([0.5, 0.1], np.float64), 1),
        ("float", np.array([0.0, 1e300], np.float64), 1),
        ("float", np.array([2**24 + 1], np.int32), 0),
        ("long", np.array([1.0, 1.5], np.float64), 1),
        ("long", np.array([1.0, 2.0**63], np.float64), 1),
        ("long", np.array([1.0, np.nan], np.float64), 1),
        ("long", np.array([np.inf], np.float64), 0),
        ("long", np.array([2**63], np.uint64), 0),
        ("integer", np.array([0, 2**31], np.int64), 1),
        ("integer", np.array([0, -(2**31) - 1], np.int64), 1),
        ("double", np.array([1.0, np.nan], np.float64), 1),
        ("double", np.array([1.0, -np.inf], np.float32), 1),
        ("string", texts("a", None), 1),
        ("string", texts(b"a", b"\xff"), 1),
        ("binary", texts("AA==", "?"), 1),
        ("binary", texts(b"a", None), 1),
        ("datetime", texts("2026-01-01", "soon"), 1),
    ],
)
def test_what_would_be_another_value_is_refused_with_its_row(kind: str, values: np.ndarray, row: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        as_column(Field("x", kind), values)
    assert (caught.value.row, caught.value.column) == (row, "x")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("boolean", np.array([1, 0], np.int64)),
        ("boolean", np.array([1.0], np.float64)),
        ("boolean", texts("true")),
        ("double", np.array([True])),
        ("long", np.array([True])),
        ("double", texts("1.5")),
        ("string", np.array([1], np.int64)),
        ("binary", np.array([1], np.uint8)),
        ("datetime", np.array([1], np.int64)),
    ],
)
def test_other_kinds_are_refused(kind: str, values: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match="takes"):
        as_column(Field("x", kind), values)


def test_texts_are_read_from_text_and_from_utf_8() -> None:
    assert as_column(Field("x", "string"), texts("ü", "ü".encode())).tolist() == ["ü", "ü"]
    assert as_column(Field("x", "string", False), texts(None, "a")).tolist() == [None, "a"]


def test_binary_columns_take_bytes_as_they_are_and_text_as_base64() -> None:
    assert as_column(Field("x", "binary"), texts(b"\x00\xff")).tolist() == [b"\x00\xff"]
    assert as_column(Field("x", "binary"), texts("AP8=")).tolist() == [b"\x00\xff"]


def test_times_are_iso_8601() -> None:
    column = as_column(Field("x", "datetime"), texts("2026-01-02T03:04:05.123456789", b"2026-01-02"))
    assert column.dtype == np.dtype("datetime64[ns]")
    assert column.tolist()[1] == np.datetime64("2026-01-02", "ns").astype(int)


def test_gaps_among_whole_numbers_travel_as_floats() -> None:
    column = as_column(Field("x", "long", False), np.array([3.0, np.nan]))
    assert column.dtype == np.float64
    with pytest.raises(InvalidInput, match=r"row 0.*no exact int64"):
        as_column(Field("x", "long", False), np.array([3.5, np.nan]))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_columns_give_the_batch_that_rows_give(shape: tuple[int, ...]) -> None:
    rows = [["Ulm", 2, 50.0, False, 1990.0], ["Jena", 3, 80.5, True, None]]
    expected, _ = parse(HOUSE, rows)
    town, rooms, area, garden, _ = zip(*rows, strict=True)
    got = read(
        HOUSE,
        year=np.array([1990.0, np.nan]).reshape(shape),
        town=texts(*town).reshape(shape),
        rooms=np.array(rooms).reshape(shape),
        area=np.array(area).reshape(shape),
        garden=np.array(garden).reshape(shape),
    )
    assert got.names == expected.names
    for mine, theirs in zip(got.columns, expected.columns, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_doubles_are_one_block_however_they_come() -> None:
    table = np.array([[1.0, 2.0], [3.0, 4.0]])
    for arrays in ({"x": table}, {"a": table[:, 0], "b": table[:, 1:]}, {"b": table[:, 1], "a": table[:, 0]}):
        block = read(DOUBLES, **arrays).block
        assert block is not None
        assert block.flags.c_contiguous
        assert block.tolist() == table.tolist()


def test_one_array_of_all_columns_is_checked_column_by_column() -> None:
    whole = Signature("columns", (Field("a", "double"), Field("n", "long")))
    batch = read(whole, x=np.array([[0.5, 2.0]]))
    assert [column.dtype for column in batch.columns] == [np.float64, np.int64]
    with pytest.raises(InvalidInput, match="row 1, column 'n'"):
        read(whole, x=np.array([[0.5, 2.0], [1.0, 2.5]]))


@pytest.mark.parametrize("values", [[[1.0, np.inf]], [[np.nan, 1.0]]])
def test_one_array_with_what_is_no_number_names_the_column(values: Any) -> None:
    wrong = "b" if values[0][1] == np.inf else "a"
    with pytest.raises(InvalidInput, match=f"row 0, column '{wrong}'"):
        read(DOUBLES, x=np.array(values))
    assert np.isnan(read(DOUBLES, x=np.array([[1.0, np.nan]])).columns[1][0])  # an optional column


def test_an_optional_column_may_be_left_out_and_no_other() -> None:
    assert np.isnan(read(DOUBLES, a=np.array([1.0])).columns[1]).all()
    with pytest.raises(InvalidInput, match="column 'a': is missing"):
        read(DOUBLES, b=np.array([1.0]))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": [1.0], "b": [1.0, 2.0]}, "has 2 rows where 'a' has 1"),
        ({"a": [1.0], "c": [1.0]}, "column 'c': is not an input"),
        ({"a": 1.0}, "no axis"),
        ({"a": np.zeros((0,))}, "no rows"),
        ({"x": np.zeros((2, 3))}, r"\[2, 3\]"),
        ({"x": np.zeros(2)}, r"\[2\]"),
        ({"a": np.zeros((2, 2)), "b": np.zeros((2, 2))}, r"expected \[-1\]"),
        ({"a": np.zeros((2, 2))}, r"expected \[-1\]"),
    ],
)
def test_shapes_that_do_not_fit(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(DOUBLES, **arrays)


def test_tensors() -> None:
    one = Signature("tensors", (Field("x", "float32", True, (2,)),))
    block = read(one, anything=np.array([[1, 2]], np.int64)).block
    assert block is not None
    assert block.dtype == np.float32
    with pytest.raises(InvalidInput, match=r"row 1, column 'x': 0.1"):
        read(one, x=np.array([[1.0, 2.0], [0.5, 0.1]]))
    with pytest.raises(InvalidInput, match="column 'x': has the shape"):
        read(one, x=np.zeros((1, 3), np.float32))
    two = Signature("tensors", (Field("ids", "int64", True, (-1,)), Field("weight", "float32")))
    batch = read(two, weight=np.ones((2, 1), np.float32), ids=np.zeros((2, 3), np.int64))
    assert [column.shape for column in batch.columns] == [(2, 3), (2,)]
    with pytest.raises(InvalidInput, match="column 'weight': is missing"):
        read(two, ids=np.zeros((2, 3), np.int64))
    with pytest.raises(InvalidInput, match="'y': is not an input"):
        read(two, y=np.zeros((2, 3), np.int64))


def test_tensors_of_texts() -> None:
    tensor = as_tensor(Field("x", "str", True, (2,)), texts("a", b"b").reshape(1, 2))
    assert tensor.dtype.kind == "U"
    assert tensor.tolist() == [["a", "b"]]
    with pytest.raises(InvalidInput, match="row 1"):
        as_tensor(Field("x", "str", True, (2,)), texts("a", "b", "c", b"\xff").reshape(2, 2))


def test_columns_of_free_form_are_plain_values() -> None:
    free = Signature("columns", (Field("x", "any"),))
    assert list(read(free, x=np.array([[1.5, 2.5], [3.5, 4.5]])[:, None]).columns[0]) == [[[1.5, 2.5]], [[3.5, 4.5]]]
    assert list(read(free, x=texts(b"a", "b")).columns[0]) == ["a", "b"]
    assert type(read(free, x=np.array([1])).columns[0][0]) is int


def test_without_a_signature_rows_go_as_they_come() -> None:
    block = read(NO_SIGNATURE, x=np.array([[1, 2], [3, 4]])).block
    assert block is not None
    assert block.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    named = read(NO_SIGNATURE, town=texts("Ulm"), area=np.array([5.0]))
    assert named.names == ("town", "area")
    assert [column.tolist() for column in named.columns] == [["Ulm"], [5.0]]
    with pytest.raises(InvalidInput, match="missing value"):
        read(NO_SIGNATURE, x=np.array([[np.nan]]))


def test_a_name_is_cut() -> None:
    with pytest.raises(InvalidInput) as caught:
        read(DOUBLES, a=np.zeros(1), **{"x" * 200: np.zeros(1)})
    assert caught.value.column == "x" * 80
