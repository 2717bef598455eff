"""The ONNX runtime: graphs as converters and MLflow write them answer as ONNX Runtime itself does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import yaml
from mlflow.models import infer_signature
from onnx import TensorProto, helper
from samples import CLASS_NAMES, Loaded, flowers, save_onnx
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from serving.errors import InvalidInput, VersionRefused
from serving.tensors import Field

X, Y = flowers()
VALUES = X.to_numpy()
ROWS: list[list[float]] = VALUES[::10].tolist()


def loaded(tmp_path: Path, graph: Any, **options: Any) -> Loaded:
    """Saved by MLflow, converted, and loaded as a worker does."""
    return Loaded("onnx", save_onnx(tmp_path / "model", graph, **options), tmp_path / "bundle")


def one_node(
    operator: str, inputs: Sequence[tuple[str, int, list[Any]]], kind: int, shape: list[Any], **attributes: Any
) -> onnx.ModelProto:
    """A graph of one operator with one output ``y``."""
    given = [helper.make_tensor_value_info(*value) for value in inputs]
    output = helper.make_tensor_value_info("y", kind, shape)
    node = helper.make_node(operator, [name for name, _, _ in inputs], ["y"], **attributes)
    graph = helper.make_graph([node], "graph", given, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def identity(kind: int, *shape: Any) -> onnx.ModelProto:
    return one_node("Identity", [("x", kind, ["n", *shape])], kind, ["n", *shape])


# --- classifiers and regressors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipmap", [True, False], ids=["with ZipMap", "without ZipMap"])
@pytest.mark.parametrize("signed", [True, False], ids=["signature", "no signature"])
def test_a_classifier_gives_labels_and_probabilities(tmp_path: Path, zipmap: bool, signed: bool) -> None:
    forest = RandomForestClassifier(3, max_depth=3, random_state=0).fit(VALUES, Y)
    graph = to_onnx(forest, VALUES[:1].astype(np.float32), options={id(forest): {"zipmap": zipmap}})
    signature = {"signature": infer_signature(VALUES.astype(np.float32), Y)} if signed else {}
    model = loaded(tmp_path, graph, metadata={"class_names": list(CLASS_NAMES)}, **signature)
    answer = model.answer(ROWS)
    assert np.array_equal(answer.values, forest.predict(VALUES[::10]))
    assert answer.probabilities is not None
    assert answer.probabilities.shape == (len(ROWS), 3)
    assert np.allclose(answer.probabilities, forest.predict_proba(VALUES[::10]), atol=1e-6)
    assert model.description.classes is not None
    assert model.description.classes.names == CLASS_NAMES
    assert model.description.signature.origin == ("model" if signed else "inferred")


def test_a_classifier_whose_class_names_nobody_gave_has_none(tmp_path: Path) -> None:
    estimator = LogisticRegression(max_iter=500).fit(VALUES, Y)
    model = loaded(tmp_path, to_onnx(estimator, VALUES[:1].astype(np.float32)))
    assert model.description.classes is None
    assert model.answer(ROWS).values.tolist() == estimator.predict(VALUES[::10]).tolist()


def test_class_names_alone_make_no_classifier(tmp_path: Path) -> None:
    model = loaded(tmp_path, identity(TensorProto.FLOAT, 4), metadata={"class_names": list(CLASS_NAMES)})
    assert model.description.classes is None


def test_labels_may_be_texts(tmp_path: Path) -> None:
    labels = np.array(CLASS_NAMES)[Y]
    estimator = LogisticRegression(max_iter=500).fit(VALUES, labels)
    model = loaded(tmp_path, to_onnx(estimator, VALUES[:1].astype(np.float32)))
    assert model.answer(ROWS).values.tolist() == estimator.predict(VALUES[::10]).tolist()


def test_a_regressor_gives_one_value_a_row(tmp_path: Path) -> None:
    estimator = LinearRegression().fit(VALUES[:, :3], VALUES[:, 3])
    model = loaded(tmp_path, to_onnx(estimator, VALUES[:1, :3]))
    answer = model.answer([row[:3] for row in ROWS])
    assert answer.values.shape == (len(ROWS),)
    assert np.allclose(answer.values, estimator.predict(VALUES[::10, :3]), atol=1e-9)
    assert answer.probabilities is None


def test_several_outputs_come_by_name(tmp_path: Path) -> None:
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("left", "right")]
    node = helper.make_node("Split", ["x"], ["left", "right"], axis=1, num_outputs=2)
    graph = helper.make_graph([node], "graph", given, outputs)
    model = loaded(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    answer = model.answer([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert answer.named is not None
    assert {name: values.tolist() for name, values in answer.named.items()} == {
        "left": [[1, 2], [5, 6]],
        "right": [[3, 4], [7, 8]],
    }
    assert np.array_equal(answer.values, answer.named["left"])


# --- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [True, False], ids=["signature", "no signature"])
def test_one_input_for_each_column(tmp_path: Path, signed: bool) -> None:
    frame = pd.DataFrame({"city": ["Wien", "Köln", "Bern"] * 5, "age": np.arange(15.0), "income": np.arange(15.0) ** 2})
    texts = ColumnTransformer([("c", OneHotEncoder(handle_unknown="ignore"), ["city"])], remainder="passthrough")
    pipeline = make_pipeline(texts, LogisticRegression(max_iter=500)).fit(frame, frame["age"] > 7)
    types = [("city", StringTensorType([None, 1]))] + [(n, FloatTensorType([None, 1])) for n in ("age", "income")]
    graph = to_onnx(pipeline, initial_types=types, options={"zipmap": False})
    signature = {"signature": infer_signature(frame, np.array([True]))} if signed else {}
    model = loaded(tmp_path, graph, **signature)
    rows: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    if not signed:
        assert model.description.signature.inputs[0] == Field("city", "str", shape=(1,))
        rows = [{name: [value] for name, value in row.items()} for row in rows]
    answer = model.answer(rows)
    assert answer.probabilities is not None
    assert np.allclose(answer.probabilities, pipeline.predict_proba(frame), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_single_column_fits_a_graph_that_takes_rows(tmp_path: Path, dtype: str) -> None:
    estimator = LinearRegression().fit(VALUES[:, :1], VALUES[:, 1])
    frame = X.iloc[:, :1].astype(dtype)
    graph = to_onnx(estimator, VALUES[:1, :1].astype(np.float32))
    model = loaded(tmp_path, graph, signature=infer_signature(frame, VALUES[:, 1]))
    answer = model.answer([[row[0]] for row in ROWS])
    assert np.allclose(answer.values, estimator.predict(VALUES[::10, :1]), atol=1e-5)


@pytest.mark.parametrize("columns", [{"a": "float32", "b": "float32"}, {"a": "float64", "b": "int64"}])
def test_columns_of_other_types_than_the_graphs_are_put_together(tmp_path: Path, columns: dict[str, Any]) -> None:
    frame = pd.DataFrame({"a": [1.5, 2.5], "b": [3, 4]}).astype(columns)
    model = loaded(tmp_path, identity(TensorProto.FLOAT, 2), signature=infer_signature(frame, frame))
    assert model.answer([{"b": 3, "a": 1.5}, {"a": 2.5, "b": 4}]).values.tolist() == [[1.5, 3.0], [2.5, 4.0]]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (TensorProto.FLOAT, "float32", 1.5),
        (TensorProto.DOUBLE, "float64", 1.5),
        (TensorProto.FLOAT16, "float16", 1.5),
        (TensorProto.INT64, "int64", -3),
        (TensorProto.INT32, "int32", -3),
        (TensorProto.INT16, "int16", -3),
        (TensorProto.INT8, "int8", -3),
        (TensorProto.UINT64, "uint64", 2**64 - 1),
        (TensorProto.UINT32, "uint32", 3),
        (TensorProto.UINT16, "uint16", 3),
        (TensorProto.UINT8, "uint8", 255),
        (TensorProto.BOOL, "bool", True),
        (TensorProto.STRING, "str", "ä"),
    ],
)
def test_a_graph_without_a_signature_tells_its_types_and_shapes(
    tmp_path: Path, kind: int, name: str, value: Any
) -> None:
    model = loaded(tmp_path, identity(kind, 2, "any"))
    assert model.description.signature.inputs == (Field("x", name, shape=(2, -1)),)
    rows = [[[value] * 3] * 2] * 4
    assert model.answer(rows).values.tolist() == rows


def test_a_type_that_rows_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VersionRefused, match=r"its input 'x' has the type tensor\(bfloat16\)") as caught:
        loaded(tmp_path, identity(TensorProto.BFLOAT16, 2))
    assert caught.value.reason == "load_failed"


# --- never a silent cast ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "good", "bad", "message"),
    [
        (TensorProto.FLOAT, "float64", 1e38, 1e39, "a value is beyond the range of float32"),
        (TensorProto.FLOAT16, "float64", 6e4, -7e4, "a value is beyond the range of float16"),
        (TensorProto.INT64, "float64", 2.0, 2.5, "a value cannot be int64"),
        (TensorProto.INT64, "float64", -2.0, 1e19, "a value cannot be int64"),
        (TensorProto.INT32, "int64", 2**31 - 1, 2**31, "a value cannot be int32"),
        (TensorProto.UINT8, "int64", 255, -1, "a value cannot be uint8"),
        (TensorProto.BOOL, "int64", 1, 2, "a value cannot be bool"),
    ],
)
def test_what_the_graph_cannot_hold_is_the_callers_error(
    tmp_path: Path, kind: int, given: str, good: Any, bad: Any, message: str
) -> None:
    """The signature takes a wider type than the graph: what fits both goes through, the rest is named."""
    model = loaded(tmp_path, identity(kind, 2), signature=infer_signature(np.zeros((1, 2), given), None))
    assert model.answer([[good, good]]).values.shape == (1, 2)
    with pytest.raises(InvalidInput) as caught:
        model.answer([[good, good], [good, good], [good, bad]])
    assert (caught.value.row, caught.value.what) == (2, message)


# --- files -----------------------------------------------------------------------------------------------------------


def test_weights_in_files_of_their_own_come_along(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(4, 600)).astype(np.float32)
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 600])]
    tensor = helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True)
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "graph", given, outputs, [tensor])
    model = loaded(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "bundle" / "model").iterdir()}
    assert sizes["model.onnx"] < weights.nbytes <= max(sizes.values())
    assert np.allclose(model.answer(ROWS).values, VALUES[::10] @ weights, atol=1e-4)


def test_a_bundle_needs_nothing_of_the_version_it_was_made_from(tmp_path: Path) -> None:
    from serving.runtimes import onnx as onnx_runtime
    from serving.transforms import tabular

    model = loaded(tmp_path, identity(TensorProto.FLOAT, 2))
    (tmp_path / "model").rename(tmp_path / "gone")
    (tmp_path / "bundle").rename(tmp_path / "elsewhere")
    batch, _ = tabular.parse(model.description.signature, [1, 2])
    assert onnx_runtime.load(tmp_path / "elsewhere")(batch).values.tolist() == [[1.0, 2.0]]


def test_a_model_file_outside_its_folder_is_refused(tmp_path: Path) -> None:
    folder = save_onnx(tmp_path / "model", identity(TensorProto.FLOAT, 2))
    (folder / "model.onnx").rename(tmp_path / "outside.onnx")
    written = yaml.safe_load((folder / "MLmodel").read_text())
    written["flavors"]["onnx"]["data"] = "../outside.onnx"
    (folder / "MLmodel").write_text(yaml.safe_dump(written))
    with pytest.raises(VersionRefused, match="lies outside its folder") as caught:
        Loaded("onnx", folder, tmp_path / "bundle")
    assert caught.value.reason == "bad_path"


@pytest.mark.parametrize("damage", ["truncated", "absent"])
def test_a_damaged_graph_does_not_load(tmp_path: Path, damage: str) -> None:
    folder = save_onnx(tmp_path / "model", identity(TensorProto.FLOAT, 2))
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").unlink()
    if damage == "truncated":
        (folder / "model.onnx").write_bytes(content[:-7])
    with pytest.raises(Exception, match=r"model\.onnx"):
        Loaded("onnx", folder, tmp_path / "bundle")


def test_a_graph_whose_inputs_the_signature_does_not_name_is_refused(tmp_path: Path) -> None:
    graph = one_node(
        "Add", [("a", TensorProto.FLOAT, ["n", 1]), ("b", TensorProto.FLOAT, ["n", 1])], TensorProto.FLOAT, ["n", 1]
    )
    frame = pd.DataFrame({"a": [1.0], "other": [2.0]})
    with pytest.raises(VersionRefused, match="its graph takes 'b', which its signature does not name") as caught:
        loaded(tmp_path, graph, signature=infer_signature(frame, np.array([[3.0]])))
    assert caught.value.reason == "load_failed"
