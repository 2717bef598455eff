"""The statuses of the design over the Open Inference Protocol: each in its error shape, without a word from inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from served import MAX_BODY_BYTES, MAX_ROWS, running, settings_of
from test_statuses import assert_common
from werkzeug.test import TestResponse

from serving.errors import DeadlineExceeded, QueueFull, ServingError

INFER = "/v2/models/iris/infer"
ROW = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 4], "data": [5.1, 3.5, 1.4, 0.2]}]}
MANY = {
    "inputs": [{"name": "x", "datatype": "INT8", "shape": [MAX_ROWS + 1, 4], "data": [1] * (4 * MAX_ROWS + 4)}],
}
NO_AREA = {
    "inputs": [
        {"name": "town", "datatype": "BYTES", "shape": [1], "data": ["Ulm"]},
        {"name": "rooms", "datatype": "INT64", "shape": [1], "data": [2]},
        {"name": "area", "datatype": "FP64", "shape": [1], "data": [-1.0]},
        {"name": "garden", "datatype": "BOOL", "shape": [1], "data": [False]},
    ]
}
REFUSED = [
    (400, "POST", INFER, {"data": b"\x80\x02\xff"}),
    (400, "POST", INFER, {"json": {"inputs": []}}),
    (400, "POST", INFER, {"json": ROW, "headers": {"Inference-Header-Content-Length": "1000"}}),
    (404, "POST", "/v2/models/tulips/infer", {"json": ROW}),
    (404, "POST", "/v2/models/iris/versions/99/infer", {"json": ROW}),
    (404, "GET", "/v2/models/tulips", {}),
    (404, "GET", "/v2/models/tulips/ready", {}),
    (404, "POST", "/v2/repository/models/~tulips/load", {}),
    (404, "POST", "/v2/repository/models/tulips/unload", {}),
    (404, "GET", "/v2/../etc/passwd", {}),
    (405, "GET", INFER, {}),
    (405, "DELETE", "/v2", {}),
    (413, "POST", INFER, {"data": b"[" * (MAX_BODY_BYTES + 1)}),
    (413, "POST", INFER, {"json": MANY}),
    (415, "POST", INFER, {"data": b"1,2", "content_type": "text/csv"}),
    (415, "POST", INFER, {"json": ROW, "headers": {"Content-Encoding": "gzip"}}),
    (500, "POST", "/v2/models/prices/infer", {"json": NO_AREA}),
    (502, "POST", "/v2/repository/models/iris/load", {}),
]
WAITING = [
    ("POST", INFER),
    ("GET", "/v2/models/iris"),
    ("GET", "/v2/models/iris/ready"),
    ("GET", "/v2/health/ready"),
]


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """A service that has nothing to serve."""
    with running(settings_of(tmp_path_factory.mktemp("waiting"))) as app:
        yield app.test_client()


@pytest.mark.parametrize(("status", "method", "path", "request_"), REFUSED)
def test_refused(client: FlaskClient, status: int, method: str, path: str, request_: dict[str, Any]) -> None:
    answer = client.open(path, method=method, **request_)
    assert answer.status_code == status
    assert_error(answer)
    assert "Atlantis" not in answer.text


@pytest.mark.parametrize("err", [QueueFull("as many wait as may wait"), DeadlineExceeded("not in time")])
@pytest.mark.parametrize("kind", ["application/json", "application/own+json"], ids=["lane", "flask"])
def test_no_room_and_no_time(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, err: ServingError, kind: str
) -> None:
    def predict(*_: Any) -> None:
        raise err

    monkeypatch.setattr(app.extensions["service"], "predict", predict)
    answer = client.post(INFER, json=ROW, content_type=kind)
    assert (answer.status_code, answer.headers.get("Retry-After")) == (err.status, "1" if err.status == 503 else None)
    assert_error(answer)


@pytest.mark.parametrize(("method", "path"), WAITING)
def test_no_model_yet(waiting: FlaskClient, method: str, path: str) -> None:
    answer = waiting.open(path, method=method, json=ROW)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "X-Model-Version" not in answer.headers
    content = answer.get_json()
    assert content["error"]
    assert content.get("ready", False) is False
    assert_common(answer)


def test_alive_without_a_model(waiting: FlaskClient) -> None:
    assert waiting.get("/v2/health/live").get_json() == {"live": True}
    assert waiting.get("/v2").status_code == 200


def test_the_index_says_why_nothing_is_live(waiting: FlaskClient) -> None:
    waiting.post("/model/reload")  # after which the registry was looked at
    index = {line["name"]: line for line in waiting.post("/v2/repository/index").get_json()}
    assert index["iris"]["state"] == "UNAVAILABLE"
    assert "there is no SQLite file" in index["iris"]["reason"]
    assert waiting.post("/v2/repository/index", json={"ready": True}).get_json() == []


def test_a_service_that_drains_is_not_ready(app: Flask, client: FlaskClient, request: pytest.FixtureRequest) -> None:
    service = app.extensions["service"]
    request.addfinalizer(lambda: setattr(service, "draining", False))
    service.draining = True
    answer = client.get("/v2/health/ready")
    assert (answer.status_code, answer.get_json()["ready"]) == (503, False)
    assert client.post(INFER, json=ROW).status_code == 200


def assert_error(answer: TestResponse) -> None:
    """The protocol's error shape, and nothing else."""
    content = answer.get_json()
    assert content.keys() == {"error"}
    assert isinstance(content["error"], str)
    assert content["error"]
    assert_common(answer)
