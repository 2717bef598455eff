"""The statuses of the design over MLflow's scoring protocol: each with MLflow's own word for it, in its shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from served import MAX_BODY_BYTES, MAX_ROWS, running, settings_of
from werkzeug.test import TestResponse

from serving.errors import DeadlineExceeded, QueueFull

ROW = [5.1, 3.5, 1.4, 0.2]
JSON = "application/json"
HOUSE = {"town": "Ulm", "rooms": 2, "area": 50.0, "garden": False}
NO_AREA = {**HOUSE, "area": -1.0}
PRICES = "/models/prices/invocations"

# status, MLflow's word, and the request that is answered so
REFUSED: list[tuple[int, str, str, str, dict[str, Any]]] = [
    (400, "INVALID_PARAMETER_VALUE", "POST", "/invocations", {"json": {"inputs": [[5.1, "wide", 1.4, 0.2]]}}),
    (400, "BAD_REQUEST", "POST", "/invocations", {"data": b"\x80\x02\xff", "content_type": JSON}),
    (400, "BAD_REQUEST", "POST", "/invocations", {"json": {"features": [ROW]}}),
    (404, "RESOURCE_DOES_NOT_EXIST", "POST", "/models/tulips/invocations", {"json": {"inputs": [ROW]}}),
    (404, "RESOURCE_DOES_NOT_EXIST", "POST", "/models/iris/versions/99/invocations", {"json": {"inputs": [ROW]}}),
    (404, "ENDPOINT_NOT_FOUND", "POST", "/invocations/", {"json": {"inputs": [ROW]}}),
    (405, "BAD_REQUEST", "GET", "/invocations", {}),
    (405, "BAD_REQUEST", "POST", "/ping", {}),
    (413, "BAD_REQUEST", "POST", "/invocations", {"data": b"[" * (MAX_BODY_BYTES + 1), "content_type": JSON}),
    (413, "BAD_REQUEST", "POST", "/invocations", {"json": {"inputs": [[1, 2, 3, 4]] * (MAX_ROWS + 1)}}),
    (415, "BAD_REQUEST", "POST", "/invocations", {"data": b"a=b", "content_type": "application/x-www-form-urlencoded"}),
    (415, "BAD_REQUEST", "POST", "/invocations", {"data": b"{}"}),
    (500, "INTERNAL_ERROR", "POST", PRICES, {"json": {"dataframe_records": [NO_AREA]}}),
]
INSIDE = ("Traceback", 'File "', ".py", "site-packages", "Error(", "Error:", "Exception", "object at", "Atlantis")


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """A service that has nothing to serve."""
    with running(settings_of(tmp_path_factory.mktemp("waiting"))) as app:
        yield app.test_client()


@pytest.mark.parametrize(("status", "word", "method", "path", "request_"), REFUSED)
def test_refused(client: FlaskClient, status: int, word: str, method: str, path: str, request_: dict[str, Any]) -> None:
    answer = client.open(path, method=method, **request_)
    assert answer.status_code == status
    assert_error(answer, word)


@pytest.mark.parametrize("path", ["/invocations", PRICES])
def test_no_model_yet(waiting: FlaskClient, path: str) -> None:
    answer = waiting.post(path, json={"inputs": [ROW]})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert_error(answer, "TEMPORARILY_UNAVAILABLE")


def test_no_ping_before_the_default_model_is_live(waiting: FlaskClient) -> None:
    answer = waiting.get("/ping")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert_error(answer, "TEMPORARILY_UNAVAILABLE")


def test_no_ping_while_a_worker_drains(app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.extensions["service"], "draining", True)
    assert client.get("/ping").status_code == 503
    assert client.post("/invocations", json={"inputs": [ROW]}).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [(QueueFull("full"), 503, "TEMPORARILY_UNAVAILABLE"), (DeadlineExceeded("late"), 504, "DEADLINE_EXCEEDED")],
)
def test_what_a_crowded_model_says(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, word: str
) -> None:
    def predictor(_: Any) -> None:
        raise error

    monkeypatch.setitem(vars(app.extensions["service"].store.live("iris")), "predictor", predictor)
    answer = client.post("/invocations", json={"inputs": [ROW]})
    assert (answer.status_code, "Retry-After" in answer.headers) == (status, status == 503)
    assert_error(answer, word)


def test_a_failure_harms_no_other_request(client: FlaskClient) -> None:
    assert client.post(PRICES, json={"dataframe_records": [NO_AREA]}).status_code == 500
    assert client.post(PRICES, json={"dataframe_records": [HOUSE]}).status_code == 200


def assert_error(answer: TestResponse, word: str) -> None:
    """MLflow's error shape, and nothing else."""
    content = answer.get_json()
    assert content.keys() == {"error_code", "message"}
    assert content["error_code"] == word
    assert content["message"]
    assert answer.content_type == "application/json"
    assert answer.headers["X-Request-Id"]
    assert [inside for inside in INSIDE if inside in answer.text] == []
