"""What is read of an MLmodel file, whatever stands in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving import mlmodel
from serving.errors import VersionRefused
from serving.tensors import Classes

PARAMS = '[{"name": "top_k", "type": "long", "default": 3, "shape": null}]'


def model(outputs: str | None = None, params: str | None = None, **pyfunc: Any) -> dict[str, Any]:
    return {"flavors": {"python_function": pyfunc}, "signature": {"outputs": outputs, "params": params}}


def test_a_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors:\n  sklearn: {}\n")
    assert mlmodel.read(tmp_path) == {"flavors": {"sklearn": {}}}


@pytest.mark.parametrize("content", [b"", b"[]", b"flavors: 1", b"\xff", b"a: [", None])
def test_what_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "MLmodel").write_bytes(content)
    with pytest.raises(VersionRefused) as caught:
        mlmodel.read(tmp_path)
    assert caught.value.reason == ("missing_files" if content is None else "load_failed")


def test_how_mlflow_would_call_it() -> None:
    found = mlmodel.pyfunc(model(params=PARAMS, loader_module="mlflow.sklearn", predict_fn="predict_proba"))
    top_k = {"name": "top_k", "type": "long", "default": 3, "shape": None}
    assert found == {"loader": "mlflow.sklearn", "predict_fn": "predict_proba", "params": [top_k]}


@pytest.mark.parametrize("params", [None, "", "{", "7", "[1]"])
def test_parameters_that_are_none(params: str | None) -> None:
    assert (mlmodel.pyfunc(model(params=params)) or {})["params"] == []


def test_no_pyfunc() -> None:
    assert mlmodel.pyfunc({"flavors": {"onnx": {}}}) is None


@pytest.mark.parametrize(
    ("outputs", "name"),
    [
        ('[{"type": "double", "name": "price"}]', "price"),
        ('[{"type": "long"}]', None),
        ('[{"type": "long", "name": 0}]', "0"),
        ('[{"type": "long", "name": "a"}, {"type": "long", "name": "b"}]', None),
        (None, None),
    ],
)
def test_the_name_of_the_only_output(outputs: str | None, name: str | None) -> None:
    assert mlmodel.only_output(model(outputs)) == name


def test_without_a_signature() -> None:
    assert mlmodel.only_output({"flavors": {}, "signature": None}) is None


CLASSES = Classes((0, 1), ("legitimate", "fraud"))


def test_the_threshold_of_the_second_class() -> None:
    metadata = {"threshold": 0.25, "positive_class": "fraud"}
    assert mlmodel.threshold({"metadata": metadata}, CLASSES) == 0.25


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"threshold": 0.25},
        {"threshold": 0.25, "positive_class": "legitimate"},
        {"threshold": "0.25", "positive_class": "fraud"},
        {"threshold": True, "positive_class": "fraud"},
        {"threshold": float("nan"), "positive_class": "fraud"},
    ],
)
def test_a_threshold_that_says_nothing_is_none(metadata: dict[str, Any] | None) -> None:
    assert mlmodel.threshold({"metadata": metadata}, CLASSES) is None


@pytest.mark.parametrize("classes", [None, Classes((0, 1, 2), ("a", "fraud", "c"))])
def test_a_threshold_is_for_two_classes(classes: Classes | None) -> None:
    assert mlmodel.threshold({"metadata": {"threshold": 0.25, "positive_class": "fraud"}}, classes) is None
