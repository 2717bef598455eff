"""Small real models in MLflow's format, and how the service reads them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from serving.runtimes import Predictor, runtime
from serving.tensors import Description, Prediction
from serving.transforms import tabular

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"

CLASS_NAMES = ("setosa", "versicolor", "virginica")
TRUSTED = ["sklearn.tree._tree.Tree", "numpy.dtype"]


def save_sklearn(folder: Path, estimator: Any, *, format: str = "pickle", **options: Any) -> Path:
    """Save a fitted estimator with MLflow; ``options`` are those of its ``save_model``."""
    import mlflow

    if format == "skops":
        options.setdefault("skops_trusted_types", TRUSTED)
    mlflow.sklearn.save_model(estimator, folder, serialization_format=format, pip_requirements=[], **options)
    return folder


def save_pyfunc(folder: Path, model: Any, **options: Any) -> Path:
    """Save a ``PythonModel`` or the path of its code with MLflow."""
    import mlflow

    mlflow.pyfunc.save_model(folder, python_model=model, pip_requirements=[], **options)
    return folder


def save_onnx(folder: Path, graph: Any, **options: Any) -> Path:
    """Save an ONNX graph with MLflow."""
    import mlflow

    mlflow.onnx.save_model(graph, folder, pip_requirements=[], **options)
    return folder


def write_sklearn(folder: Path, content: Any, *, dump: Callable[[Any], bytes] = pickle.dumps, **entries: Any) -> Path:
    """An MLmodel file by hand around any ``content``: quick to load, because nothing of scikit-learn is in it."""
    folder.mkdir(parents=True)
    flavor = {"pickled_model": "model.pkl", "serialization_format": "cloudpickle", "code": None}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"sklearn": flavor}, **entries}))
    (folder / "model.pkl").write_bytes(dump(content))
    return folder


def column_signature(**types: str) -> dict[str, str]:
    """The ``signature`` entry of an MLmodel file for required columns of these types."""
    inputs = ", ".join(f'{{"name": "{name}", "type": "{kind}", "required": true}}' for name, kind in types.items())
    return {"inputs": f"[{inputs}]"}


class Loaded:
    """A model that went through its runtime as prepare and a worker do it: converted, then loaded from the result."""

    def __init__(self, name: str, folder: Path, into: Path) -> None:
        into.mkdir(parents=True)
        model = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        self.description: Description = runtime(name).convert(model, folder, into)
        self.predict: Predictor = runtime(name).load(into)

    def answer(self, features: Any) -> Prediction:
        """What the model says to JSON rows, checked against its signature."""
        batch, _ = tabular.parse(self.description.signature, features)
        return self.predict(batch)


def flowers() -> tuple[Any, np.ndarray]:
    """Iris as a frame, and the species by number."""
    from sklearn.datasets import load_iris

    return load_iris(return_X_y=True, as_frame=True)


def signature_of(inputs: Any) -> dict[str, Any]:
    """The ``signature`` entry of an MLmodel file, as MLflow infers it from a model's input."""
    from mlflow.models import infer_signature

    written: dict[str, Any] = infer_signature(inputs).to_dict()
    return written
