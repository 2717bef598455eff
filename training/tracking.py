"""The way to MLflow: where runs, models and versions are written, and read back."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse

import mlflow
import sqlalchemy
from mlflow import MlflowClient
from mlflow.data.dataset import Dataset
from mlflow.data.numpy_dataset import from_numpy
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Experiment
from mlflow.entities.model_registry import ModelVersion

from serving.errors import RegistryUnreachable, UnknownModel
from serving.registry import Auth, Ref, registry_at
from serving.registry.moves import Aliases, Move, actor
from serving.settings import Settings
from training.data import Data, Rows
from training.failure import brief, without_password


def connect(settings: Settings, ref: Ref) -> None:
    """Point MLflow at the tracking store of ``settings``.

    Looks first whether it is there, because MLflow's own client would try for minutes. Raises `RegistryUnreachable`
    when it is not, or when the folder of an SQLite file cannot be made.
    """
    uri = settings.mlflow_tracking_uri
    auth = Auth(settings.mlflow_tracking_username, settings.mlflow_tracking_password, settings.mlflow_tracking_token)
    if urlparse(uri).scheme in ("http", "https"):
        _look(uri, auth, ref)
    elif "sql" in urlparse(uri).scheme:
        _open(uri)
    _log_in(auth)
    mlflow.set_tracking_uri(uri)


def experiment(name: str) -> Experiment:
    """The experiment called ``name``, made if there is none, with an artifact store that answers.

    Beside an SQLite file its artifacts get a folder there; elsewhere the store knows better where they belong.
    Raises `RegistryUnreachable` when they could not be put there: now, and not when all the work is done.
    """
    found = mlflow.get_experiment_by_name(name) or _new_experiment(name)
    _look_into(found.artifact_location)
    return found


def log_dataset(data: Data, name: str) -> None:
    """Say in the active run what it learned from, and what it is judged on."""
    for rows, context in ((data.train, "training"), (data.holdout, "holdout")):
        mlflow.log_input(_dataset(rows, name, data.digest), context=context)


def fetch_logged(model_id: str, into: Path) -> Path:
    """A logged model's files as the artifact store gives them, in a folder in ``into``."""
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{model_id}", dst_path=str(into)))


def register(model_id: str, name: str, tags: Mapping[str, str]) -> ModelVersion:
    """Make the logged model the next version of the registered model ``name``."""
    with contextlib.redirect_stderr(io.StringIO()):  # it tells its story there whatever the log level
        return mlflow.register_model(f"models:/{model_id}", name, tags=dict(tags))


def describe(version: ModelVersion, words: str) -> None:
    """Write what people read first of a registered version."""
    MlflowClient().update_model_version(version.name, version.version, words)


def set_tags(version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Set tags of a registered version."""
    client = MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, value)


def behind(name: str, alias: str) -> ModelVersion | None:
    """The version that the alias names now, or None when there is no such model or alias."""
    try:
        return MlflowClient().get_model_version_by_alias(name, alias)
    except mlflow.MlflowException as err:
        if err.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def move(alias: str, version: ModelVersion) -> str | None:
    """Let the alias name ``version``; what it named before."""
    aliases = Aliases(MlflowClient())
    before = aliases.holder(version.name, alias)
    aliases.move(version.name, alias, str(version.version))
    return before


def record(alias: str, version: ModelVersion, before: str | None, gate: str) -> None:
    """Put on record that `move` was done; ``gate`` is what let it pass."""
    Aliases(MlflowClient()).record(version.name, Move(alias, before, str(version.version), actor(), "trained", gate))


def fetch(version: ModelVersion, into: Path) -> Path:
    """The version's files as the artifact store gives them, in a folder in ``into``."""
    uri = MlflowClient().get_model_version_download_uri(version.name, version.version)
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(into)))


def _look(uri: str, auth: Auth, ref: Ref) -> None:
    with contextlib.suppress(UnknownModel):  # nothing is registered yet, but somebody answered
        registry_at(uri, auth).resolve(ref)


def _new_experiment(name: str) -> Experiment:
    file = _sqlite_file(mlflow.get_tracking_uri())
    place = (file.parent / "artifacts" / name).as_uri() if file is not None else None
    return mlflow.get_experiment(mlflow.create_experiment(name, artifact_location=place))


def _look_into(artifacts: str) -> None:
    """Ask for a folder that nobody has: the answer is short however much lies there."""
    try:
        mlflow.artifacts.list_artifacts(artifact_uri=f"{artifacts}/no-such-folder")
    except Exception as err:  # every store has errors of its own
        raise RegistryUnreachable(f"artifact store {without_password(artifacts)}: {brief(err)}") from err


def _open(uri: str) -> None:
    try:
        if (file := _sqlite_file(uri)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        sqlalchemy.inspect(sqlalchemy.create_engine(uri)).get_table_names()
    except (OSError, sqlalchemy.exc.SQLAlchemyError, ImportError) as err:  # the last: no driver for this database
        raise RegistryUnreachable(f"tracking store {without_password(uri)}: {brief(err)}") from err


def _sqlite_file(uri: str) -> Path | None:
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()


def _log_in(auth: Auth) -> None:
    """MLflow's client reads these from the environment only; ours may have come from a file."""
    for name in ("username", "password", "token"):
        if value := getattr(auth, name):
            os.environ[f"MLFLOW_TRACKING_{name.upper()}"] = value


def _dataset(rows: Rows, name: str, digest: str) -> Dataset:
    if hasattr(rows.inputs, "columns"):
        return from_pandas(rows.inputs.assign(label=rows.labels), targets="label", name=name, digest=digest)
    return from_numpy(rows.inputs, targets=rows.labels, name=name, digest=digest)
