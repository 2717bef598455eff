"""Models of every kind that MLflow's own server answers differently for, as MLflow saves them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

HOUSES = pd.DataFrame(
    {
        "town": ["Ulm", "Ulm", "Jena", "Jena", "Kiel", "Kiel"],
        "rooms": [2, 4, 3, 5, 1, 6],
        "area": [50.0, 110.0, 80.0, 140.0, 30.0, 200.0],
        "garden": [False, True, False, True, False, True],
        "year": [1990.0, None, 2010.0, None, 1950.5, 2020.0],
    }
).astype({"rooms": "int32"})
TYPES = {"town": "string", "rooms": "integer", "area": "double", "garden": "boolean", "year": "double"}


@dataclass(frozen=True)
class Scored:
    """A saved model, and rows that fit it: ``rows`` under ``names``, which are empty for a model of one array."""

    name: str
    folder: Path
    names: tuple[str, ...]
    rows: list[list[Any]]


def save(name: str, home: Path) -> Scored:
    """The model called ``name``, saved under ``home``."""
    folder = home / name
    frame = SAVED[name](folder)
    if isinstance(frame, np.ndarray):
        return Scored(name, folder, (), frame.tolist())
    plain = frame.astype(object).where(frame.notna(), None)
    return Scored(name, folder, tuple(map(str, frame.columns)), plain.to_numpy().tolist())


def _flowers(folder: Path) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    frame, labels = _iris()
    forest = RandomForestClassifier(5, random_state=0).fit(frame, labels)
    _save_sklearn(folder, forest, frame, labels)
    return frame.iloc[::7]


def _chances(folder: Path) -> Any:
    from sklearn.linear_model import LogisticRegression

    frame, labels = _iris()
    names = np.array(["setosa", "versicolor", "virginica"])[labels]
    model = LogisticRegression(max_iter=500).fit(frame, names)
    _save_sklearn(folder, model, frame, model.predict_proba(frame), pyfunc_predict_fn="predict_proba")
    return frame.iloc[::7]


def _houses(folder: Path) -> Any:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from sklearn.compose import make_column_transformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    from sklearn.tree import DecisionTreeRegressor

    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["town"]), remainder="passthrough")
    model = make_pipeline(columns, DecisionTreeRegressor(random_state=0))
    model.fit(HOUSES, [150.0, 310.0, 210.0, 350.0, 90.0, 500.0])
    inputs = Schema([ColSpec(kind, name, required=name != "year") for name, kind in TYPES.items()])
    signature = ModelSignature(inputs, Schema([ColSpec("double")]))
    options = {"signature": signature, "input_example": HOUSES.head(2), "serialization_format": "cloudpickle"}
    mlflow.sklearn.save_model(model, folder, pip_requirements=[], **options)
    return HOUSES


def _several(folder: Path) -> Any:
    from sklearn.datasets import load_diabetes
    from sklearn.tree import DecisionTreeRegressor

    frame, target = load_diabetes(return_X_y=True, as_frame=True)
    both = np.column_stack([target, target / 7])
    _save_sklearn(folder, DecisionTreeRegressor(max_depth=5, random_state=0).fit(frame, both), frame, both)
    return frame.iloc[::20]


def _graph(folder: Path) -> Any:
    """A graph of 32-bit floats behind a frame."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LinearRegression

    frame, labels = _iris()
    model = LinearRegression().fit(frame.to_numpy(), labels)
    _save_onnx(folder, to_onnx(model, initial_types=[("X", FloatTensorType([None, 4]))]), frame, frame.head(3))
    return frame.iloc[::7]


def _arrays(folder: Path) -> Any:
    """A graph behind an array, with several outputs."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LogisticRegression

    frame, labels = _iris()
    values = frame.to_numpy().astype(np.float32)
    model = LogisticRegression(max_iter=500).fit(values, labels)
    graph = to_onnx(model, initial_types=[("X", FloatTensorType([None, 4]))], options={"zipmap": False})
    _save_onnx(folder, graph, values, values[:3])
    return values[::7]


def _scaling(folder: Path) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    def answer(frame: Any, params: Any) -> Any:
        scaled = frame["area"] * params["factor"] + params["rooms"] * frame["rooms"]
        return (scaled + sum(params["more"])).to_numpy() if params["up"] else [params["word"]] * len(frame)

    params = [
        ParamSpec("factor", DataType.double, 2.0),
        ParamSpec("rooms", DataType.long, 0),
        ParamSpec("up", DataType.boolean, True),
        ParamSpec("word", DataType.string, "none"),
        ParamSpec("more", DataType.double, [0.0], (-1,)),
    ]
    inputs = Schema([ColSpec(TYPES[name], name) for name in ("rooms", "area")])
    _save_pyfunc(folder, answer, ModelSignature(inputs, None, ParamSchema(params)), HOUSES[["rooms", "area"]])
    return HOUSES[["rooms", "area"]]


def _framing(folder: Path) -> Any:
    """It answers frames, with a column of every kind that JSON has no form for."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    def answer(frame: Any, _: Any) -> Any:
        import pandas as pd

        return pd.DataFrame(
            {
                "town": frame["town"].astype(object),
                "rooms": frame["rooms"] * 2,
                "half": (frame["area"] / 3).astype("float32"),
                "gap": frame["area"].where(frame["area"] > 60),
                "when": pd.to_datetime(frame["area"], unit="s"),
                "bytes": [town.encode() * 30 for town in frame["town"]],
                "lists": [[rooms] * rooms for rooms in frame["rooms"].tolist()],
            }
        )

    names = ("town", "rooms", "area")
    inputs = Schema([ColSpec(TYPES[name], name) for name in names])
    _save_pyfunc(folder, answer, ModelSignature(inputs), HOUSES[[*names]])
    return HOUSES[[*names]]


def _listing(folder: Path) -> Any:
    """It answers a Series."""
    from mlflow.models import infer_signature

    frame = HOUSES[["area"]]
    _save_pyfunc(folder, lambda frame, _: frame["area"] * 2, infer_signature(frame), frame)
    return frame


def _naming(folder: Path) -> Any:
    """It answers an object of arrays."""
    from mlflow.models import infer_signature

    def answer(frame: Any, _: Any) -> Any:
        return {"low": (frame["area"] - 1).to_numpy(), "high": (frame["area"] + 1).tolist()}

    frame = HOUSES[["area"]]
    _save_pyfunc(folder, answer, infer_signature(frame), frame)
    return frame


SAVED: dict[str, Callable[[Path], Any]] = {
    "flowers": _flowers,
    "chances": _chances,
    "houses": _houses,
    "several": _several,
    "graph": _graph,
    "arrays": _arrays,
    "scaling": _scaling,
    "framing": _framing,
    "listing": _listing,
    "naming": _naming,
}


def _iris() -> tuple[Any, Any]:
    from sklearn.datasets import load_iris

    frame, labels = load_iris(return_X_y=True, as_frame=True)
    return frame, labels.to_numpy()


def _save_sklearn(folder: Path, model: Any, frame: Any, answers: Any, **options: Any) -> None:
    import mlflow
    from mlflow.models import infer_signature

    signature = infer_signature(frame, answers)
    options |= {"signature": signature, "input_example": frame.head(3), "serialization_format": "cloudpickle"}
    mlflow.sklearn.save_model(model, folder, pip_requirements=[], **options)


def _save_onnx(folder: Path, graph: Any, inputs: Any, example: Any) -> None:
    import mlflow
    from mlflow.models import infer_signature

    signature = infer_signature(inputs)
    mlflow.onnx.save_model(graph, folder, signature=signature, input_example=example, pip_requirements=[])


def _save_pyfunc(folder: Path, answer: Any, signature: Any, example: Any) -> None:
    import mlflow.pyfunc

    class Answering(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return answer(model_input, params)

    options = {"signature": signature, "input_example": example.head(2), "pip_requirements": []}
    mlflow.pyfunc.save_model(folder, python_model=Answering(), **options)
