"""A registry with a model of each kind that protocols differ over, and a service with two workers over it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import Running, wait_for
from registered import Registered
from texts import save_texts

from serving.digest import folder_digest
from serving.registry import DIGEST_TAG

MODELS = ("iris", "houses", "texts")


@contextlib.contextmanager
def published(home: Path, **settings: str) -> Iterator[Running]:
    """A service of `MODELS`, all of them live in both workers: a graph of classes, a frame of houses, texts."""
    registered = Registered(home / "registry")
    registered.add_graph(seed=1)
    registered.point("1")
    add(registered, "houses", _save_houses(home / "houses"))
    add(registered, "texts", save_texts(home / "texts"))
    ours = {"MODELS": ",".join(MODELS), "WEB_CONCURRENCY": "2", "DRAIN_S": "0", **settings}
    service = Running(home / "service", registered.uri, ours)
    try:
        service.start()
        wait_for(lambda: service.call("/readyz").status == 200 and _all_live(service), 90, "not every model is live")
        yield service
    finally:
        service.kill()


def _all_live(service: Running) -> bool:
    lines = service.call("/models").json["models"]
    return all(line["ready"] and line["workers"] == {"acknowledged": 2, "total": 2} for line in lines)


def add(registered: Registered, name: str, folder: Path) -> str:
    """Register the model in ``folder`` as the champion of ``name``."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=registered.uri, registry_uri=registered.uri)
    with contextlib.suppress(MlflowException):
        client.create_registered_model(name)
    version = client.create_model_version(name, str(folder), tags={DIGEST_TAG: folder_digest(folder)})
    client.set_registered_model_alias(name, "champion", str(version.version))
    return str(version.version)


def _save_houses(folder: Path) -> Path:
    """A regressor behind a pipeline, over a column of every simple type, one of them optional."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from sklearn.compose import make_column_transformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    from sklearn.tree import DecisionTreeRegressor

    frame = pd.DataFrame(
        {
            "town": ["Ulm", "Ulm", "Jena", "Jena"],
            "rooms": [2, 4, 3, 5],
            "area": [50.0, 110.0, 80.0, 140.0],
            "garden": [False, True, False, True],
            "year": [1990.0, None, 2010.0, None],
        }
    )
    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["town"]), remainder="passthrough")
    estimator: Any = make_pipeline(columns, DecisionTreeRegressor(random_state=0)).fit(frame, [150, 310, 210, 350])
    types = {"town": "string", "rooms": "long", "area": "double", "garden": "boolean", "year": "double"}
    inputs = Schema([ColSpec(kind, name, required=name != "year") for name, kind in types.items()])
    signature = ModelSignature(inputs, Schema([ColSpec("double")]))
    mlflow.sklearn.save_model(
        estimator,
        folder,
        signature=signature,
        input_example=frame.head(2),
        serialization_format="cloudpickle",
        pip_requirements=[],
    )
    return folder
