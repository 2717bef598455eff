"""A registry that tests fill with versions made of real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from registries import empty_registry

from serving import drift
from serving.digest import folder_digest
from serving.registry import DIGEST_TAG
from serving.tensors import Batch, Classes, Prediction
from training.profile import profile

CLASS_NAMES = ["setosa", "versicolor", "virginica"]


class Registered:
    """An SQLite registry; ``folders`` has the files of each version of ``iris`` by its number."""

    def __init__(self, home: Path, uri: str | None = None) -> None:
        from mlflow import MlflowClient

        self.home = home
        self.uri = uri or empty_registry(home / "mlflow.db")
        self.folders: dict[str, Path] = {}
        self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self._client.create_registered_model("iris")

    def add(self, folder: Path, *, digest: str | None = None, tags: dict[str, str] | None = None) -> str:
        """Register the model in ``folder`` with its digest, or with the one that is given."""
        recorded = {DIGEST_TAG: digest or folder_digest(folder), **(tags or {})}
        version = self._client.create_model_version("iris", str(folder), tags=recorded)
        self.folders[str(version.version)] = folder
        return str(version.version)

    def add_model(self, estimator: Any, frame: Any, *, tags: dict[str, str] | None = None) -> str:
        """Register a fitted scikit-learn model, saved as MLflow does."""
        import mlflow

        folder = self.home / f"model-{len(self.folders) + 1}"
        mlflow.sklearn.save_model(
            estimator,
            folder,
            signature=mlflow.models.infer_signature(frame, estimator.predict(frame)),
            input_example=frame.head(3),
            metadata={"class_names": CLASS_NAMES},
            skops_trusted_types=["sklearn.tree._tree.Tree"],
        )
        return self.add(folder, tags=tags)

    def add_graph(self, seed: int) -> str:
        """Register a random forest on iris as an ONNX graph, which starts and answers fast."""
        import mlflow
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import FloatTensorType
        from sklearn.datasets import load_iris
        from sklearn.ensemble import RandomForestClassifier

        X, y = load_iris(return_X_y=True, as_frame=True)
        forest = RandomForestClassifier(10, random_state=seed).fit(X.to_numpy(), y)
        graph = to_onnx(forest, initial_types=[("X", FloatTensorType([None, 4]))], options={"zipmap": False})
        folder = self.home / f"model-{len(self.folders) + 1}"
        mlflow.onnx.save_model(
            graph,
            folder,
            signature=mlflow.models.infer_signature(X, forest.predict(X.to_numpy())),
            input_example=X.head(3),
            metadata={"class_names": CLASS_NAMES},
        )
        return self.add(folder)

    def add_forest(self, seed: int) -> str:
        """Register a random forest on iris as scikit-learn has it."""
        from sklearn.datasets import load_iris
        from sklearn.ensemble import RandomForestClassifier

        X, y = load_iris(return_X_y=True, as_frame=True)
        return self.add_model(RandomForestClassifier(10, random_state=seed).fit(X, y), X)

    def add_profiled(self, version: str = "1") -> str:
        """Register a version once more, with the profile that training leaves beside it."""
        from sklearn.datasets import load_iris
        from sklearn.ensemble import RandomForestClassifier

        X, y = load_iris(return_X_y=True)
        forest = RandomForestClassifier(10, random_state=1).fit(X, y)
        learned = Batch(tuple(load_iris().feature_names), tuple(X.T.copy()))
        answered = Prediction(forest.predict(X), forest.predict_proba(X))
        made = profile(learned, answered, Classes.of(range(3), CLASS_NAMES), gate={"accuracy": 0.9})
        folder = Path(shutil.copytree(self.folders[version], self.home / f"model-{len(self.folders) + 1}"))
        (folder / drift.FILE_NAME).write_text(json.dumps(made.as_json()))
        return self.add(folder)

    def add_misbehaving(self, how: str) -> str:
        """Register a version that ``raises``, ``hangs`` or ``is slow`` for flowers of more than a metre."""
        import mlflow
        from sklearn.datasets import load_iris

        X, y = load_iris(return_X_y=True, as_frame=True)
        folder = self.home / f"model-{len(self.folders) + 1}"
        mlflow.sklearn.save_model(
            _misbehaving(how).fit(X, y),
            folder,
            signature=mlflow.models.infer_signature(X, y),
            input_example=X.head(3),
            metadata={"class_names": CLASS_NAMES},
            serialization_format="cloudpickle",
        )
        return self.add(folder)

    def add_as(self, name: str, version: str) -> None:
        """Register a version once more, as the champion of another model."""
        folder = self.folders[version]
        self._client.create_registered_model(name)
        made = self._client.create_model_version(name, str(folder), tags={DIGEST_TAG: folder_digest(folder)})
        self._client.set_registered_model_alias(name, "champion", made.version)

    def point(self, version: str, alias: str = "champion", *, route: str | None = None) -> None:
        """Move the alias; with ``route``, the version's tag first."""
        if route is not None:
            self._client.set_model_version_tag("iris", version, "route", route)
        self._client.set_registered_model_alias("iris", alias, version)

    def no_challenger(self) -> None:
        """Take that alias away."""
        self._client.delete_registered_model_alias("iris", "challenger")


def _misbehaving(how: str) -> Any:
    """A classifier that goes along in its own pickle, because no server has this file."""
    from sklearn.linear_model import LogisticRegression

    class Misbehaves(LogisticRegression):
        def predict_proba(self, rows: Any) -> Any:
            import time

            import numpy as np

            if np.asarray(rows)[:, 0].max() > 100:
                if how == "raises":
                    raise RuntimeError("not today")
                time.sleep(600 if how == "hangs" else 0.5)
            return super().predict_proba(rows)

    return Misbehaves(max_iter=500)
