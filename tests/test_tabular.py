"""Rows of JSON values → Batch: every type, every wrong value by row and column, and never a silent cast."""

from __future__ import annotations

import base64
import json
import math
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from serving.errors import InvalidInput
from serving.tensors import Batch, Field, Signature
from serving.transforms import tabular

INF, NAN = float("inf"), float("nan")


def columns(*fields: Field) -> Signature:
    return Signature("columns", fields)


def one_column(kind: str, *, required: bool = True) -> Signature:
    return columns(Field("x", kind, required))


def tensor(kind: str, *shape: int, required: bool = True) -> Signature:
    return Signature("tensors", (Field("x", kind, required, shape),))


UNKNOWN = Signature("unknown", (), "none")

# Two numbers, a text that may be left out at the end.
MIXED = columns(Field("age", "long"), Field("income", "double"), Field("note", "string", required=False))


def parsed(signature: Signature, features: Any) -> Batch:
    batch, _ = tabular.parse(signature, features)
    return batch


def refusal(signature: Signature, features: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        tabular.parse(signature, features)
    return caught.value


def parsed_or_refused(signature: Signature, features: Any) -> Batch | InvalidInput:
    try:
        return parsed(signature, features)
    except InvalidInput as err:
        return err


# --- one row or many -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "many"),
    [
        ([3, 1.5, "a"], False),
        ([[3, 1.5, "a"]], True),
        ({"age": 3, "income": 1.5, "note": "a"}, False),
        ([{"note": "a", "income": 1.5, "age": 3}], True),
    ],
)
def test_a_row_is_a_list_or_an_object(features: Any, many: bool) -> None:
    batch, written_as_many = tabular.parse(MIXED, features)
    assert written_as_many is many
    assert batch.names == ("age", "income", "note")
    assert [column.tolist() for column in batch.columns] == [[3], [1.5], ["a"]]
    assert [column.dtype for column in batch.columns] == [np.int64, np.float64, object]


@pytest.mark.parametrize("signature", [MIXED, tensor("float64", 2), UNKNOWN], ids=["columns", "tensors", "unknown"])
@pytest.mark.parametrize("features", [None, 5, 1.5, "text", True])
def test_what_is_no_list_and_no_object_is_refused(signature: Signature, features: Any) -> None:
    assert str(refusal(signature, features)).startswith("expected a list of values or of rows, not ")


@pytest.mark.parametrize("signature", [MIXED, tensor("float64", 2), UNKNOWN], ids=["columns", "tensors", "unknown"])
def test_no_rows_are_refused(signature: Signature) -> None:
    assert str(refusal(signature, [])) == "there are no rows"


@pytest.mark.parametrize(
    ("rows", "row", "message"),
    [
        ([[1, 2.0], {"age": 1, "income": 2.0}], 1, "is an object where the row before is a list"),
        ([{"age": 1, "income": 2.0}, [1, 2.0]], 1, "is a list where the row before is an object"),
        ([[1, 2.0], [2, 3.0], None], 2, "expected a row (a list or an object), not null"),
        ([[1, 2.0], 7], 1, "expected a row (a list or an object), not a number"),
        ([{"age": 1, "income": 2.0}, "b"], 1, "expected a row (a list or an object), not a text"),
        ([{"age": 1, "income": 2.0}, True], 1, "expected a row (a list or an object), not true or false"),
    ],
)
def test_rows_are_of_one_kind(rows: list[Any], row: int, message: str) -> None:
    err = refusal(MIXED, rows)
    assert (err.row, err.what) == (row, message)


# --- the right columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "row", "column", "message"),
    [
        ([[1, 2.0, "a", 4]], 0, None, "has 4 values, expected 2 to 3"),
        ([[1, 2.0], [1]], 1, "income", "has 1 values, expected 2 to 3"),
        ([[1, 2.0], []], 1, "age", "has 0 values, expected 2 to 3"),
        ([[]], 0, "age", "has 0 values, expected 2 to 3"),
    ],
)
def test_a_list_has_as_many_values_as_columns(rows: list[Any], row: int, column: str | None, message: str) -> None:
    err = refusal(MIXED, rows)
    assert (err.row, err.column, err.what) == (row, column, message)


def test_a_list_of_another_length_is_refused_where_all_columns_are_required() -> None:
    signature = columns(*(Field(name, "double") for name in "abcd"))
    for width in (1, 2, 3, 5, 50):
        err = refusal(signature, [[0.0] * 4, [0.0] * width])
        assert (err.row, err.what) == (1, f"has {width} values, expected 4")


def test_optional_columns_at_the_end_may_be_left_out_of_a_list() -> None:
    batch = parsed(MIXED, [[1, 2.0], [3, 4.0, "b"]])
    assert batch.column("note").tolist() == [None, "b"]


def test_an_optional_column_in_the_middle_may_not() -> None:
    signature = columns(Field("a", "double"), Field("b", "string", required=False), Field("c", "double"))
    assert refusal(signature, [[1.0, "x"]]).column == "c"
    assert parsed(signature, [[1.0, None, 2.0]]).column("b").tolist() == [None]


@pytest.mark.parametrize("many", [True, False])
def test_a_missing_column_is_named(many: bool) -> None:
    row = {"age": 3}
    err = refusal(MIXED, [{"age": 1, "income": 2.0}, row] if many else row)
    assert (err.row, err.column, err.what) == (int(many), "income", "is missing")


def test_an_unknown_column_is_named_with_those_that_there_are() -> None:
    err = refusal(MIXED, [{"age": 1, "income": 2.0}, {"age": 1, "income": 2.0, "Note": "a"}])
    assert (err.row, err.column) == (1, "Note")
    assert err.what == "is not a column of this model; it has 'age', 'income', 'note'"


def test_the_list_of_columns_stays_short() -> None:
    err = refusal(columns(*(Field(f"c{number}", "double") for number in range(400))), {"y": 1})
    assert err.what.endswith("'c11' and 388 more")


def test_an_unknown_columns_name_is_not_echoed_without_end() -> None:
    err = refusal(MIXED, {"age": 1, "income": 2.0, "y" * 100_000: 1})
    assert len(str(err)) < 300


@pytest.mark.parametrize("row", [{"age": 1, "income": 2.0}, {"age": 1, "income": 2.0, "note": None}])
def test_an_optional_column_may_be_left_out_or_null(row: dict[str, Any]) -> None:
    assert parsed(MIXED, row).column("note").tolist() == [None]
    assert parsed(MIXED, [{"age": 5, "income": 6.0, "note": "b"}, row]).column("note").tolist() == ["b", None]


def test_names_may_be_anything() -> None:
    names = ("sepal length (cm)", "größe", "a: b", "", "0", "x" * 300)
    signature = columns(*(Field(name, "string") for name in names))
    assert parsed(signature, dict.fromkeys(names, "v")).names == names
    err = refusal(signature, {**dict.fromkeys(names, "v"), "a: b": 7})
    assert (err.column, err.what) == ("a: b", "expected a text, not 7")


def test_numbers_of_one_type_come_as_one_block() -> None:
    signature = columns(Field("a", "double"), Field("b", "double"))
    expected = [[1.0, 2.0], [3.0, 4.0]]
    for rows in ([[1, 2], [3.0, 4]], [{"b": 2, "a": 1}, {"a": 3, "b": 4.0}]):
        block = parsed(signature, rows).block
        assert block is not None
        assert (block.dtype, block.tolist()) == (np.float64, expected)


# --- values, type by type --------------------------------------------------------------------------------------------

TIME = np.datetime64("2026-03-01T12:30:00", "ns")

# For each type: values that fit as (written, what the model gets), and the type of the array.
FITS: dict[str, tuple[np.dtype[Any], list[tuple[Any, Any]]]] = {
    "double": (np.dtype(np.float64), [(1, 1.0), (-2.5, -2.5), (2**60, float(2**60)), (1.7e308, 1.7e308), (-0.0, -0.0)]),
    "float": (np.dtype(np.float32), [(1, 1.0), (0.5, 0.5), (3.4e38, float(np.float32(3.4e38)))]),
    "long": (
        np.dtype(np.int64),
        [(1, 1), (-5.0, -5), (2**63 - 1, 2**63 - 1), (-(2**63), -(2**63)), (2**53 + 1, 2**53 + 1)],
    ),
    "integer": (np.dtype(np.int32), [(1, 1), (3.0, 3), (2**31 - 1, 2**31 - 1), (-(2**31), -(2**31))]),
    "boolean": (np.dtype(np.bool_), [(True, True), (False, False)]),
    "string": (np.dtype(object), [("a", "a"), ("", ""), ("ä€😀", "ä€😀"), ("1.5", "1.5"), ("null", "null")]),
    "binary": (np.dtype(object), [("AAH/", b"\x00\x01\xff"), ("", b"")]),
    "datetime": (
        np.dtype("datetime64[ns]"),
        [
            ("2026-03-01T12:30:00", TIME),
            ("2026-03-01 12:30", TIME),
            ("2026-03-01T12:30:00Z", TIME),
            ("2026-03-01T14:30:00+02:00", TIME),
            ("2026-03-01", np.datetime64("2026-03-01", "ns")),
            ("2026-03-01T12:30:00.000001", TIME + np.timedelta64(1, "us")),
            ("2026-03-01T12:30:00.123456789Z", TIME + np.timedelta64(123_456_789, "ns")),
            ("2026-03-01T12:30:00.0000001", TIME + np.timedelta64(100, "ns")),
            ("2026-03-01T12:30:00.000000000000", TIME),
            ("1678-01-01", np.datetime64("1678-01-01", "ns")),
            ("2262-01-01", np.datetime64("2262-01-01", "ns")),
        ],
    ),
    "any": (
        np.dtype(object),
        [(1, 1), ("a", "a"), ([1, [2]], [1, [2]]), ({"a": 1}, {"a": 1}), (True, True), (None, None)],
    ),
}

NUMBER, WHOLE = "expected a number, not ", "expected a whole number, not "

# For each type: values that do not fit, and how the message begins.
MISFITS: dict[str, list[tuple[Any, str]]] = {
    "double": [
        ("1.5", f"{NUMBER}'1.5'"),
        ("", f"{NUMBER}''"),
        (True, f"{NUMBER}true or false"),
        (None, "is missing (null)"),
        ([1.0], f"{NUMBER}a list"),
        ({"a": 1}, f"{NUMBER}an object"),
        (NAN, "NaN is a missing value"),
        (INF, "Infinity is not a finite number"),
        (-INF, "-Infinity is not a finite number"),
        (10**400, "is too large for a number"),
        (-(10**400), "is too large for a number"),
    ],
    "float": [
        ("x", f"{NUMBER}'x'"),
        (False, f"{NUMBER}true or false"),
        (None, "is missing (null)"),
        (NAN, "NaN is a missing value"),
        (INF, "Infinity is not a finite number"),
        (3.5e38, "3.5e+38 is beyond the range of a 32-bit float"),
        (-1e300, "-1e+300 is beyond the range of a 32-bit float"),
        (10**400, "is too large for a number"),
    ],
    "long": [
        (1.5, f"{WHOLE}1.5"),
        ("1", f"{WHOLE}'1'"),
        (True, f"{WHOLE}true or false"),
        (None, "is missing (null)"),
        ([], f"{WHOLE}a list"),
        (NAN, f"{WHOLE}NaN"),
        (INF, f"{WHOLE}Infinity"),
        (2**63, "9223372036854775808 is beyond the range of long"),
        (-(2**63) - 1, "-9223372036854775809 is beyond the range of long"),
        (1e19, "1e+19 is beyond the range of long"),
        (10**400, "1" + "0" * 39 + "… is beyond the range of long"),
    ],
    "integer": [
        (0.1, f"{WHOLE}0.1"),
        (True, f"{WHOLE}true or false"),
        (None, "is missing (null)"),
        (2**31, "2147483648 is beyond the range of integer"),
        (-(2**31) - 1, "-2147483649 is beyond the range of integer"),
        (1e300, "1e+300 is beyond the range of integer"),
    ],
    "boolean": [
        (1, "expected true or false, not 1"),
        (0.0, "expected true or false, not 0.0"),
        ("true", "expected true or false, not 'true'"),
        (None, "is missing (null)"),
        ([True], "expected true or false, not a list"),
    ],
    "string": [
        (1, "expected a text, not 1"),
        (1.5, "expected a text, not 1.5"),
        (True, "expected a text, not true or false"),
        (None, "is missing (null)"),
        (["a"], "expected a text, not a list"),
        ({"a": "b"}, "expected a text, not an object"),
    ],
    "binary": [
        ("AAH", "expected base64 text, not 'AAH'"),
        ("AA*/", "expected base64 text, not 'AA*/'"),
        ("ÄÄÄÄ", "expected base64 text, not 'ÄÄÄÄ'"),
        (1, "expected base64 text, not 1"),
        (None, "is missing (null)"),
    ],
    "datetime": [
        ("yesterday", "expected an ISO 8601 time, not 'yesterday'"),
        ("2026-02-30", "expected an ISO 8601 time, not '2026-02-30'"),
        ("", "expected an ISO 8601 time, not ''"),
        (1767225600, "expected an ISO 8601 time, not 1767225600"),
        (None, "is missing (null)"),
        ("3000-01-01", "expected an ISO 8601 time, not '3000-01-01'"),
        ("1500-01-01", "expected an ISO 8601 time, not '1500-01-01'"),
        ("0001-01-01T00:00:00+14:00", "expected an ISO 8601 time, not '0001-01-01T00:00:00+14:00'"),
        ("2026-01-01T00:00:00.1234567891", "expected an ISO 8601 time, not '2026-01-01T00:00:00.1234567891'"),
    ],
}

FITTING = [(kind, *pair) for kind, (_, pairs) in FITS.items() for pair in pairs]
MISFITTING = [(kind, *pair) for kind, pairs in MISFITS.items() for pair in pairs]


def short(value: Any) -> str:
    return repr(value)[:30]


@pytest.mark.parametrize("as_object", [True, False], ids=["object", "list"])
@pytest.mark.parametrize(("kind", "written", "expected"), FITTING, ids=short)
def test_a_value_that_fits_reaches_the_model_unchanged(kind: str, written: Any, expected: Any, as_object: bool) -> None:
    signature = one_column(kind)
    batch = parsed(signature, [{"x": written}] if as_object else [[written]])
    assert batch.column("x").dtype == FITS[kind][0]
    assert batch.column("x")[0] == expected or batch.column("x").tolist() == [expected]


@pytest.mark.parametrize("as_object", [True, False], ids=["object", "list"])
@pytest.mark.parametrize(("kind", "wrong", "message"), MISFITTING, ids=short)
def test_a_value_that_does_not_fit_is_named_by_row_and_column(
    kind: str, wrong: Any, message: str, as_object: bool
) -> None:
    """Among good rows and good columns, on either side."""
    signature = columns(Field("before", "double"), Field("x y", kind), Field("after", "string"))
    good = FITS[kind][1][0][0]
    values = [good] * 50
    values[37] = wrong
    rows: list[Any] = [[1.5, value, "z"] for value in values]
    if as_object:
        rows = [dict(zip(signature.names, row, strict=True)) for row in rows]
    err = refusal(signature, rows)
    assert (err.row, err.column) == (37, "x y")
    assert err.what.startswith(message)


@pytest.mark.parametrize("kind", ["double", "float"])
def test_in_a_block_of_numbers_the_wrong_one_is_named_too(kind: str) -> None:
    signature = columns(Field("a", kind), Field("b", kind), Field("c", kind))
    for wrong in (NAN, INF, "1", None, True, 10**400, [1.0]):
        rows: list[list[Any]] = [[1.0, 2.0, 3.0] for _ in range(5)]
        rows[3][1] = wrong
        err = refusal(signature, rows)
        assert (err.row, err.column) == (3, "b")


def test_the_first_wrong_row_of_a_column_is_named() -> None:
    err = refusal(one_column("long"), [[1], [2.5], ["x"], [2**70]])
    assert (err.row, err.what) == (1, "expected a whole number, not 2.5")


def test_the_number_that_is_too_large_is_named_not_one_that_just_fits() -> None:
    err = refusal(one_column("double"), [[int(1.7e308)], [1.5], [10**309]])
    assert err.row == 2


def test_a_long_value_is_not_echoed_without_end() -> None:
    assert len(str(refusal(one_column("double"), [["x" * 100_000]]))) < 120


# --- missing values --------------------------------------------------------------------------------------------------

KINDS = [kind for kind in FITS if kind != "any"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gaps", ["some", "all", "left out"])
def test_an_optional_column_may_have_gaps(kind: str, gaps: str) -> None:
    written, expected = FITS[kind][1][0]
    signature = columns(Field("id", "string"), Field("x", kind, required=False))
    middle = {"some": {"x": written}, "all": {"x": None}, "left out": {}}[gaps]
    batch = parsed(
        signature, [{"id": "a"}, {"id": "b", **middle}, {"id": "c", "x": None} if gaps != "left out" else {"id": "c"}]
    )
    values = batch.column("x")
    missing = [value is None or value != value for value in values]
    assert missing == [True, gaps != "some", True]
    if gaps == "some":
        assert values[1] == expected


@pytest.mark.parametrize(("kind", "wrong", "message"), [case for case in MISFITTING if case[1] is not None], ids=short)
def test_an_optional_column_takes_no_other_wrong_value(kind: str, wrong: Any, message: str) -> None:
    signature = one_column(kind, required=False)
    if kind in ("double", "float") and wrong != wrong:
        assert np.isnan(parsed(signature, [[None], [wrong]]).column("x")).all()
        return
    err = refusal(signature, [[None], [FITS[kind][1][0][0]], [wrong]])
    assert (err.row, err.column) == (2, "x")
    assert err.what.startswith(message)


def test_whole_numbers_with_gaps_travel_as_floats_when_those_hold_them() -> None:
    batch = parsed(one_column("long", required=False), [[2**53], [None], [-3]])
    assert batch.column("x").dtype == np.float64
    assert batch.column("x")[[0, 2]].tolist() == [2**53, -3]


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**63 - 1])
def test_a_whole_number_that_a_float_does_not_hold_has_no_place_beside_a_gap(value: int) -> None:
    signature = one_column("long", required=False)
    assert parsed(signature, [[value]]).column("x").tolist() == [value]
    err = refusal(signature, [[1], [None], [value]])
    assert (err.row, err.column, err.what) == (2, "x", f"{value} cannot be held exactly beside missing values")


# --- never a silent cast ---------------------------------------------------------------------------------------------


def random_value(chance: random.Random) -> Any:
    """Any JSON value, with a liking for the edges of number types."""
    edges = [2**k + d for k in (7, 8, 15, 16, 24, 31, 32, 53, 63, 64) for d in (-1, 0, 1)]
    makers: list[Callable[[], Any]] = [
        lambda: chance.choice([None, True, False, "", "1", "nan", [], {}, [1], {"x": 1}]),
        lambda: chance.choice(edges) * chance.choice([1, -1]),
        lambda: chance.randint(-3, 200),
        lambda: chance.random() < 0.5,
        lambda: chance.uniform(-10, 10),
        lambda: float(chance.choice(edges)) * chance.choice([1, -1]),
        lambda: chance.choice([1e38, 3.5e38, 1e308, 65504.0, 65520.0, 5e-324, -0.0, NAN, INF, -INF]),
        lambda: (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=chance.randint(-200_000, 200_000))).isoformat(),
        lambda: base64.b64encode(chance.randbytes(5)).decode(),
    ]
    return chance.choice(makers)()


def is_kept(kind: str, written: Any, got: Any) -> bool:
    """Whether the model got what was written, and not something else made of it."""
    if written is None:
        return got is None or bool(got != got)
    if kind in ("double", "float", "float64", "float32", "float16"):
        rounded = np.dtype({"double": "float64", "float": "float32"}.get(kind, kind)).type(written)
        finite = type(written) in (int, float) and not math.isinf(written) and not np.isinf(rounded)
        return finite and (got == rounded or bool(got != got and rounded != rounded))
    if kind == "datetime":
        moment = datetime.fromisoformat(written).astimezone(UTC)
        return str(got)[:19] == moment.isoformat()[:19]
    if kind == "binary":
        return base64.b64encode(got).decode() == written
    if kind in ("boolean", "bool"):
        return type(written) is bool and got == written
    if kind in ("string", "str"):
        return type(written) is str and got == written
    return type(written) in (int, float) and int(got) == written and got == written


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_accepted_is_what_was_written(kind: str, required: bool) -> None:
    chance = random.Random(f"{kind} {required}")
    signature = one_column(kind, required=required)
    accepted = 0
    for _ in range(1500):
        values = [random_value(chance) for _ in range(chance.randint(1, 2))]
        batch = parsed_or_refused(signature, [[value] for value in values])
        if isinstance(batch, InvalidInput):
            assert batch.column == "x"
            assert batch.row in range(len(values))
            continue
        accepted += 1
        for written, got in zip(values, batch.column("x"), strict=True):
            assert written is not None or not required
            assert is_kept(kind, written, got), (written, got)
    assert accepted > 20


TENSOR_KINDS = (
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
)


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("kind", [*TENSOR_KINDS, "bool", "str"])
def test_what_a_tensor_accepts_is_what_was_written(kind: str, required: bool) -> None:
    chance = random.Random(f"{kind} {required}")
    signature = tensor(kind, 2, required=required)
    accepted = 0
    for _ in range(1500):
        values = [random_value(chance) for _ in range(2)]
        batch = parsed_or_refused(signature, [values])
        if isinstance(batch, InvalidInput):
            assert (batch.row, batch.column) == (0, "x")
            continue
        accepted += 1
        array = batch.columns[0] if batch.block is None else batch.block[0]
        assert array.dtype.kind == np.dtype(kind).kind
        for written, got in zip(values, array.reshape(-1), strict=True):
            assert written is not None or (not required and kind.startswith("float"))
            assert is_kept(kind, written, got), (written, got)
    assert accepted > 5


@pytest.mark.parametrize(
    ("signature", "good"),
    [
        (MIXED, [[1, 2.0, "a"], [3, 4.0, None]]),
        (MIXED, [{"age": 1, "income": 2.0}, {"age": 3, "income": 4.0, "note": "a"}]),
        (one_column("any"), {"x": [1, {"y": 2}]}),
        (tensor("float32", 2), [[1, 2], [3, 4]]),
        (tensor("float32", -1, 2), [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]),
        (UNKNOWN, [[1, "a"], [2, "b"]]),
        (UNKNOWN, [{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]),
    ],
)
def test_whatever_comes_is_a_batch_or_a_named_error(signature: Signature, good: Any) -> None:
    """However odd a payload is: a good one in which any part is another value, or is not there, or is there twice."""
    chance = random.Random(7)

    def spoilt(part: Any) -> Any:
        if not isinstance(part, (list, dict)) or not part or chance.random() < 0.2:
            return chance.choice([random_value(chance), [part], [], {}, {"x": part}, good])
        if isinstance(part, dict):
            return {name: spoilt(value) if chance.random() < 0.5 else value for name, value in part.items()}
        whole = [spoilt(value) if chance.random() < 0.3 else value for value in part]
        return chance.choice([whole, whole, whole[:-1], whole + whole[:1]])

    read = 0
    for _ in range(2000):
        batch = parsed_or_refused(signature, spoilt(good))
        if isinstance(batch, InvalidInput):
            continue
        read += 1
        assert batch.rows >= 1
        assert all(len(column) == batch.rows for column in batch.columns)
    assert read > 20


# --- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "features", "many", "got"),
    [
        ((), [1, 2.5], True, (2,)),
        ((3,), [1, 2, 3], False, (1, 3)),
        ((3,), [[1, 2, 3], [4, 5, 6]], True, (2, 3)),
        ((-1,), [[1, 2, 3, 4]], True, (1, 4)),
        ((2, 2), [[1, 2], [3, 4]], False, (1, 2, 2)),
        ((2, 2), [[[1, 2], [3, 4]], [[5, 6], [7, 8]]], True, (2, 2, 2)),
        ((-1, 2), [[[1, 2], [3, 4], [5, 6]]], True, (1, 3, 2)),
        ((1, 2, 1), [[[[1], [2]]]], True, (1, 1, 2, 1)),
    ],
)
def test_nested_lists_are_one_row_or_many_by_their_depth(
    shape: tuple[int, ...], features: Any, many: bool, got: tuple[int, ...]
) -> None:
    batch, written_as_many = tabular.parse(tensor("float32", *shape), features)
    array = batch.columns[0] if batch.block is None else batch.block
    assert (array.shape, written_as_many, array.dtype) == (got, many, np.float32)
    assert np.array_equal(array, np.array(features, dtype=np.float32).reshape(got))


@pytest.mark.parametrize("kind", [*TENSOR_KINDS, "bool", "str", "object"])
def test_a_tensor_has_the_type_of_its_signature(kind: str) -> None:
    value: Any = {"bool": True, "str": "ä"}.get(kind, 1)
    batch = parsed(tensor(kind, 1), [[value], [value]])
    assert batch.columns[0].dtype.kind == np.dtype(kind).kind
    assert kind in ("str", "object") or batch.columns[0].dtype == np.dtype(kind)
    assert batch.columns[0].tolist() == [value, value]


@pytest.mark.parametrize(
    ("kind", "shape", "rows", "row", "message"),
    [
        ("float64", (3,), [[1, 2, 3], [1, 2]], 1, "has 2 values, expected 3"),
        ("float64", (3,), [[1, 2, 3], []], 1, "has 0 values, expected 3"),
        ("float64", (3,), [[1, 2, 3], 5], 1, "expected an array of shape [3]"),
        ("float64", (3,), [[1, 2, 3], None], 1, "expected an array of shape [3]"),
        ("float64", (3,), [[1, 2, 3], {"x": 1}], 1, "expected an array of shape [3]"),
        ("float64", (3,), [[[1], [2], [3]]], 0, "expected an array of shape [3]"),
        ("float64", (2, 2), [[[1, 2], [3, 4]], [[1, 2], [3]]], 1, "has [1, 2] values, expected 2"),
        ("float64", (2, 2), [[[1, 2], [3, 4]], [[1, 2], 3]], 1, "expected an array of shape [2, 2]"),
        ("float64", (-1, 2), [[[1, 2]], [[1, 2, 3]]], 1, "has 3 values, expected 2"),
        ("float64", (-1,), [[1, 2], [3], [4, 5, 6]], 1, "has the shape [1] where the first row has [2]"),
        ("float64", (2, -1), [[[1], [2]], [[1, 2], [3, 4]]], 1, "has the shape [2, 2] where the first row has [2, 1]"),
        ("float64", (2, -1), [[[1], [2, 3]]], 0, "has [1, 2] values, expected one length"),
        ("float64", (3,), [[1, 2, 3], [1, "2", 3]], 1, "expected a number, not '2'"),
        ("float64", (2, 2), [[[1, 2], [3, 4]], [[1, 2], [3, None]]], 1, "is missing (null)"),
        ("float32", (2,), [[1, 2], [1, 1e39]], 1, "1e+39 is beyond the range of a 32-bit float"),
        ("float16", (2,), [[1, 2], [1, 7e4]], 1, "70000.0 is beyond the range of a 16-bit float"),
        ("int64", (2,), [[1, 2], [1, 2.5]], 1, "expected a whole number, not 2.5"),
        ("int32", (2,), [[1, 2], [1, 2**31]], 1, "2147483648 is beyond the range of integer"),
        ("uint8", (2,), [[0, 255], [1, 256]], 1, "256 is beyond the range of uint8"),
        ("uint8", (2,), [[0, 255], [-1, 0]], 1, "-1 is beyond the range of uint8"),
        ("int8", (1,), [[-128], [-129]], 1, "-129 is beyond the range of int8"),
        ("bool", (1,), [[True], [1]], 1, "expected true or false, not 1"),
        ("str", (1,), [["a"], [None]], 1, "is missing (null)"),
        ("float64", (), [1.0, "a"], 1, "expected a number, not 'a'"),
        ("float64", (), [1.0, [2.0]], 1, "expected an array of shape []"),
    ],
)
def test_a_wrong_row_of_a_tensor_is_named(kind: str, shape: tuple[int, ...], rows: Any, row: int, message: str) -> None:
    err = refusal(tensor(kind, *shape), rows)
    assert (err.row, err.column, err.what) == (row, "x", message)


def test_missing_values_are_for_floats_whose_model_takes_them() -> None:
    batch = parsed(tensor("float32", 2, required=False), [[1, None], [NAN, 4]])
    assert [[bool(v != v) for v in row] for row in np.stack(batch.columns, axis=1)] == [[False, True], [True, False]]
    for kind in ("int64", "int32", "uint8", "bool", "str"):
        good: Any = {"bool": True, "str": "a"}.get(kind, 1)
        assert refusal(tensor(kind, 2, required=False), [[good, None]]).what == "is missing (null)"


def test_lists_a_thousand_deep_are_refused_like_any_other() -> None:
    deep = json.loads("[" * 900 + "]" * 900)
    for signature in (tensor("float64", 2), tensor("float64", -1), MIXED, one_column("double")):
        assert refusal(signature, deep).row == 0


TWO = Signature("tensors", (Field("ids", "int64", shape=(3,)), Field("mask", "bool", shape=(3,))))


def test_several_arrays_are_written_as_objects() -> None:
    row = {"mask": [True, False, True], "ids": [1, 2, 3]}
    for features in (row, [row, row]):
        batch = parsed(TWO, features)
        assert batch.names == ("ids", "mask")
        assert [column.dtype for column in batch.columns] == [np.int64, np.bool_]
        assert batch.column("ids").shape == (batch.rows, 3)


@pytest.mark.parametrize(
    ("features", "row", "column", "what"),
    [
        ([[1, 2, 3]], None, None, "this model takes several arrays: write each row as an object with 'ids', 'mask'"),
        ({"ids": [1, 2, 3]}, 0, "mask", "is missing"),
        (
            {"ids": [1, 2, 3], "mask": [True] * 3, "more": 1},
            0,
            "more",
            "is not a column of this model; it has 'ids', 'mask'",
        ),
        ({"ids": [1, 2], "mask": [True] * 3}, 0, "ids", "has 2 values, expected 3"),
        ({"ids": [1, 2, 3], "mask": [1, 0, 1]}, 0, "mask", "expected true or false, not 1"),
    ],
)
def test_a_wrong_array_of_several_is_named(features: Any, row: int | None, column: str | None, what: str) -> None:
    err = refusal(TWO, features)
    assert (err.row, err.column, err.what) == (row, column, what)


@pytest.mark.parametrize("required", [True, False])
def test_a_single_array_may_be_written_by_its_name_and_may_not_be_left_out(required: bool) -> None:
    signature = tensor("float64", 2, required=required)
    assert np.array_equal(parsed(signature, {"x": [1, 2]}).columns[0], [[1.0, 2.0]])
    assert refusal(signature, {}).column == "x"
    assert refusal(signature, [{"x": [1, 2]}, {}]).row == 1


# --- no signature ----------------------------------------------------------------------------------------------------


def test_without_a_signature_numbers_come_as_a_block_of_numbered_columns() -> None:
    batch = parsed(UNKNOWN, [[1, 2.5], [3, 4]])
    assert batch.names == ("0", "1")
    assert batch.block is not None
    assert batch.block.tolist() == [[1.0, 2.5], [3.0, 4.0]]


def test_without_a_signature_other_values_stay_as_they_are() -> None:
    batch = parsed(UNKNOWN, [[1, "a", None, True], [2, "b", 3, False]])
    assert [column.tolist() for column in batch.columns] == [[1.0, 2.0], ["a", "b"], [None, 3], [True, False]]


def test_without_a_signature_names_are_those_of_the_first_row() -> None:
    batch = parsed(UNKNOWN, [{"b": 1, "a": "x"}, {"a": "y", "b": 2}])
    assert batch.names == ("b", "a")
    assert [column.tolist() for column in batch.columns] == [[1.0, 2.0], ["x", "y"]]


@pytest.mark.parametrize(
    ("features", "row", "what"),
    [
        ([[1, 2], [3]], 1, "has 1 values where the first row has 2"),
        ([{"a": 1}, {"a": 1, "b": 2}], 1, "has other columns than the first row"),
        ([{"a": 1}, {"b": 1}], 1, "has other columns than the first row"),
        ([{"a": 1}, [1]], 1, "has other columns than the first row"),
        ([[1], {"a": 1}], 1, "is an object where the row before is a list"),
        ([[]], 0, "has no values"),
        ({}, 0, "has no values"),
        ([{}], 0, "has no values"),
        ([[1.0, 2.0], [NAN, 3.0]], 1, "NaN is a missing value, and this column takes none"),
        ([[1.0, 2.0], [3.0, INF]], 1, "Infinity is not a finite number"),
        ([[1.0], [10**400]], 1, "is too large for a number"),
    ],
)
def test_without_a_signature_what_can_be_checked_is(features: Any, row: int, what: str) -> None:
    err = refusal(UNKNOWN, features)
    assert (err.row, err.what) == (row, what)


# --- columns that are known to fit -----------------------------------------------------------------------------------


def test_columns_that_fit_become_what_rows_become() -> None:
    rows = [[1, 1.5, "a"], [2, 2.5, None]]
    given = {"note": np.array(["a", None], dtype=object), "age": np.array([1, 2]), "income": np.array([1.5, 2.5])}
    one, other = tabular.from_columns(MIXED, given), parsed(MIXED, rows)
    assert one.names == other.names
    for left, right in zip(one.columns, other.columns, strict=True):
        assert (left.dtype, left.tolist()) == (right.dtype, right.tolist())


def test_columns_of_numbers_become_a_block() -> None:
    signature = columns(Field("b", "double"), Field("a", "double"))
    block = tabular.from_columns(signature, {"a": np.array([1, 2]), "b": np.array([3.0, 4.0])}).block
    assert block is not None
    assert block.tolist() == [[3.0, 1.0], [4.0, 2.0]]


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidInput, match="column 'income': is missing"):
        tabular.from_columns(MIXED, {"age": np.array([1])})


@pytest.mark.parametrize("kind", ["long", "integer"])
def test_gaps_among_whole_numbers_stay_gaps(kind: str) -> None:
    signature = columns(Field("s", "string"), Field("x", kind, required=False))
    given = {"s": np.array(["a", "b"], dtype=object), "x": np.array([1.0, np.nan])}
    batch = tabular.from_columns(signature, given)
    assert batch.column("x").dtype == np.float64
    assert np.array_equal(batch.column("x"), [1.0, np.nan], equal_nan=True)
    assert np.array_equal(parsed(signature, [["a", 1], ["b", None]]).column("x"), batch.column("x"), equal_nan=True)


def test_gaps_among_booleans_stay_gaps() -> None:
    signature = columns(Field("s", "string"), Field("x", "boolean", required=False))
    given = {"s": np.array(["a", "b"], dtype=object), "x": np.array([True, None], dtype=object)}
    assert tabular.from_columns(signature, given).column("x").tolist() == [True, None]


def test_tensor_columns_take_the_type_of_the_signature() -> None:
    batch = tabular.from_columns(tensor("float32", 2), {"x": np.array([[1.0, 2.0]])})
    assert (batch.columns[0].dtype, batch.columns[0].shape) == (np.float32, (1, 2))


# --- speed -----------------------------------------------------------------------------------------------------------

WIDE = columns(*(Field(f"c{number}", "double") for number in range(8)))
MANY_KINDS = columns(*(Field(kind, kind) for kind in ("double", "long", "string", "boolean", "float", "integer")))


def seconds(signature: Signature, rows: list[Any]) -> float:
    """The best of five, in this thread's own time: other processes use the machine too."""
    took = []
    for _ in range(5):
        started = time.thread_time()
        assert parsed(signature, rows).rows == len(rows)
        took.append(time.thread_time() - started)
    return min(took)


@pytest.mark.parametrize(
    ("signature", "row"),
    [
        (WIDE, [0.5] * 8),
        (WIDE, dict.fromkeys(WIDE.names, 0.5)),
        (MANY_KINDS, [1.5, 2, "three", True, 4.5, 6]),
        (tensor("float32", 4), [1, 2, 3, 4]),
        (tensor("float32", -1, 2), [[1, 2], [3, 4]]),
        (UNKNOWN, [1.5, "a", 3]),
    ],
    ids=["lists", "objects", "many types", "tensor", "any length", "unknown"],
)
def test_a_hundred_thousand_rows_take_time_in_proportion(signature: Signature, row: Any) -> None:
    few, many = seconds(signature, [row] * 5_000), seconds(signature, [row] * 100_000)
    assert many < 3.0
    assert many < 20 * 4 * max(few, 0.001)


def test_the_last_of_a_hundred_thousand_rows_is_checked_like_the_first() -> None:
    rows: list[list[Any]] = [[0.5] * 8 for _ in range(100_000)]
    rows[-1] = [0.5] * 7 + ["x"]
    started = time.thread_time()
    err = refusal(WIDE, rows)
    assert (err.row, err.column) == (99_999, "c7")
    assert time.thread_time() - started < 3.0
