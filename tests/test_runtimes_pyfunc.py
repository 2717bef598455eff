"""The pyfunc runtime: whatever MLflow can load answers as MLflow itself lets it answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from samples import Loaded, save_pyfunc

from serving.errors import InvalidInput

FRAME = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]})
ROWS = [{"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 5.0}, {"a": 3.0, "b": 6.0}]


def model_of(answer: Any) -> PythonModel:
    """A model that answers its input with ``answer(input)``; local, so that it is saved by value."""

    class Answering(PythonModel):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return answer(model_input)

    return Answering()


def loaded(tmp_path: Path, model: Any, **options: Any) -> Loaded:
    """Saved by MLflow, converted, and loaded as a worker does."""
    return Loaded("pyfunc", save_pyfunc(tmp_path / "model", model, **options), tmp_path / "bundle")


SIGNED = {"signature": infer_signature(FRAME, None)}

# What a model may answer for the three rows, and what comes of it.
ANSWERS: dict[str, tuple[Any, list[Any]]] = {
    "array": (lambda frame: frame["a"].to_numpy() * 2, [2.0, 4.0, 6.0]),
    "array of rows": (lambda frame: frame.to_numpy(), [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]),
    "Series": (lambda frame: frame["a"] + frame["b"], [5.0, 7.0, 9.0]),
    "list of numbers": (lambda frame: [float(value) for value in frame["a"]], [1.0, 2.0, 3.0]),
    "list of NumPy numbers": (lambda frame: list(frame["a"].to_numpy().astype(int)), [1, 2, 3]),
    "list of texts": (lambda frame: [f"{value:g}" for value in frame["a"]], ["1", "2", "3"]),
    "list of lists": (lambda frame: [[value] * int(value) for value in frame["a"]], [[1.0], [2.0] * 2, [3.0] * 3]),
    "list of objects": (lambda frame: [{"x": value} for value in frame["a"]], [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]),
    "tuple": (lambda frame: tuple(frame["a"] > 1.5), [False, True, True]),
    "DataFrame of one column": (lambda frame: frame[["a"]], [1.0, 2.0, 3.0]),
    "dict of one": (lambda frame: {"score": frame["a"].tolist()}, [1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_of_any_kind_is_one_value_a_row(tmp_path: Path, kind: str) -> None:
    answer, expected = ANSWERS[kind]
    got = loaded(tmp_path, model_of(answer), **SIGNED).answer(ROWS)
    assert isinstance(got.values, np.ndarray)
    assert got.values.tolist() == expected
    assert (got.named, got.probabilities) == (None, None)


NAMED: dict[str, Any] = {
    "DataFrame": lambda frame: pd.DataFrame({"low": frame["a"] - 1, "high": frame["a"] + 1}),
    "dict of arrays": lambda frame: {"low": frame["a"].to_numpy() - 1, "high": frame["a"].to_numpy() + 1},
    "dict of lists": lambda frame: {"low": (frame["a"] - 1).tolist(), "high": (frame["a"] + 1).tolist()},
    "dict of Series": lambda frame: {"low": frame["a"] - 1, "high": frame["a"] + 1},
}


@pytest.mark.parametrize("kind", NAMED)
def test_several_outputs_come_by_name(tmp_path: Path, kind: str) -> None:
    got = loaded(tmp_path, model_of(NAMED[kind]), **SIGNED).answer(ROWS)
    assert got.named is not None
    assert {name: values.tolist() for name, values in got.named.items()} == {"low": [0, 1, 2], "high": [2, 3, 4]}
    assert got.values.tolist() == [0, 1, 2]


def test_a_dict_of_single_values_answers_a_single_row(tmp_path: Path) -> None:
    answer = model_of(lambda _: {"score": 0.5, "label": "yes", "tags": ["a"]})
    got = loaded(tmp_path, answer, **SIGNED).answer(ROWS[0])
    assert got.named is not None
    assert {name: values.tolist() for name, values in got.named.items()} == {
        "score": [0.5],
        "label": ["yes"],
        "tags": ["a"],
    }
    assert len(got.values) == 1


@pytest.mark.parametrize("value", [0.5, "text", None])
def test_a_bare_value_answers_a_single_row(tmp_path: Path, value: Any) -> None:
    assert loaded(tmp_path, model_of(lambda _: value), **SIGNED).answer(ROWS[0]).values.tolist() == [value]


# --- input -----------------------------------------------------------------------------------------------------------


def test_a_frame_has_the_signatures_columns_and_types(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "text": ["a", "b"],
            "number": [1.5, 2.5],
            "whole": [1, 2],
            "small": np.array([1, 2], dtype=np.int32),
            "flag": [True, False],
            "when": pd.to_datetime(["2026-01-01", "2026-01-02"]).astype("datetime64[ns]"),
            "raw": [b"\x00", b"\xff"],
        }
    )
    describe = model_of(lambda given: [f"{name} {given[name].dtype} {given[name].iloc[1]!r}" for name in given])
    model = loaded(tmp_path, describe, signature=infer_signature(frame, None))
    row = {"raw": "/w==", "when": "2026-01-02", "flag": False, "small": 2, "whole": 2, "number": 2.5, "text": "b"}
    got = model.answer([{**row, "text": "a"}, row]).values.tolist()
    assert got == [f"{name} {frame[name].dtype} {frame[name].iloc[1]!r}" for name in frame]


def test_an_optional_column_may_be_left_out(tmp_path: Path) -> None:
    schema = Schema([ColSpec(DataType.double, "a"), ColSpec(DataType.string, "note", required=False)])
    model = loaded(tmp_path, model_of(lambda frame: frame["note"].isna()), signature=ModelSignature(schema))
    assert model.answer([{"a": 1.0}, {"a": 2.0, "note": "x"}]).values.tolist() == [True, False]
    assert model.answer([{"a": 1.0}]).values.tolist() == [True]


@pytest.mark.parametrize("kind", ["boolean", "datetime", "binary", "float", "double", "string"])
def test_an_optional_column_of_any_type_may_have_gaps(tmp_path: Path, kind: str) -> None:
    schema = Schema([ColSpec(DataType.double, "a"), ColSpec(DataType[kind], "x", required=False)])
    model = loaded(tmp_path, model_of(lambda frame: frame["x"].isna()), signature=ModelSignature(schema))
    value = {"boolean": True, "datetime": "2026-01-01", "binary": "AA==", "string": "s"}.get(kind, 1)
    assert model.answer([{"a": 1.0, "x": value}, {"a": 2.0, "x": None}]).values.tolist() == [False, True]


@pytest.mark.parametrize("kind", ["integer", "long"])
def test_gaps_among_whole_numbers_are_refused_as_mlflow_refuses_them(tmp_path: Path, kind: str) -> None:
    schema = Schema([ColSpec(DataType.double, "a"), ColSpec(DataType[kind], "x", required=False)])
    model = loaded(tmp_path, model_of(lambda frame: frame["x"] * 2), signature=ModelSignature(schema))
    assert model.answer([{"a": 1.0, "x": 1}, {"a": 2.0, "x": 2}]).values.tolist() == [2, 4]
    with pytest.raises(InvalidInput, match="row 1, column 'x': MLflow takes no missing values among whole numbers"):
        model.answer([{"a": 1.0, "x": 1}, {"a": 2.0, "x": None}])


@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_an_array_has_the_signatures_shape_and_type(tmp_path: Path, shape: tuple[int, ...]) -> None:
    given = np.arange(np.prod(shape) * 2, dtype=np.float32).reshape(2, *shape)
    describe = model_of(lambda array: [f"{array.dtype} {array.shape[1:]} {row.sum()}" for row in array])
    model = loaded(tmp_path, describe, signature=infer_signature(given, None))
    assert model.answer(given.tolist()).values.tolist() == [f"float32 {shape} {row.sum()}" for row in given]


def test_several_arrays_come_by_name(tmp_path: Path) -> None:
    given = {"ids": np.array([[1, 2], [3, 4]]), "mask": np.array([[True, False], [True, True]])}
    add = model_of(lambda arrays: (arrays["ids"] * arrays["mask"]).sum(axis=1))
    model = loaded(tmp_path, add, signature=infer_signature(given, None))
    rows = [{"ids": [1, 2], "mask": [True, False]}, {"ids": [3, 4], "mask": [True, True]}]
    assert model.answer(rows).values.tolist() == [1, 7]


def test_params_have_their_defaults(tmp_path: Path) -> None:
    class Scaling(PythonModel):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input["a"] * params["factor"]

    params = ParamSchema([ParamSpec("factor", DataType.double, 10.0)])
    signature = ModelSignature(infer_signature(FRAME, None).inputs, None, params)
    model = loaded(tmp_path, Scaling(), signature=signature)
    assert model.answer(ROWS).values.tolist() == [10.0, 20.0, 30.0]


def test_without_a_signature_objects_come_as_a_frame_and_lists_as_an_array(tmp_path: Path) -> None:
    model = loaded(tmp_path, model_of(lambda given: [type(given).__name__] * len(given)))
    assert (model.description.signature.layout, model.description.signature.origin) == ("unknown", "none")
    assert model.answer(ROWS).values.tolist() == ["DataFrame"] * 3
    assert model.answer([[1, 2], [3, 4]]).values.tolist() == ["ndarray"] * 2
    assert model.answer([["a", 2], ["b", 4]]).values.tolist() == ["ndarray"] * 2


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_that_were_logged_with_the_model_come_along(tmp_path: Path) -> None:
    class Reading(PythonModel):
        def load_context(self, context: Any) -> None:
            self.text = Path(context.artifacts["words"]).read_text()

        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return [self.text] * len(model_input)

    (tmp_path / "words.txt").write_text("good")
    model = loaded(tmp_path, Reading(), artifacts={"words": str(tmp_path / "words.txt")}, **SIGNED)
    (tmp_path / "words.txt").unlink()
    assert model.answer(ROWS).values.tolist() == ["good"] * 3


FROM_CODE = """
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class FromCode(PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input["a"] * 3

set_model(FromCode())
"""


def test_a_model_may_be_its_code(tmp_path: Path) -> None:
    (tmp_path / "tripling.py").write_text(FROM_CODE)
    model = loaded(tmp_path, str(tmp_path / "tripling.py"), **SIGNED)
    assert model.answer(ROWS).values.tolist() == [3.0, 6.0, 9.0]


def test_a_scikit_learn_model_answers_through_pyfunc_too(tmp_path: Path) -> None:
    from samples import flowers, save_sklearn
    from sklearn.tree import DecisionTreeClassifier

    frame, labels = flowers()
    tree = DecisionTreeClassifier(max_depth=2, random_state=0).fit(frame, labels)
    folder = save_sklearn(tmp_path / "model", tree, signature=infer_signature(frame, labels))
    model = Loaded("pyfunc", folder, tmp_path / "bundle")
    assert np.array_equal(model.answer(frame.to_numpy()[::10].tolist()).values, tree.predict(frame.iloc[::10]))


def test_a_model_that_raises_raises(tmp_path: Path) -> None:
    def fail(frame: Any) -> Any:
        raise RuntimeError("out of ideas")

    with pytest.raises(RuntimeError, match="out of ideas"):
        loaded(tmp_path, model_of(fail), **SIGNED).answer(ROWS)
