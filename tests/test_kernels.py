"""Kernels: written and read back they are the same; each column kernel does what scikit-learn's transformer does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving import kernels
from serving.errors import InvalidInput
from serving.kernels.columns import (
    Arithmetic,
    Beside,
    Chain,
    Codes,
    FillNumbers,
    FillTexts,
    OneHot,
    Refused,
    Same,
    Take,
    check_finite,
)
from serving.kernels.linear import Linear, by_column
from serving.kernels.models import Classifier

NUMBERS = np.array([[1.0, 2.0], [3.0, np.nan]])


def texts(*values: str | None) -> np.ndarray:
    return np.array(values, dtype=object)


def codes(*, otherwise: int | None = -1) -> Codes:
    """Of the texts b, c and a gap: the outputs 0, 1 and 2."""
    return Codes((("b", "c", float("nan")),), ((0, 1, 2),), (otherwise,), "int64")


# --- writing and reading ---------------------------------------------------------------------------------------------


def model() -> Classifier:
    scale = Arithmetic(("subtract", "divide"), (np.array([1.0]), np.array([3.0])), (0.0, 1.0))
    inputs = Beside((Chain((Take((0,)), scale)), Chain((Take((1,)), OneHot(codes(), 3)))), (1, 3))
    return Classifier(Chain((inputs, Linear(np.arange(8.0).reshape(2, 4), np.array([0.5, 0.1])))), ("yes", "no"))


def test_what_is_read_back_answers_as_what_was_written(tmp_path: Path) -> None:
    table = np.array([2.0, 3.0, 4.0]), texts("c", None, "d")
    kernels.save(model(), tmp_path)
    read = kernels.load(tmp_path)
    assert np.array_equal(read(table).values, model()(table).values)
    assert np.array_equal(read(table).probabilities, model()(table).probabilities)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays.bin", "kernels.json"]


@pytest.mark.parametrize(
    "array",
    [np.arange(6.0).reshape(2, 3)[:, 1:], np.eye(2, 3).T, np.array(["a", "bcd"]), np.zeros((0, 2)), np.array(7, ">i2")],
)
def test_arrays_of_any_kind_come_back(tmp_path: Path, array: np.ndarray) -> None:
    kernels.save(Linear(array, np.ones(3, bool)), tmp_path)
    read = kernels.load(tmp_path)
    assert (read.weights.dtype, read.weights.shape) == (array.dtype, array.shape)
    assert np.array_equal(read.weights, array)
    assert read.weights.flags.fnc == array.flags.fnc


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    kernels.save(model(), tmp_path)
    text = (tmp_path / "kernels.json").read_text()
    (tmp_path / "kernels.json").write_text(text.replace('"<f8"', '"|O"'))
    with pytest.raises(TypeError, match="references"):
        kernels.load(tmp_path)


def test_arrays_that_were_cut_short_are_not_read(tmp_path: Path) -> None:
    kernels.save(model(), tmp_path)
    (tmp_path / "arrays.bin").write_bytes((tmp_path / "arrays.bin").read_bytes()[:-1])
    with pytest.raises(ValueError, match="size"):
        kernels.load(tmp_path)


def test_walk_finds_every_kernel() -> None:
    names = [type(found).__name__ for found in kernels.walk(model())]
    assert names == [
        "Classifier",
        "Chain",
        "Beside",
        "Chain",
        "Take",
        "Arithmetic",
        "Chain",
        "Take",
        "OneHot",
        "Codes",
        "Linear",
    ]


def test_two_kernels_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two kernels called Take"):
        kernels.kernel(type("Take", (), {}))


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_columns_become_one_array_of_numbers() -> None:
    table = np.array([1, 2]), np.array([True, False]), texts(None, None)
    assert np.array_equal(kernels.block(table), [[1, 1, np.nan], [2, 0, np.nan]], equal_nan=True)


@pytest.mark.parametrize(
    ("value", "missing_fit", "refused"), [(np.inf, True, True), (np.nan, True, False), (np.nan, False, True)]
)
def test_infinities_are_refused_and_gaps_where_they_do_not_fit(value: float, missing_fit: bool, refused: bool) -> None:
    numbers = np.array([[1.0, 2.0], [1.0, value]])
    if not refused:
        check_finite(numbers, missing_fit=missing_fit)
        return
    with pytest.raises(Refused) as raised:
        check_finite(numbers, missing_fit=missing_fit)
    assert (raised.value.row, raised.value.position) == (1, 1)


def test_arithmetic_leaves_its_input_alone_and_keeps_its_type() -> None:
    scale = Arithmetic(("subtract", "divide"), (np.array([1.0, 2.0]), np.array([2.0, 4.0])))
    assert np.array_equal(scale(NUMBERS), [[0.0, 0.0], [1.0, np.nan]], equal_nan=True)
    assert np.array_equal(NUMBERS[0], [1.0, 2.0])
    assert scale(NUMBERS.astype(np.float32)).dtype == np.float32
    assert scale(np.array([[1, 2]])).dtype == np.float64


def test_arithmetic_carries_values_back() -> None:
    found = Arithmetic(("subtract", "divide"), (np.array([1.0, 2.0]), np.array([2.0, 4.0]))).origin(1)
    assert found is not None
    column, way = found
    assert column == 1
    assert np.array_equal(way(np.array([0.5])), [4.0])


def test_gaps_are_filled_marked_and_empty_columns_go() -> None:
    fill = FillNumbers(np.array([np.nan, 7.0]), kept=(1,), marked=(0, 1))
    assert np.array_equal(fill(NUMBERS), [[2.0, 0.0, 0.0], [7.0, 0.0, 1.0]])
    assert [fill.origin(output)[0] for output in range(3)] == [1, 0, 1]


def test_taking_keeps_the_order_that_is_asked_for() -> None:
    assert np.array_equal(Take((1, 0))(np.array([[1.0, 2.0]])), [[2.0, 1.0]])
    assert np.array_equal(Take((0, 1))(np.array([[1.0, 2.0, 3.0]])), [[1.0, 2.0]])
    assert [column[0] for column in Take((1,))((texts("a"), texts("b")))] == ["b"]
    assert Same()(NUMBERS) is NUMBERS


def test_by_column_adds_in_the_order_of_columns() -> None:
    numbers, weights = np.array([[1.0, 1e-16, 1e-16]]), np.ones((3, 1))
    assert by_column(numbers, weights)[0, 0] == 1.0 + 1e-16 + 1e-16


# --- texts -----------------------------------------------------------------------------------------------------------


def test_missing_texts_are_filled() -> None:
    column = texts("a", None)
    filled, marks = FillTexts(("x",), marked=(0,))((column,))
    assert filled.tolist() == ["a", "x"]
    assert marks.tolist() == [False, True]
    assert column[1] is None
    assert FillTexts(("x",))((texts("a"),))[0].tolist() == ["a"]


def test_categories_become_their_values() -> None:
    assert codes()((texts("c", None, "d", "b"),)).tolist() == [[1], [2], [-1], [0]]
    assert codes()((np.array(["c", float("nan")], dtype=object),)).tolist() == [[1], [2]]


def test_numbers_may_be_categories() -> None:
    ages = Codes(((1.0, 2.0, float("nan")),), ((10.0, 20.0, -1.0),), (float("nan"),))
    found = ages(np.array([[1.0], [np.nan], [3.0], [2.0]]))
    assert np.array_equal(found, [[10], [-1], [np.nan], [20]], equal_nan=True)
    with pytest.raises(Refused, match="infinite"):
        ages(np.array([[np.inf]]))


def test_an_unknown_category_is_refused_by_its_row_and_column() -> None:
    table = np.array([1.0, 2.0]), texts("b", "d")
    inputs = Chain((Beside((Chain((Take((0,)), Same())), Chain((Take((1,)), codes(otherwise=None)))), (1, 1)),))
    with pytest.raises(InvalidInput, match="'d' is a category that the model does not know") as raised:
        inputs(table)
    assert isinstance(raised.value, Refused)
    assert (raised.value.row, raised.value.position) == (1, 1)


def test_one_hot_has_a_one_for_each_known_category() -> None:
    hot = OneHot(Codes((("a", "b"), ("x",)), ((-1, 0), (1,)), (-1, -1), "int64"), 2, "float32")
    found = hot((texts("a", "b", "?"), texts("x", "?", "x")))
    assert found.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert found.dtype == np.float32
    assert [hot.origin(output)[0] for output in range(2)] == [0, 1]


def test_a_refusal_is_carried_back_through_encoders() -> None:
    hot = OneHot(codes(), 3)
    after = Chain(
        (Beside((Chain((Take((1,)), hot)), Chain((Take((0,)), Same()))), (3, 1)), Linear(np.ones((1, 4)), np.zeros(1)))
    )
    with pytest.raises(Refused) as raised:
        after((np.array([1.0, np.nan]), texts("b", "b")))
    assert (raised.value.row, raised.value.position) == (1, 0)
