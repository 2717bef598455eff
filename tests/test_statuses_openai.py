"""The statuses of the design over OpenAI's protocol: each with its code, in one shape, without a word from inside."""

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

PATH = "/v1/embeddings"

# status, code, and the request that is answered so
REFUSED = [
    (400, "invalid_input", "POST", PATH, {"json": {"input": ""}}),
    (400, "invalid_input", "POST", PATH, {"data": b"\x80\x02\xff"}),
    (400, "invalid_input", "POST", PATH, {"json": {"input": "petal", "model": "iris"}}),
    (404, "model_not_found", "POST", PATH, {"json": {"input": "petal", "model": "tulips"}}),
    (404, "model_not_found", "GET", "/v1/models/tulips", {}),
    (404, "unknown_url", "POST", "/v1/completions", {"json": {}}),
    (404, "unknown_url", "GET", "/v1", {}),
    (405, "method_not_supported", "GET", PATH, {}),
    (405, "method_not_supported", "POST", "/v1/models", {"json": {}}),
    (413, "body_too_large", "POST", PATH, {"data": b"[" * (MAX_BODY_BYTES + 1)}),
    (413, "too_many_rows", "POST", PATH, {"json": {"input": ["a"] * (MAX_ROWS + 1)}}),
    (415, "unsupported_media_type", "POST", PATH, {"data": b"petal", "content_type": "text/plain"}),
    (415, "unsupported_media_type", "POST", PATH, {"data": b"{}", "headers": {"Content-Encoding": "gzip"}}),
    (500, "model_failed", "POST", PATH, {"json": {"input": "abyss"}}),
]


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """A service that has nothing to serve."""
    with running(settings_of(tmp_path_factory.mktemp("waiting"))) as app:
        yield app.test_client()


@pytest.mark.parametrize(("status", "code", "method", "path", "request_"), REFUSED)
def test_refused(texts_app: Flask, status: int, code: str, method: str, path: str, request_: dict[str, Any]) -> None:
    answer = texts_app.test_client().open(path, method=method, **request_)
    assert answer.status_code == status
    assert_error(answer, code)


@pytest.mark.parametrize("body", [{"input": "petal"}, {"input": "petal", "model": "iris"}])
def test_no_model_yet(waiting: FlaskClient, body: dict[str, Any]) -> None:
    answer = waiting.post(PATH, json=body)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert_error(answer, "model_not_ready")


def test_no_model_is_listed_yet(waiting: FlaskClient) -> None:
    assert waiting.get("/v1/models").get_json() == {"object": "list", "data": []}
    answer = waiting.get("/v1/models/iris")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize(("err", "retry"), [(QueueFull("full"), "1"), (DeadlineExceeded("late"), None)])
def test_a_model_that_is_too_busy(
    texts_app: Flask, monkeypatch: pytest.MonkeyPatch, err: ServingError, retry: str | None
) -> None:
    def predict(*_: Any) -> None:
        raise err

    monkeypatch.setattr(texts_app.extensions["service"], "predict", predict)
    answer = texts_app.test_client().post(PATH, json={"input": "petal"})
    assert (answer.status_code, answer.headers.get("Retry-After")) == (err.status, retry)
    assert_error(answer, err.code)


def test_what_is_no_servingerror_is_a_bare_500(texts_app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(*_: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(texts_app.extensions["service"], "predict", predict)
    answer = texts_app.test_client().post(PATH, json={"input": "petal"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert_error(answer, "internal")


def assert_error(answer: TestResponse, code: str) -> None:
    """This protocol's error shape, and nothing else."""
    content = answer.get_json()
    assert content.keys() == {"error"}
    assert content["error"].keys() == {"message", "type", "param", "code"}
    assert content["error"]["code"] == code
    assert content["error"]["message"]
    assert_common(answer)
