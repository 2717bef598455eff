"""What all servers serve: one random forest and one gradient boosting on iris, logged once with MLflow.

They lie in a registry of their own with two versions each, so that an alias has somewhere to go.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("forest", "boosting")
VERSIONS = ("1", "2")
ALIAS = "champion"


@dataclass(frozen=True)
class Model:
    """A registered model and the files of its versions. ``home`` is the bench's folder."""

    name: str
    home: Path

    @property
    def uri(self) -> str:
        """The registry."""
        return registry_uri(self.home)

    def folder(self, version: str = "1") -> Path:
        """The MLflow model of a version."""
        return self.home / "models" / self.name / version

    def file(self, version: str = "1") -> Path:
        """The pickle in it, which every server reads."""
        return self.folder(version) / "model.pkl"

    @cached_property
    def estimators(self) -> dict[str, Any]:
        """scikit-learn's own, by version."""
        return {version: pickle.loads(self.file(version).read_bytes()) for version in VERSIONS}

    def expected(self, rows: np.ndarray, version: str = "1") -> tuple[np.ndarray, np.ndarray]:
        """What scikit-learn itself says of ``rows`` (n × 4): labels (n) and probabilities (n × 3)."""
        named = frame(rows)
        estimator = self.estimators[version]
        return estimator.predict(named), estimator.predict_proba(named)


def registry_uri(home: Path) -> str:
    return f"sqlite:///{home / 'registry.db'}"


def frame(rows: np.ndarray) -> Any:
    """``rows`` under the names of iris."""
    import pandas as pd
    from sklearn.datasets import load_iris

    return pd.DataFrame(rows, columns=load_iris().feature_names)


def column_names() -> list[str]:
    from sklearn.datasets import load_iris

    return list(load_iris().feature_names)


def some_rows(count: int) -> np.ndarray:
    """``count`` rows like those of iris, the same ones every time; to one decimal, as people measure flowers."""
    from sklearn.datasets import load_iris

    rng = np.random.default_rng(7)
    measured = load_iris().data
    rows = measured[rng.integers(0, len(measured), count)] + rng.normal(0, 0.3, (count, 4))
    return np.round(np.clip(rows, 0.1, 9), 1)


def unlike(rows: np.ndarray) -> np.ndarray:
    """As many rows, all of the smallest setosa: another answer than to those of `some_rows`."""
    return np.tile([4.3, 3.0, 1.1, 0.1], (len(rows), 1))


def prepare(home: Path) -> dict[str, Model]:
    """The models by name; trained, logged and registered if they are not there yet."""
    models = {name: Model(name, home) for name in NAMES}
    done = home / "models" / "done"
    if not done.exists():
        _log_all(home, models)
        done.touch()
    return models


def _log_all(home: Path, models: dict[str, Model]) -> None:
    import mlflow
    from sklearn.datasets import load_iris
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

    for left in (home / "registry.db", home / "registry.db-journal"):
        left.unlink(missing_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(registry_uri(home))
    mlflow.set_registry_uri(registry_uri(home))
    experiment = mlflow.create_experiment("bench", artifact_location=(home / "artifacts").as_uri())
    X, y = load_iris(return_X_y=True, as_frame=True)
    families = {"forest": RandomForestClassifier, "boosting": GradientBoostingClassifier}
    for name, family in families.items():
        for version in VERSIONS:
            with mlflow.start_run(experiment_id=experiment):
                _log(models[name], version, family(n_estimators=100, random_state=int(version)).fit(X, y), X)


def _log(model: Model, version: str, estimator: Any, X: Any) -> None:
    import mlflow
    import sklearn
    from mlflow import MlflowClient

    from serving.digest import folder_digest
    from serving.registry import DIGEST_TAG

    mlflow.sklearn.log_model(
        estimator,
        name=model.name,
        signature=mlflow.models.infer_signature(X, estimator.predict(X)),
        input_example=X.head(3),
        serialization_format="cloudpickle",  # the one format that every peer can read
        pip_requirements=[f"scikit-learn=={sklearn.__version__}"],
        registered_model_name=model.name,
    )
    client = MlflowClient()
    folder = model.folder(version)
    folder.mkdir(parents=True, exist_ok=True)
    mlflow.artifacts.download_artifacts(f"models:/{model.name}/{version}", dst_path=str(folder))
    client.set_model_version_tag(model.name, version, DIGEST_TAG, folder_digest(folder))
    if version == VERSIONS[0]:
        client.set_registered_model_alias(model.name, ALIAS, version)
