"""The statuses of the design over the simple protocol: each with its code, in one shape, without a word from inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from served import MAX_BODY_BYTES, MAX_ROWS, running, settings_of
from werkzeug.test import TestResponse

ROW = [5.1, 3.5, 1.4, 0.2]
HOUSE = ["Ulm", 2, 50.0, False]
NO_AREA = ["Ulm", 2, -1.0, False]

# status, code, and the request that is answered so
REFUSED = [
    (400, "invalid_input", "POST", "/predict", {"json": {"features": [5.1, "wide", 1.4, 0.2]}}),
    (400, "invalid_input", "POST", "/predict", {"data": b"\x80\x02\xff"}),
    (404, "unknown_model", "POST", "/models/tulips/predict", {"json": {"features": ROW}}),
    (404, "unknown_model", "POST", "/models/iris/versions/99/predict", {"json": {"features": ROW}}),
    (404, "unknown_model", "GET", "/models/tulips", {}),
    (404, "unknown_model", "POST", "/models/tulips/reload", {}),
    (404, "unknown_route", "GET", "/../etc/passwd", {}),
    (405, "wrong_method", "GET", "/predict", {}),
    (405, "wrong_method", "DELETE", "/model/info", {}),
    (413, "body_too_large", "POST", "/predict", {"data": b"[" * (MAX_BODY_BYTES + 1)}),
    (413, "too_many_rows", "POST", "/predict", {"json": {"instances": [[1, 2, 3, 4]] * (MAX_ROWS + 1)}}),
    (415, "unsupported_media_type", "POST", "/predict", {"data": b"1,2", "content_type": "text/csv"}),
    (500, "model_failed", "POST", "/models/prices/predict", {"json": {"features": NO_AREA}}),
    (502, "registry_unreachable", "POST", "/model/reload", {}),
]
ANSWERED = [
    ("POST", "/predict", {"json": {"features": ROW}}),
    ("POST", "/models/prices/predict", {"json": {"features": HOUSE}}),
    *(("GET", path, {}) for path in ("/livez", "/readyz", "/health", "/models", "/model/info", "/models/prices")),
]
INSIDE = (
    "Traceback",
    'File "',
    ".py",
    "site-packages",
    "Error(",
    "Error:",
    "Exception",
    "unknown categories",
    "object at",
)


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """A service that has nothing to serve: no registry, no local files, no last good copy."""
    with running(settings_of(tmp_path_factory.mktemp("waiting"))) as app:
        yield app.test_client()


@pytest.mark.parametrize(("status", "code", "method", "path", "request_"), REFUSED)
def test_refused(client: FlaskClient, status: int, code: str, method: str, path: str, request_: dict[str, Any]) -> None:
    answer = client.open(path, method=method, **request_)
    assert answer.status_code == status
    assert_error(answer, code)


@pytest.mark.parametrize(("method", "path", "request_"), ANSWERED)
def test_answered(client: FlaskClient, method: str, path: str, request_: dict[str, Any]) -> None:
    answer = client.open(path, method=method, **request_)
    assert answer.status_code == 200
    assert_common(answer)
    assert answer.headers["X-Model-Version"] == ("7" if "prices" in path else "1")


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/predict"), ("POST", "/models/prices/predict"), ("GET", "/model/info"), ("GET", "/models/prices")],
)
def test_no_model_yet(waiting: FlaskClient, method: str, path: str) -> None:
    answer = waiting.open(path, method=method, json={"features": ROW})
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert "X-Model-Version" not in answer.headers
    assert_error(answer, "model_not_ready")


@pytest.mark.parametrize("path", ["/readyz", "/health"])
def test_not_ready(waiting: FlaskClient, path: str) -> None:
    answer = waiting.get(path)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.get_json()["status"] == "loading"
    assert_common(answer)


def test_health_says_what_is_missing(waiting: FlaskClient) -> None:
    waiting.post("/model/reload")  # after which the registry was looked at
    models = {model["name"]: model for model in waiting.get("/health").get_json()["models"]}
    assert not models["iris"]["ready"]
    assert "there is no SQLite file" in models["iris"]["registry"]["error"]


def test_alive_without_a_model(waiting: FlaskClient) -> None:
    answer = waiting.get("/livez")
    assert answer.status_code == 200
    assert_common(answer)


def test_a_reload_without_registry_and_model(waiting: FlaskClient) -> None:
    answer = waiting.post("/model/reload")
    assert answer.status_code == 502
    assert_error(answer, "registry_unreachable")


def test_an_unknown_model_is_unknown_before_any_is_live(waiting: FlaskClient) -> None:
    answer = waiting.post("/models/tulips/predict", json={"features": ROW})
    assert answer.status_code == 404
    assert_error(answer, "unknown_model")


def test_what_a_model_raised_stays_inside(client: FlaskClient) -> None:
    answer = client.post("/models/prices/predict", json={"features": NO_AREA})
    assert "Atlantis" not in answer.text
    assert "categories" not in answer.text


def test_a_failure_harms_no_other_request(client: FlaskClient) -> None:
    assert client.post("/models/prices/predict", json={"features": NO_AREA}).status_code == 500
    assert client.post("/models/prices/predict", json={"features": HOUSE}).status_code == 200


def test_metrics_answer_as_text_with_an_id(client: FlaskClient) -> None:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain")
    assert answer.headers["X-Request-Id"]


def test_a_service_that_drains_is_not_ready(app: Flask, client: FlaskClient, request: pytest.FixtureRequest) -> None:
    service = app.extensions["service"]
    request.addfinalizer(lambda: setattr(service, "draining", False))
    service.draining = True
    answer = client.get("/readyz")
    assert (answer.status_code, answer.get_json()) == (503, {"status": "draining"})
    assert client.post("/predict", json={"features": ROW}).status_code == 200


def assert_error(answer: TestResponse, code: str) -> None:
    """This protocol's error shape, and nothing else."""
    content = answer.get_json()
    assert content.keys() == {"error", "request_id"}
    assert content["error"]["code"] == code
    assert content["error"]["message"]
    assert content["error"].keys() <= {"code", "message", "row", "column"}
    assert content["request_id"] == answer.headers["X-Request-Id"]
    assert_common(answer)


def assert_common(answer: TestResponse) -> None:
    assert answer.content_type == "application/json"
    assert answer.headers["X-Request-Id"]
    assert [word for word in INSIDE if word in answer.text] == []
