"""CSV: cells are read by the signature, never by what they look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serving.errors import InvalidInput
from serving.tensors import Batch, Field, Signature
from serving.transforms import delimited
from serving.transforms.tabular import Reader

HOUSES = Signature(
    "columns",
    (
        Field("town", "string", False),
        Field("rooms", "long"),
        Field("area", "double", False),
        Field("garden", "boolean", False),
        Field("sold", "datetime", False),
        Field("key", "binary", False),
    ),
)
HEAD = b"town,rooms,area,garden,sold,key\n"
ARRAY = Signature("tensors", (Field("input_0", "float32", shape=(2,)),))
NOTHING = Signature("unknown", (), "none")


def read(signature: Signature, data: bytes) -> Batch:
    return delimited.read(Reader(signature), data)


def test_each_column_has_the_type_of_the_signature() -> None:
    batch = read(HOUSES, HEAD + b"007,2,5e1,TRUE,2020-01-02T03:04:05,YWI=\n")
    types = [column.dtype.kind for column in batch.columns]
    assert types == ["O", "i", "f", "b", "M", "O"]
    assert [column.tolist()[0] for column in batch.columns[:4]] == ["007", 2, 50.0, True]
    assert batch.column("key")[0] == b"ab"


@pytest.mark.parametrize("missing", ["", "NA", "NaN", "null", "None"])
def test_gaps(missing: str) -> None:
    batch = read(HOUSES, HEAD + f",2,{missing},{missing},,\n".encode())
    assert batch.column("town")[0] is None
    assert np.isnan(batch.column("area")[0])
    assert batch.column("garden")[0] is None
    assert np.isnat(batch.column("sold")[0])


def test_words_for_a_gap_are_texts_in_a_text() -> None:
    assert read(HOUSES, b"town,rooms\nNA,1\nnull,2\n").column("town").tolist() == ["NA", "null"]


@pytest.mark.parametrize(
    "data",
    [
        b"town,rooms\nUlm,1\n",
        b"\xef\xbb\xbftown,rooms\nUlm,1\n",
        b"town,rooms\r\nUlm,1\r\n",
        b"\ntown,rooms\n\nUlm,1",
        b'"rooms","town"\n"1","Ulm"\n',
        b",town,rooms\n0,Ulm,1\n",
        b"town,rooms\nUlm, 1 \n",
        b"town,rooms\nUlm,1.0\n",
    ],
)
def test_all_say_the_same(data: bytes) -> None:
    batch = read(HOUSES, data)
    assert (batch.column("town").tolist(), batch.column("rooms").tolist()) == (["Ulm"], [1])


def test_quotes_hold_commas_quotes_and_lines() -> None:
    assert read(HOUSES, b'town,rooms\n"Bad ""Ems"",\nLahn",1\n').column("town").tolist() == ['Bad "Ems",\nLahn']


def test_numbers_are_read_to_the_last_bit() -> None:
    text = "0.30000000000000004"  # which pandas' own reader gets wrong in the last place
    assert read(HOUSES, f"rooms,area\n1,{text}\n".encode()).column("area")[0] == float(text)


def test_whole_numbers_beyond_floats_are_exact() -> None:
    assert read(HOUSES, b"rooms\n9007199254740993\n").column("rooms").tolist() == [9007199254740993]


def test_an_array_takes_columns_by_their_place() -> None:
    assert rows(read(ARRAY, b"x,y\n1,2\n3.5,4\n")) == [[1.0, 2.0], [3.5, 4.0]]


def test_without_a_signature_a_column_of_numbers_is_one() -> None:
    batch = read(NOTHING, b"x,y\n1,a\n2.5,b\n")
    assert (batch.column("x").tolist(), batch.column("y").tolist()) == ([1.0, 2.5], ["a", "b"])


def rows(batch: Batch) -> list[Any]:
    return np.stack(batch.columns, axis=1).tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the body is empty"),
        (b"\n\n", "the body is empty"),
        (b"town,rooms\n", "there are no rows"),
        (b"town,rooms\nUlm\n", "row 0: has 1 values, expected 2"),
        (b"town,rooms\nUlm,1\nUlm,1,2\n", "row 1: has 3 values, expected 2"),
        (b"town,town\nUlm,Ulm\n", "column 'town': is there twice"),
        (b"town,\nUlm,1\n", "has no name"),
        (b"town,colour\nUlm,1\n", "column 'colour': is not a column of this model"),
        (b"town\nUlm\n", "column 'rooms': is missing"),
        (b"rooms\nthree\n", "row 0, column 'rooms': expected a whole number"),
        (b"rooms\n1\n1_0\n", "row 1, column 'rooms': expected a whole number"),
        (b"rooms\n1.5\n", "row 0, column 'rooms': expected a whole number"),
        (b"rooms\n\xd9\xa1\n", "row 0, column 'rooms': expected a whole number"),  # a digit of another script
        (b"rooms\n" + b"9" * 3000 + b"\n", "row 0, column 'rooms'"),
        (b"rooms,area\n1,inf\n", "row 0, column 'area': expected a number"),
        (b"rooms,area\n1,1e999\n", "row 0, column 'area': inf"),
        (b"rooms,garden\n1,1\n", "row 0, column 'garden': expected true or false"),
        (b"rooms,sold\n1,yesterday\n", "row 0, column 'sold': expected an ISO 8601 time"),
        (b"rooms,key\n1,?\n", "row 0, column 'key': expected base64 text"),
        (b'rooms\n"1\n', "the body is not CSV"),
        (b"rooms\n\xff\n", "the body is not UTF-8 (byte 6)"),
        (b"rooms\n" + b"1" * 200_000 + b"\n", "the body is not CSV: field larger"),
    ],
)
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(HOUSES, data)
    assert message.lower() in str(caught.value).lower()
