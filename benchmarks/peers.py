"""Who is measured: how each server is installed, started, asked and understood."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from benchmarks.answers import Said
from benchmarks.environments import Environment
from benchmarks.models import ALIAS, Model, column_names
from benchmarks.processes import Start
from serving.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
SERVERS = Path(__file__).resolve().parent / "servers"
HOST = "127.0.0.1"
# What whoever runs the bench has set must not reach the servers: they run with their defaults.
NOT_HANDED_ON = ("MLFLOW", "MLSERVER", "BENTOML", "PROMETHEUS", "PYTHON", "VIRTUAL_ENV", "GUNICORN", "FLASK", "UVICORN")
OUR_SETTINGS = {field.name.upper() for field in fields(Settings)}


@dataclass(frozen=True)
class Place:
    """Where a server runs: a folder of its own under ``home``, its environment, a free port for each need."""

    home: Path
    environment: Environment
    ports: tuple[int, int, int]
    model: Model

    @property
    def port(self) -> int:
        return self.ports[0]


@dataclass(frozen=True)
class Peer:
    """A server. ``packages`` go into the environment ``venv``; without one it is that of the project."""

    name: str
    title: str
    command: Callable[[Place], list[str]]
    path: str
    body: Callable[[np.ndarray], bytes]
    said: Callable[[bytes], Said]
    venv: str | None = None
    packages: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()  # distributions whose versions the report names
    settings: Callable[[Place], dict[str, str]] = lambda _: {}
    files: Callable[[Place], dict[str, object]] = lambda _: {}
    floor: bool = False
    note: str = ""

    def environment(self, home: Path) -> Environment:
        folder = home / "venvs" / self.venv if self.venv else Path(sys.prefix)
        return Environment(folder, self.packages)

    def start(self, place: Place) -> Start:
        """Its files written, its command ready."""
        folder = place.home / self.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files(place).items():
            (folder / name).write_text(json.dumps(content))
        given = {"MODEL_FILE": str(place.model.file()), "PYTHONPATH": str(SERVERS)} if self.venv else {}
        environment = clean_environment(os.environ, place, {**given, **self.settings(place)})
        return Start(self.command(place), environment, folder, folder / "log")

    def forget(self, place: Place) -> None:
        """Remove what it left for its next start."""
        shutil.rmtree(place.home / self.name, ignore_errors=True)


def clean_environment(present: Mapping[str, str], place: Place, own: Mapping[str, str]) -> dict[str, str]:
    """``own`` over what is ``present``, less any settings, with the peer's programs found first."""
    kept = {
        name: value
        for name, value in present.items()
        if not name.startswith(NOT_HANDED_ON) and name not in OUR_SETTINGS
    }
    bin_folder = str(place.environment.folder / "bin")
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "BENTOML_DO_NOT_TRACK": "True"}
    path = os.pathsep.join([bin_folder, kept.get("PATH", os.defpath)])
    return {**kept, "PATH": path, **quiet, **own}


# --- how each is asked -----------------------------------------------------------------------------------------------


def features_body(rows: np.ndarray) -> bytes:
    """Ours: one row alone, many as a list."""
    return _json({"features": rows[0].tolist()} if len(rows) == 1 else {"instances": rows.tolist()})


def rows_body(rows: np.ndarray) -> bytes:
    return _json({"rows": rows.tolist()})


def frame_body(rows: np.ndarray) -> bytes:
    """MLflow's ``dataframe_split``: the model was logged with named columns."""
    return _json({"dataframe_split": {"columns": column_names(), "data": rows.tolist()}})


def tensor_body(rows: np.ndarray) -> bytes:
    """Open Inference Protocol, one tensor."""
    tensor = {"name": "predict", "shape": list(rows.shape), "datatype": "FP64", "data": rows.ravel().tolist()}
    return _json({"parameters": {"content_type": "np"}, "inputs": [tensor]})


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


# --- how each is understood ------------------------------------------------------------------------------------------


def said_by_ours(body: bytes) -> Said:
    content = json.loads(body)
    if "predictions" in content:
        answers = content["predictions"]
    else:
        answers = [{**content["prediction"], "probabilities": content["probabilities"]}]
    return Said([row["class_id"] for row in answers], [list(row["probabilities"].values()) for row in answers])


def said_plainly(body: bytes) -> Said:
    content = json.loads(body)
    return Said(content["labels"], content["probabilities"])


def said_by_mlflow(body: bytes) -> Said:
    return Said(json.loads(body)["predictions"])


def said_in_tensors(body: bytes) -> Said:
    return Said(json.loads(body)["outputs"][0]["data"])


def said_nothing(_: bytes) -> Said:
    return Said([])


# --- how each is started ---------------------------------------------------------------------------------------------


def _our_settings(place: Place) -> dict[str, str]:
    folder = place.home / "ours"
    return {
        "MLFLOW_TRACKING_URI": place.model.uri,
        "MODELS": place.model.name,
        "STATE_DIR": str(folder / f"state-{place.model.name}"),
        "MODEL_DIR": str(folder / "models"),
        "PORT": str(place.port),
    }


def _floor_settings(place: Place) -> dict[str, str]:
    folder = place.home / "floor"
    found = os.pathsep.join([str(ROOT), str(SERVERS)])
    return {"STATE_DIR": str(folder), "PORT": str(place.port), "PYTHONPATH": found}


def _floor(application: str) -> Callable[[Place], list[str]]:
    configured = ["-m", "gunicorn", "-c", "python:serving.gunicorn_conf"]
    return lambda _: [sys.executable, *configured, f"floors:{application}"]


def _mlserver_settings(place: Place) -> dict[str, str]:
    ports = dict(zip(("HTTP", "GRPC", "METRICS"), map(str, place.ports), strict=True))
    return {"MLSERVER_HOST": HOST, **{f"MLSERVER_{name}_PORT": port for name, port in ports.items()}}


def _mlserver_files(implementation: str, uri: Callable[[Model], Path]) -> Callable[[Place], dict[str, object]]:
    def files(place: Place) -> dict[str, object]:
        parameters = {"uri": str(uri(place.model))}
        return {"model-settings.json": {"name": "m", "implementation": implementation, "parameters": parameters}}

    return files


# MLServer 1.7.1 asks for an event loop that uvloop 0.22 no longer makes up: with that it ends at its start.
MLSERVER = {
    "venv": "mlserver",
    "packages": ("mlserver", "mlserver-mlflow", "mlserver-sklearn", "mlflow==3.17.2", "uvloop<0.22"),
    "command": lambda place: [place.environment.program("mlserver"), "start", "."],
    "settings": _mlserver_settings,
}
PLAIN = {
    "venv": "plain",
    "packages": ("flask==3.1.3", "gunicorn==26.2.0", "fastapi", "uvicorn[standard]"),
    "path": "/predict",
    "body": rows_body,
    "said": said_plainly,
}
NOTHING = {"path": "/predict", "body": features_body, "said": said_nothing, "settings": _floor_settings, "floor": True}

PEERS = (
    Peer(
        "ours",
        "this service",
        lambda _: [sys.executable, str(ROOT / "app.py")],
        "/predict",
        features_body,
        said_by_ours,
        shown=("flask", "gunicorn", "onnxruntime", "scikit-learn", "numpy"),
        settings=_our_settings,
    ),
    Peer(
        "mlflow",
        "mlflow models serve",
        lambda place: [
            place.environment.program("mlflow"),
            *("models", "serve", "-m", f"models:/{place.model.name}@{ALIAS}", "--env-manager", "local"),
            *("--host", HOST, "--port", str(place.port)),
        ],
        "/invocations",
        frame_body,
        said_by_mlflow,
        venv="mlflow",
        packages=("mlflow==3.17.2",),
        shown=("mlflow", "fastapi", "uvicorn"),
        settings=lambda place: {"MLFLOW_TRACKING_URI": place.model.uri},
        note="answers labels only",
    ),
    Peer(
        "mlserver",
        "MLServer (scikit-learn runtime)",
        path="/v2/models/m/infer",
        body=tensor_body,
        said=said_in_tensors,
        shown=("mlserver", "mlserver-sklearn"),
        files=_mlserver_files("mlserver_sklearn.SKLearnModel", lambda model: model.file()),
        note="answers labels only",
        **MLSERVER,
    ),
    Peer(
        "mlserver-mlflow",
        "MLServer (MLflow runtime)",
        path="/invocations",
        body=frame_body,
        said=said_by_mlflow,
        shown=("mlserver", "mlserver-mlflow", "mlflow"),
        files=_mlserver_files("mlserver_mlflow.MLflowRuntime", lambda model: model.folder()),
        note="answers labels only",
        **MLSERVER,
    ),
    Peer(
        "bentoml",
        "BentoML",
        lambda place: [
            place.environment.program("bentoml"),
            *("serve", "bento:Classifier", "--host", HOST, "--port", str(place.port)),
            *("--working-dir", str(SERVERS)),
        ],
        "/predict",
        rows_body,
        said_plainly,
        venv="bentoml",
        packages=("bentoml",),
        shown=("bentoml",),
        settings=lambda place: {"BENTOML_HOME": str(place.home / "bentoml" / "home")},
    ),
    Peer(
        "litserve",
        "LitServe",
        lambda place: [str(place.environment.python), str(SERVERS / "lit.py"), str(place.port)],
        "/predict",
        rows_body,
        said_plainly,
        venv="litserve",
        packages=("litserve",),
        shown=("litserve",),
    ),
    Peer(
        "fastapi",
        "plain FastAPI, uvicorn",
        lambda place: [
            place.environment.program("uvicorn"),
            *("plain_fastapi:app", "--host", HOST, "--port", str(place.port)),
        ],
        shown=("fastapi", "uvicorn"),
        **PLAIN,
    ),
    Peer(
        "flask",
        "plain Flask, gunicorn",
        lambda place: [
            place.environment.program("gunicorn"),
            *("--threads", "4", "--bind", f"{HOST}:{place.port}", "plain_flask:app"),
        ],
        shown=("flask", "gunicorn"),
        **PLAIN,
    ),
    Peer("floor-wsgi", "floor: the same gunicorn, empty WSGI application", _floor("wsgi_app"), **NOTHING),
    Peer("floor-flask", "floor: the same gunicorn, empty Flask route", _floor("flask_app"), **NOTHING),
    Peer("floor-loop", "floor: the same, answered on our loop", _floor("loop_app"), **NOTHING),
)
BY_NAME = {peer.name: peer for peer in PEERS}
