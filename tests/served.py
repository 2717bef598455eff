"""What services under test have in common: their settings, and small models that are real."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flask import Flask
from senses import save_pictures, save_sentences
from texts import save_texts

from app import create_app
from serving.digest import folder_digest
from serving.registry import LocalFiles, Version
from serving.settings import Settings, names

MAX_BODY_BYTES = 2000
MAX_ROWS = 100
DEEP_LIMITS = {"max_image_pixels": 10_000, "max_images": 3, "max_text_characters": 100, "max_texts": 3}


def settings_of(home: Path, **changed: Any) -> Settings:
    """Settings of a service that has ``home`` to itself, and a registry that cannot be reached."""
    own = {
        "mlflow_tracking_uri": f"sqlite:///{home / 'nothing' / 'mlflow.db'}",
        "models": ("iris", "prices"),
        "state_dir": home / "state",
        "model_dir": home / "models",
        "max_body_bytes": MAX_BODY_BYTES,
        "max_rows": MAX_ROWS,
    }
    return Settings(**{**own, **changed})


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[Flask]:
    """A service in this process, closed at the end. How this process logs stays as it was."""
    loggers = [logging.getLogger(name) for name in (None, "serving", "gunicorn")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    app = create_app(settings)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
    try:
        yield app
    finally:
        app.extensions["service"].close()


def environment(settings: Settings) -> dict[str, str]:
    """The environment in which ``python app.py`` has ``settings``, whatever is set here."""
    kept = {name: value for name, value in os.environ.items() if name not in names()}
    plain = {name: getattr(settings, name.lower()) for name in names()}
    given = {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in plain.items()}
    return {**kept, **{name: value for name, value in given.items() if value}}


def free_port() -> int:
    """A port of the loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the models ------------------------------------------------------------------------------------------------------


def publish(home: Path) -> None:
    """Leave the models under ``home/models``, as training does with what it promoted."""
    _save(home, "iris", "1", *_iris())
    _save(home, "prices", "7", *_prices())
    _publish(home, "texts", "3", save_texts(home / "saved" / "texts"))
    _publish(home, "pictures", "2", save_pictures(home / "saved" / "pictures"))
    _publish(home, "sentences", "5", save_sentences(home / "saved" / "sentences"))


def _publish(home: Path, name: str, version: str, folder: Path) -> None:
    plain = Version(name, version, "champion", "local", str(folder), digest=folder_digest(folder))
    LocalFiles(home / "models").publish(plain, folder)


def _save(home: Path, name: str, version: str, estimator: Any, frame: Any, signature: Any, metadata: Any) -> None:
    import mlflow.sklearn

    folder = home / "saved" / name
    mlflow.sklearn.save_model(
        estimator,
        folder,
        signature=signature,
        input_example=frame.iloc[:: max(1, len(frame) // 3)].head(3),
        metadata=metadata,
        serialization_format="cloudpickle",
        pip_requirements=[],
    )
    _publish(home, name, version, folder)


def _iris() -> tuple[Any, Any, Any, Any]:
    """A tree of two questions, whose probabilities are shares of the 150 flowers: the same bits everywhere."""
    from mlflow.models import infer_signature
    from sklearn.datasets import load_iris
    from sklearn.tree import DecisionTreeClassifier

    bunch = load_iris(as_frame=True)
    tree = DecisionTreeClassifier(max_depth=2, random_state=0).fit(bunch.data, bunch.target)
    metadata = {"class_names": [str(name) for name in bunch.target_names]}
    return tree, bunch.data, infer_signature(bunch.data, bunch.target), metadata


def _prices() -> tuple[Any, Any, Any, Any]:
    """A regressor with a column of every simple type, an optional one, and a function of its own.

    It takes only towns that it knows, and fails where there is less than no area. The function keeps it native.
    """
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from sklearn.compose import make_column_transformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder
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

    def surveyed(houses: Any) -> Any:
        if (houses["area"] < 0).any():
            raise RuntimeError("nobody measured Atlantis")
        return houses

    columns = make_column_transformer((OneHotEncoder(handle_unknown="error"), ["town"]), remainder="passthrough")
    steps = FunctionTransformer(surveyed), columns, DecisionTreeRegressor(random_state=0)
    estimator = make_pipeline(*steps).fit(frame, [150, 310, 210, 350])
    types = {"town": "string", "rooms": "long", "area": "double", "garden": "boolean", "year": "double"}
    inputs = Schema([ColSpec(kind, name, required=name != "year") for name, kind in types.items()])
    return estimator, frame, ModelSignature(inputs, Schema([ColSpec("double")])), None
