"""Batch, Signature and Classes: what they hold, and which signature takes the place of which."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from samples import signature_of

from serving.tensors import Batch, Classes, Field, Prediction, Signature, by_name, described

COLUMN_TYPES = ("double", "float", "long", "integer", "boolean", "string", "binary", "datetime", "any")

# For each type the others whose every value it holds exactly.
HELD = {"long": {"integer"}, "double": {"float", "integer"}, "any": set(COLUMN_TYPES)}


def columns(*fields: Field, origin: str = "model") -> Signature:
    return Signature("columns", fields, origin)


def mlmodel_signature(inputs: Any) -> Signature | None:
    """What is read from the MLmodel file of a model whose signature MLflow inferred from ``inputs``."""
    return Signature.from_mlmodel(signature_of(inputs))


# --- Field -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mine", COLUMN_TYPES)
@pytest.mark.parametrize("theirs", COLUMN_TYPES)
def test_a_type_holds_itself_and_those_it_has_room_for(mine: str, theirs: str) -> None:
    fits = mine == theirs or theirs in HELD.get(mine, set())
    assert Field("x", mine).holds(Field("x", theirs)) is fits


@pytest.mark.parametrize(
    ("mine", "theirs", "holds"),
    [(True, True, True), (False, True, True), (False, False, True), (True, False, False)],
)
def test_a_required_field_does_not_hold_an_optional_one(mine: bool, theirs: bool, holds: bool) -> None:
    assert Field("x", "double", mine).holds(Field("x", "double", theirs)) is holds


def test_a_field_of_another_name_does_not_hold() -> None:
    assert not Field("x", "double").holds(Field("y", "double"))


@pytest.mark.parametrize(
    ("mine", "theirs", "holds"),
    [
        ((4,), (4,), True),
        ((-1,), (4,), True),
        ((4,), (-1,), False),
        ((4,), (5,), False),
        ((4,), (4, 1), False),
        ((-1, 3), (7, 3), True),
        ((), (1,), False),
    ],
)
def test_a_shape_holds_what_is_no_larger(mine: tuple[int, ...], theirs: tuple[int, ...], holds: bool) -> None:
    assert Field("x", "float32", shape=mine).holds(Field("x", "float32", shape=theirs)) is holds


# --- Signature -------------------------------------------------------------------------------------------------------

LIVE = columns(Field("a", "double"), Field("b", "integer"))


@pytest.mark.parametrize(
    ("newer", "accepts"),
    [
        (columns(Field("a", "double"), Field("b", "integer")), True),
        (columns(Field("a", "double"), Field("b", "long")), True),
        (columns(Field("a", "float"), Field("b", "integer")), False),
        (columns(Field("b", "integer"), Field("a", "double")), False),  # rows may be lists: the order counts
        (columns(Field("a", "double")), False),
        (columns(Field("a", "double"), Field("b", "integer"), Field("c", "string", required=False)), True),
        (columns(Field("a", "double"), Field("b", "integer"), Field("c", "string")), False),
        (Signature("tensors", (Field("a", "double"), Field("b", "integer"))), False),
    ],
)
def test_a_signature_accepts_another_when_every_request_still_fits(newer: Signature, accepts: bool) -> None:
    assert newer.accepts(LIVE) is accepts


def test_a_model_that_says_nothing_of_its_input_breaks_no_promise() -> None:
    unknown = Signature("unknown", (), "none")
    assert unknown.accepts(LIVE)
    assert LIVE.accepts(unknown)


@pytest.mark.parametrize(
    "signature",
    [
        LIVE,
        columns(Field("Größe in m²", "string", required=False), origin="inferred"),
        Signature("tensors", (Field("image", "uint8", shape=(-1, 224, 3)),)),
        Signature("unknown", (), "none"),
    ],
)
def test_a_signature_survives_json(signature: Signature) -> None:
    assert Signature.from_json(json.loads(json.dumps(signature.as_json()))) == signature


def test_mlflows_column_types_are_known() -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "double": [1.5, 2.5],
            "float": np.array([1.5, 2.5], dtype=np.float32),
            "long": [1, 2],
            "integer": np.array([1, 2], dtype=np.int32),
            "boolean": [True, False],
            "string": ["a", "b"],
            "binary": [b"a", b"b"],
            "datetime": pd.to_datetime(["2026-01-01", "2026-01-02"]),
        }
    )
    signature = mlmodel_signature(frame)
    assert signature is not None
    assert (signature.layout, signature.origin) == ("columns", "model")
    assert {field.name: field.type for field in signature.inputs} == {name: name for name in frame.columns}
    assert all(field.required for field in signature.inputs)


def test_a_column_with_gaps_is_optional() -> None:
    import pandas as pd

    signature = mlmodel_signature(pd.DataFrame({"text": ["a", None], "number": [1.0, 2.0]}))
    assert signature is not None
    assert [(field.name, field.required) for field in signature.inputs] == [("text", False), ("number", True)]


def test_types_that_are_no_plain_values_are_unknown() -> None:
    import pandas as pd

    signature = mlmodel_signature(pd.DataFrame({"tags": [["a"], ["b", "c"]], "place": [{"x": 1}, {"x": 2}]}))
    assert signature is not None
    assert {field.type for field in signature.inputs} == {"any"}


def test_the_columns_of_a_frame_without_names_are_called_by_their_numbers() -> None:
    import pandas as pd

    signature = mlmodel_signature(pd.DataFrame(np.zeros((2, 3))))
    assert signature is not None
    assert signature.names == ("0", "1", "2")


def test_a_column_without_any_name_is_called_by_its_position() -> None:
    signature = Signature.from_mlmodel({"inputs": '[{"type": "double"}, {"type": "string"}]'})
    assert signature == columns(Field("column_0", "double"), Field("column_1", "string"))


def test_an_array_is_a_tensor_whose_first_axis_is_the_row() -> None:
    signature = mlmodel_signature(np.zeros((5, 28, 28), dtype=np.float32))
    assert signature == Signature("tensors", (Field("input_0", "float32", shape=(28, 28)),))


def test_named_arrays_keep_their_names_and_types() -> None:
    signature = mlmodel_signature({"ids": np.zeros((2, 8), dtype=np.int64), "flag": np.zeros(2, dtype=bool)})
    assert signature is not None
    assert {field.name: (field.type, field.shape) for field in signature.inputs} == {
        "ids": ("int64", (8,)),
        "flag": ("bool", ()),
    }


@pytest.mark.parametrize("written", [None, {}, {"outputs": "[]"}, {"inputs": None}, {"inputs": "[]"}])
def test_an_mlmodel_without_inputs_has_no_signature(written: dict[str, Any] | None) -> None:
    assert Signature.from_mlmodel(written) is None


# --- Batch -----------------------------------------------------------------------------------------------------------


def test_a_block_can_be_read_by_column() -> None:
    batch = Batch(("a", "b"), block=np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert batch.rows == 3
    assert batch.column("b").tolist() == [2.0, 4.0, 6.0]
    assert [column.tolist() for column in batch.columns] == [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]


def test_columns_keep_their_types() -> None:
    batch = Batch(("n", "s"), (np.array([1, 2]), np.array(["x", "y"], dtype=object)))
    assert batch.rows == 2
    assert batch.block is None
    assert batch.column("s").tolist() == ["x", "y"]


def test_an_unknown_column_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        Batch(("a",), block=np.zeros((1, 1))).column("b")


def test_predictions_are_told_apart_by_identity() -> None:
    values = np.array([1.0])
    assert Prediction(values) != Prediction(values)


# --- Classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "plain", "ids"),
    [
        (np.array([0, 1, 2]), (0, 1, 2), [0, 1, 2]),
        (np.array([-1, 1]), (-1, 1), [-1, 1]),
        (np.array([10, 20]), (10, 20), [10, 20]),
        (np.array([0.0, 1.0]), (0, 1), [0, 1]),
        (np.array([0.5, 1.5]), (0.5, 1.5), [0, 1]),
        (np.array([False, True]), (False, True), [0, 1]),
        (np.array(["no", "yes"]), ("no", "yes"), [0, 1]),
        (np.array(["no", "yes"], dtype=object), ("no", "yes"), [0, 1]),
    ],
)
def test_labels_become_plain_values_with_an_id(labels: np.ndarray, plain: tuple[Any, ...], ids: list[int]) -> None:
    classes = Classes.of(labels)
    assert classes.labels == plain
    assert [type(label) for label in classes.labels] == [type(label) for label in plain]
    assert [classes.class_id(position) for position in range(len(plain))] == ids
    assert json.loads(json.dumps(classes.labels)) == list(plain)


def test_classes_are_called_by_the_names_that_came_with_the_version() -> None:
    assert Classes.of(np.array([0, 1]), ["ham", "spam"]).names == ("ham", "spam")


@pytest.mark.parametrize("names", [None, [], ["ham"], ["ham", "spam", "eggs"]])
def test_classes_are_called_as_their_labels_when_the_names_do_not_fit(names: list[str] | None) -> None:
    assert Classes.of(np.array([3, 7]), names).names == ("3", "7")


@pytest.mark.parametrize(
    ("prediction", "names"),
    [
        (Prediction(np.zeros(2)), ["price"]),
        (Prediction(np.zeros(2), np.zeros((2, 3))), ["label", "probabilities"]),
        (Prediction(np.zeros(2), named={"a": np.zeros(2), "b": np.ones(2)}), ["a", "b"]),
    ],
    ids=["a value", "a class", "several"],
)
def test_answers_by_name(prediction: Prediction, names: list[str]) -> None:
    assert list(by_name(prediction, "price")) == names


@pytest.mark.parametrize(
    ("array", "kind", "shape"),
    [
        (np.zeros((2, 3), dtype=np.float32), "float32", (3,)),
        (np.array(["a", "b"]), "str", ()),
        (np.array(["a", "b"], dtype=object), "str", ()),
        (np.array(["a", 1], dtype=object), "any", ()),
        (np.array(["2026-01-31"], dtype="datetime64[ns]"), "datetime64[ns]", ()),
    ],
)
def test_outputs_described(array: np.ndarray, kind: str, shape: tuple[int, ...]) -> None:
    assert described({"y": array}) == (Field("y", kind, True, shape),)
