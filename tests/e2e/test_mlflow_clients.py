"""MLflow's own client against a running service with two workers, for models of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import requests
from harness import Running, wait_for
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from scored import Scored, save

from serving.digest import folder_digest
from serving.registry import LocalFiles, Version

MODELS = ("flowers", "houses", "several", "chances", "graph", "arrays", "scaling", "framing", "naming")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scored]:
    home = tmp_path_factory.mktemp("scored")
    return {name: save(name, home) for name in MODELS}


@pytest.fixture(scope="module")
def running(models: dict[str, Scored], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("clients") / "service"
    for name, model in models.items():
        plain = Version(name, "1", "champion", "local", str(model.folder), digest=folder_digest(model.folder))
        LocalFiles(folder / "models").publish(plain, model.folder)
    settings = {"MODELS": ",".join(MODELS), "WEB_CONCURRENCY": "2", "POLL_INTERVAL_S": "60"}
    service = Running(folder, f"sqlite:///{folder / 'nothing.db'}", settings)
    try:
        service.start()
        wait_for(lambda: service.call("/readyz").status == 200, 60, "not all models are live")
        yield service
    finally:
        service.kill()


def client_of(running: Running, name: str | None = None) -> ScoringServerClient:
    client = ScoringServerClient("127.0.0.1", running.port)
    if name is not None:
        client.url_prefix += f"/models/{name}"
    return client


def given_to(model: Scored) -> Any:
    """The model's rows as its users have them: a frame, or an array."""
    if not model.names:
        return np.array(model.rows, dtype=np.float32)
    frame = pd.DataFrame(model.rows, columns=list(model.names))
    return frame.astype({"rooms": "int32"}) if "rooms" in frame else frame


def test_the_client_waits_and_asks_the_version(running: Running) -> None:
    client = client_of(running)
    client.wait_server_ready(timeout=10)
    client.ping()
    assert client.get_version() == mlflow.__version__
    assert requests.get(f"http://127.0.0.1:{running.port}/health", timeout=5).status_code == 200


@pytest.mark.parametrize("name", [name for name in MODELS if name != "framing"])
def test_the_client_gets_what_the_model_itself_answers(running: Running, models: dict[str, Scored], name: str) -> None:
    model = models[name]
    given = given_to(model)
    expected = mlflow.pyfunc.load_model(str(model.folder)).predict(given)
    sent = given if model.names else {"inputs": given.tolist()}
    client = client_of(running, name)
    got = client.invoke(sent) if model.names else client.invoke(given)
    if isinstance(expected, dict):
        predictions = got["predictions"]
        assert predictions.keys() == expected.keys()
        for key, values in expected.items():
            assert np.array_equal(np.asarray(predictions[key]), np.asarray(values))
        return
    frame = pd.DataFrame(expected)
    answered = got.get_predictions()
    assert answered.shape == frame.shape
    assert np.array_equal(answered.to_numpy(), frame.to_numpy())


def test_params_reach_the_model(running: Running, models: dict[str, Scored]) -> None:
    given = given_to(models["scaling"])
    client = client_of(running, "scaling")
    got = client.invoke(given, params={"factor": 3, "rooms": 1, "more": [0.5, 1]})["predictions"]
    assert got == (given["area"] * 3 + given["rooms"] + 1.5).tolist()
    assert client.invoke(given)["predictions"] == (given["area"] * 2).tolist()
    with pytest.raises(Exception, match=r"error code 400.*INVALID_PARAMETER_VALUE.*'factor'"):
        client.invoke(given, params={"factor": "three"})


def test_every_worker_answers_alike(running: Running, models: dict[str, Scored]) -> None:
    url = f"http://127.0.0.1:{running.port}/models/houses/invocations"
    body = {"dataframe_split": {"columns": list(models["houses"].names), "data": models["houses"].rows}}
    texts = {requests.post(url, json=body, timeout=10).text for _ in range(30)}  # a connection for each
    assert len(texts) == 1


def test_an_error_is_what_the_client_expects(running: Running, models: dict[str, Scored]) -> None:
    frame = given_to(models["flowers"])
    with pytest.raises(Exception, match=r"error code 400.*row 0, column 'sepal length \(cm\)': expected a number"):
        client_of(running).invoke(frame.astype({"sepal length (cm)": object}).replace({frame.iloc[0, 0]: "wide"}))
