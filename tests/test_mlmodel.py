"""What is read of an MLmodel file, whatever stands in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving import mlmodel
from serving.errors import VersionRefused

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
