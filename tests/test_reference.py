"""Reference rows: what a model took and answered, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import reference
from serving.tensors import Batch, Prediction

VALUES = Prediction(np.array([1.0, 2.0, 3.0]))


def again(path: Path, batch: Batch, prediction: Prediction = VALUES) -> tuple[dict[str, np.ndarray], Prediction]:
    """Written and read back."""
    reference.write(path / reference.FILE_NAME, batch, prediction)
    return reference.read(path / reference.FILE_NAME)


def same(left: Any, right: np.ndarray) -> bool:
    """Equal in type, shape and every bit; missing values are equal to each other."""
    return left.dtype == right.dtype and left.shape == right.shape and bool(np.array_equal(left, right, equal_nan=True))


def test_a_block_of_numbers(tmp_path: Path) -> None:
    block = np.random.default_rng(0).normal(size=(3, 2))
    inputs, recorded = again(tmp_path, Batch(("a b", "größe"), block=block))
    assert list(inputs) == ["a b", "größe"]
    assert np.array_equal(np.stack(list(inputs.values()), axis=1), block)
    assert same(recorded.values, VALUES.values)
    assert recorded.probabilities is None


@pytest.mark.parametrize(
    "column",
    [
        np.array([0.1, np.nan, -0.0]),
        np.array([1e308, 5e-324, np.inf]),
        np.array([0.1, 2.5, 3.5], dtype=np.float32),
        np.array([2**53 + 1, -(2**63), 2**63 - 1]),
        np.array([1, 2, 3], dtype=np.int32),
        np.array([0, 128, 255], dtype=np.uint8),
        np.array([True, False, True]),
        np.array(["2026-01-01T00:00:00.123456789", "NaT", "1700-01-01"], dtype="datetime64[ns]"),
    ],
    ids=lambda column: str(column.dtype),
)
def test_numbers_and_times_keep_their_type(tmp_path: Path, column: np.ndarray) -> None:
    inputs, _ = again(tmp_path, Batch(("x",), (column,)))
    if column.dtype.kind == "f":
        assert np.array_equal(np.signbit(inputs["x"]), np.signbit(column))
        assert same(inputs["x"], column)
    else:
        assert inputs["x"].dtype == column.dtype
        assert inputs["x"].astype(str).tolist() == column.astype(str).tolist()


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b", "ä"],
        ["a", None, ""],
        [None, None, None],
        [b"a", b"\x00", b""],
        [True, None, False],
        ["1", "2", "nan"],
    ],
    ids=["text", "gaps", "only gaps", "bytes", "booleans with gaps", "numbers as text"],
)
def test_objects_keep_their_values(tmp_path: Path, values: list[Any]) -> None:
    column = np.empty(3, dtype=object)
    column[:] = values
    inputs, _ = again(tmp_path, Batch(("x",), (column,)))
    assert inputs["x"].tolist() == values
    assert inputs["x"].dtype == object


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 5), (3, 1)])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_tensors_keep_their_shape_and_values(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    tensor = (np.random.default_rng(0).normal(size=shape) * 100).astype(dtype)
    inputs, _ = again(tmp_path, Batch(("input_0",), (tensor,)))
    assert inputs["input_0"].shape == shape
    assert np.array_equal(inputs["input_0"].astype(dtype), tensor)


@pytest.mark.parametrize(
    "values",
    [
        np.array([0.1, 0.2, 0.3]),
        np.array([0, 2, 1]),
        np.array([-1, 1, 1], dtype=np.int32),
        np.array([True, False, True]),
        np.arange(6.0).reshape(3, 2) / 7,
        np.arange(36.0).reshape(3, 12) / 7,
    ],
    ids=["regression", "labels", "negative", "boolean", "two outputs", "twelve outputs"],
)
def test_answers_keep_their_type_and_shape(tmp_path: Path, values: np.ndarray) -> None:
    _, recorded = again(tmp_path, Batch(("a",), block=np.zeros((3, 1))), Prediction(values))
    assert same(recorded.values, values)


@pytest.mark.parametrize("dtype", [object, "<U5"])
def test_labels_may_be_texts(tmp_path: Path, dtype: Any) -> None:
    values = np.array(["no", "yes", "no"], dtype=dtype)
    _, recorded = again(tmp_path, Batch(("a",), block=np.zeros((3, 1))), Prediction(values))
    assert recorded.values.tolist() == ["no", "yes", "no"]


def test_probabilities_keep_their_order(tmp_path: Path) -> None:
    chances = np.random.default_rng(0).dirichlet(np.ones(12), size=3)
    _, recorded = again(tmp_path, Batch(("a",), block=np.zeros((3, 1))), Prediction(np.array([0, 1, 2]), chances))
    assert recorded.probabilities is not None
    assert same(recorded.probabilities, chances)


def test_a_sample_is_enough(tmp_path: Path) -> None:
    rows = reference.MAX_ROWS + 5
    batch = Batch(("a",), block=np.arange(float(rows)).reshape(rows, 1))
    inputs, recorded = again(tmp_path, batch, Prediction(np.arange(rows), np.ones((rows, 2))))
    assert inputs["a"].tolist() == list(range(reference.MAX_ROWS))
    assert len(recorded.values) == reference.MAX_ROWS
    assert recorded.probabilities is not None
    assert recorded.probabilities.shape == (reference.MAX_ROWS, 2)


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for columns in ({"a": [1]}, {"input:a": [1]}, {"output:value": [1]}):
        pq.write_table(pa.table(columns), tmp_path / "other.parquet")
        with pytest.raises(ValueError, match="has no input: and output:value columns"):
            reference.read(tmp_path / "other.parquet")


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1" + bytes(100) + b"PAR1"])
@pytest.mark.parametrize("name", [reference.FILE_NAME, reference.EARLIER])
def test_what_is_no_table_is_a_value_error(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"\w"):
        reference.read(tmp_path / name)


@pytest.mark.parametrize(
    "header", ["", "[]", '{"inputs": []}', '{"inputs": [{"name": "a", "array": "a7"}], "outputs": []}']
)
def test_an_archive_of_something_else_is_refused(tmp_path: Path, header: str) -> None:
    np.savez(tmp_path / "other.npz", header=np.array(header))
    with pytest.raises(ValueError, match="cannot be read"):
        reference.read(tmp_path / "other.npz")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    objects = np.array([print], dtype=object)
    np.savez(
        tmp_path / "bad.npz", header=np.array('{"inputs": [{"name": "a", "array": "a0"}], "outputs": []}'), a0=objects
    )
    with pytest.raises(ValueError, match="allow_pickle"):
        reference.read(tmp_path / "bad.npz")


def test_of_large_rows_there_are_fewer(tmp_path: Path) -> None:
    pictures = np.zeros((200, 3, 224, 224), dtype=np.float32)
    inputs, recorded = again(tmp_path, Batch(("input",), (pictures,)), Prediction(np.arange(200)))
    assert len(inputs["input"]) == len(recorded.values) == 27


def test_the_same_rows_make_the_same_file(tmp_path: Path) -> None:
    batch = Batch(("a", "b"), (np.arange(3.0), np.array(["x", None, "z"], dtype=object)))
    for name in ("1", "2"):
        reference.write(tmp_path / name, batch, VALUES)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_the_newer_form_is_preferred(tmp_path: Path) -> None:
    assert reference.find(tmp_path) is None
    (tmp_path / reference.EARLIER).touch()
    assert reference.find(tmp_path) == tmp_path / reference.EARLIER
    (tmp_path / reference.FILE_NAME).touch()
    assert reference.find(tmp_path) == tmp_path / reference.FILE_NAME


def test_an_archive_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / reference.FILE_NAME
    reference.write(path, Batch(("a",), block=np.zeros((3, 1))), VALUES)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"\w"):
        reference.read(path)
