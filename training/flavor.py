"""How models are written to MLflow and read back."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import infer_signature
from sklearn.model_selection import FixedThresholdClassifier

from serving.tensors import Prediction

EXAMPLE_ROWS = 3


@dataclass(frozen=True)
class ScikitLearn:
    """Models and pipelines of scikit-learn, written by skops, which names every type that loading may create."""

    trusted: tuple[str, ...] = ("sklearn.tree._tree.Tree",)  # beyond those that skops knows to be harmless
    packages: tuple[str, ...] = ("mlflow", "numpy", "pandas", "scikit-learn", "skops")

    def predict(self, model: Any, inputs: Any) -> Prediction:
        """All rows in one call; probabilities where the model has them."""
        probabilities = model.predict_proba(inputs) if hasattr(model, "predict_proba") else None
        return Prediction(np.asarray(model.predict(inputs)), probabilities)

    def log(self, model: Any, inputs: Any, class_names: tuple[str, ...]) -> str:
        """Log the model under the active run as ``model``; the versions that it ran with are its requirements.

        A threshold that decides for the second of two classes is a parameter of the run, and part of the metadata.
        """
        decision = _decision(model, class_names)
        mlflow.log_params(decision)
        logged = mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(inputs, model.predict(inputs)),
            input_example=_spread(inputs),
            serialization_format="skops",
            skops_trusted_types=list(self.trusted),
            pip_requirements=[f"{package}=={version(package)}" for package in self.packages],
            metadata={"class_names": list(class_names), **decision},
        )
        return logged.model_id

    def load(self, folder: Path) -> Any:
        """The model in ``folder``, with the types that its own MLmodel trusts: only for what we registered."""
        return mlflow.sklearn.load_model(str(folder))


def _decision(model: Any, class_names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(model, FixedThresholdClassifier) or model.threshold == "auto":
        return {}
    return {"threshold": float(model.threshold), "positive_class": class_names[1]}


def _spread(inputs: Any) -> Any:
    """A few rows from all over the data, so that an example shows more than one class."""
    return inputs[:: max(1, len(inputs) // EXAMPLE_ROWS)][:EXAMPLE_ROWS]
