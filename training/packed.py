"""Deep models: a folder with a graph and how to feed it, logged as one artifact with the code that runs it."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from serving.tensors import Prediction
from training.family import About

EXAMPLE_ROWS = 3
GRAPH = "model.onnx"


@dataclass(frozen=True)
class Packed:
    """The flavor of models whose folder is all that there is to them.

    ``kind`` is what the service knows them by, and what the artifact, the folder, its JSON file and the only input
    column are called. ``code`` is a module of this package that MLflow runs. ``load_folder`` makes of a folder what
    answers: a function from a list of inputs to an array, with the JSON file's content in ``about``.
    """

    kind: str
    type: DataType
    output: TensorSpec
    code: str
    load_folder: Callable[[Path], Any]
    answered: Callable[[np.ndarray], Prediction]
    packages: tuple[str, ...]

    def pack(self, write: Callable[[Path], Mapping[str, Any]]) -> Any:
        """A model in a folder of its own, which goes when the model does.

        ``write`` leaves the graph and what belongs to it there, and returns the JSON file's content.
        """
        home = Path(tempfile.mkdtemp(prefix=f"{self.kind}-"))
        folder = home / self.kind
        folder.mkdir()
        try:
            about = write(folder)
            (folder / f"{self.kind}.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
            model = self.load_folder(folder)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
        weakref.finalize(model, shutil.rmtree, home, ignore_errors=True)
        model.folder = folder
        return model

    def predict(self, model: Any, inputs: Any) -> Prediction:
        """The answers to the rows, as MLflow's own server computes them."""
        return self.answered(model(inputs[self.kind].tolist()))

    def log(self, model: Any, inputs: Any, class_names: tuple[str, ...]) -> str:
        """Log the folder under the active run as ``model``; the versions that it ran with are its requirements."""
        names = {"class_names": list(class_names)} if class_names else {}
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name(f"{self.code}.py")),
            artifacts={self.kind: str(model.folder)},
            signature=ModelSignature(Schema([ColSpec(self.type, self.kind)]), Schema([self.output])),
            input_example=inputs.iloc[:EXAMPLE_ROWS].reset_index(drop=True),
            pip_requirements=[f"{package}=={version(package)}" for package in self.packages],
            metadata={self.kind: f"artifacts/{self.kind}", **names},
        )
        return logged.model_id

    def load(self, folder: Path) -> Any:
        """The model in ``folder``, from its graph: none of the version's code is run."""
        return self.load_folder(folder / "artifacts" / self.kind)


def about(model: Any) -> About:
    """What the JSON file of a model's folder says that people should know."""
    content = model.about
    found = dict(content["agreement"] or {})
    numbers = {name: value for name, value in found.items() if isinstance(value, float)}
    text = ", ".join(f"{name.replace('_', ' ')} {value:.6g}" for name, value in numbers.items())
    agreement = f"{text} (compared with {found['with']} on {found['rows']} rows)" if found else "not measured"
    tags = {"precision": content["precision"], "weights": content["weights"], "agreement": agreement}
    words = f"{content['weights']}. Served in {content['precision']}: {agreement}."
    return About(words, tags, {f"agreement_{name}": value for name, value in numbers.items()})
