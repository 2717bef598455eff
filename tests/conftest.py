"""Small models that are real, prepared once for all tests, and services that start from them in a moment."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from served import DEEP_LIMITS, environment, free_port, publish, running, settings_of
from werkzeug.serving import make_server

from serving.settings import ROOT

READY_S = 180.0


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``models`` and a ``state`` in which they are prepared; made once, however many processes test."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prepared"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "done").exists():
            publish(home)
            with running(settings_of(home, models=("iris", "prices", "texts", "pictures", "sentences"))) as app:
                _await_ready(app)
            (home / "done").touch()
    return home


@pytest.fixture(scope="session")
def app(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """A service in this process that serves ``iris`` and ``prices`` from local files, as their versions 1 and 7."""
    home = tmp_path_factory.mktemp("service")
    shutil.copytree(prepared / "state", home / "state")
    with running(settings_of(home, model_dir=prepared / "models")) as app:
        _await_ready(app)
        yield app


@pytest.fixture(scope="session")
def texts_app(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """A service in this process that serves ``iris``, and ``texts`` as its version 3, which makes vectors of them."""
    home = tmp_path_factory.mktemp("texts")
    shutil.copytree(prepared / "state", home / "state")
    with running(settings_of(home, models=("iris", "texts"), model_dir=prepared / "models")) as app:
        _await_ready(app)
        yield app


@pytest.fixture(scope="session")
def deep_app(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """A service in this process of ``pictures`` and ``sentences``, versions 2 and 5, whose limits small bodies hit."""
    home = tmp_path_factory.mktemp("deep")
    shutil.copytree(prepared / "state", home / "state")
    models = ("pictures", "sentences", "iris")
    with running(settings_of(home, models=models, model_dir=prepared / "models", **DEEP_LIMITS)) as app:
        _await_ready(app)
        yield app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client of `app` that needs no socket."""
    return app.test_client()


@pytest.fixture(scope="session")
def app_url(app: Flask) -> Iterator[str]:
    """Where `app` answers over a socket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # not a line for every request
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def service_port(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where ``python app.py``, with one worker, serves what `app` does."""
    with _process(prepared, tmp_path_factory.mktemp("process")) as port:
        yield port


@pytest.fixture(scope="session")
def texts_port(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where ``python app.py``, with one worker, serves what `texts_app` does."""
    with _process(prepared, tmp_path_factory.mktemp("process"), models=("iris", "texts")) as port:
        yield port


@pytest.fixture(scope="session")
def deep_port(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where ``python app.py``, with one worker, serves what `deep_app` does."""
    models = ("pictures", "sentences", "iris")
    with _process(prepared, tmp_path_factory.mktemp("process"), models=models, **DEEP_LIMITS) as port:
        yield port


@pytest.fixture(scope="session")
def two_workers_port(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where ``python app.py``, with two workers, serves every model."""
    models = ("iris", "prices", "texts")
    with _process(prepared, tmp_path_factory.mktemp("process"), models=models, web_concurrency=2) as port:
        yield port


@contextlib.contextmanager
def _process(prepared: Path, home: Path, **changed: Any) -> Iterator[int]:
    """``python app.py`` on what was prepared: its port, once it is ready."""
    shutil.copytree(prepared / "state", home / "state")
    port = free_port()
    usual = {"model_dir": prepared / "models", "port": port, "web_concurrency": 1, "drain_s": 0}
    settings = settings_of(home, **{**usual, **changed})
    with (home / "service.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, ROOT / "app.py"], env=environment(settings), stdout=log, stderr=log)
    try:
        _await_answer(f"http://127.0.0.1:{port}/readyz", process)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def _await_ready(app: Flask) -> None:
    """Return when ``app`` serves every model."""
    deadline = time.monotonic() + READY_S
    while not app.extensions["service"].ready():
        assert time.monotonic() < deadline, f"not ready: {app.extensions['service'].overview()}"
        time.sleep(0.02)


def _await_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the service ended with code {process.returncode}"
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=5).ok:
                return
        time.sleep(0.05)
    raise AssertionError(f"{url} is not ready")
