"""What every answer has, whatever its protocol: ids, headers, errors, metrics, a log line."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from served import running, settings_of

from serving.telemetry import REQUESTS

ROW = {"features": [5.1, 3.5, 1.4, 0.2]}
SECRET = "the password is swordfish"

# method, path, status, and the label of the route
ANSWERED = [
    ("GET", "/livez", 200, "/livez"),
    ("GET", "/readyz", 200, "/readyz"),
    ("GET", "/metrics", 200, "/metrics"),
    ("GET", "/models/prices", 200, "/models/<model>"),
    ("POST", "/predict", 200, "/predict"),
    ("POST", "/models/iris/predict", 200, "/models/<model>/predict"),
    ("POST", "/models/tulips/predict", 404, "/models/<model>/predict"),
    ("GET", "/nothing/here", 404, "unmatched"),
    ("GET", "/predict", 405, "unmatched"),
]


@pytest.fixture(scope="module")
def failing(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """A service with one more route, whose view has a bug."""

    def view(word: str) -> str:
        raise RuntimeError(f"{SECRET}: {word}")

    home = tmp_path_factory.mktemp("failing")
    shutil.copytree(prepared / "state", home / "state")
    with running(settings_of(home, model_dir=prepared / "models")) as app:
        app.add_url_rule("/failing/<word>", view_func=view)
        yield app.test_client()


def routes(client: FlaskClient) -> set[str]:
    """The routes for which requests have been counted."""
    return set(re.findall(r'^ml_http_request_duration_seconds_count\{.*?route="(.*?)"', scraped(client), re.MULTILINE))


def scraped(client: FlaskClient) -> str:
    return client.get("/metrics").get_data(as_text=True)


def request_lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == REQUESTS]


def written_lines(app: Flask, capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What the request log of ``app`` wrote since the last look."""
    assert app.extensions["requests"].flush()
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    return [line for line in lines if line["logger"] == REQUESTS]


@pytest.mark.parametrize(("method", "path", "status", "route"), ANSWERED)
def test_every_answer_has_the_request_id(client: FlaskClient, method: str, path: str, status: int, route: str) -> None:
    answer = client.open(path, method=method, json=ROW, headers={"X-Request-Id": "mine-1"})
    assert (answer.status_code, answer.headers.getlist("X-Request-Id")) == (status, ["mine-1"])


@pytest.mark.parametrize(("method", "path", "status", "route"), ANSWERED)
def test_every_answer_about_a_model_that_is_served_has_its_version(
    client: FlaskClient, method: str, path: str, status: int, route: str
) -> None:
    version = client.open(path, method=method, json=ROW).headers.get("X-Model-Version")
    assert version == {"/models/prices": "7", "/models/tulips/predict": None}.get(path, "1")


def test_a_harmful_request_id_is_not_sent_back(client: FlaskClient) -> None:
    answer = client.get("/models", headers={"X-Request-Id": "<script>"})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])


@pytest.mark.parametrize(("method", "path", "status", "route"), [row for row in ANSWERED if row[1] != "/metrics"])
def test_the_label_is_the_routes_pattern(client: FlaskClient, method: str, path: str, status: int, route: str) -> None:
    client.open(path, method=method, json=ROW)
    assert route in routes(client)


def test_the_raw_path_is_never_a_label(app: Flask, client: FlaskClient) -> None:
    client.get("/raw-path-of-a-caller/1")
    client.get("/models/raw-model-of-a-caller")
    assert "of-a-caller" not in scraped(client)
    assert routes(client) <= {rule.rule for rule in app.url_map.iter_rules()} | {"unmatched"}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics"])
def test_probes_are_not_logged(app: Flask, client: FlaskClient, path: str, capfd: pytest.CaptureFixture[str]) -> None:
    written_lines(app, capfd)
    client.get(path)
    assert written_lines(app, capfd) == []


@pytest.mark.parametrize("kind", ["application/json", "application/vnd.own+json"], ids=["lane", "Flask"])
def test_a_request_is_one_line(app: Flask, client: FlaskClient, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    written_lines(app, capfd)
    client.post("/models/prices/predict", data=b"{}", content_type=kind, headers={"X-Request-Id": "mine-2"})
    (line,) = written_lines(app, capfd)
    assert 0 < line.pop("duration_s") < 10
    assert line.pop("at").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": REQUESTS,
        "pid": os.getpid(),
        "message": "POST /models/<model>/predict 400",
        "request_id": "mine-2",
        "model": "prices",
        "version": "7",
        "status": 400,
    }


def test_a_view_that_fails_is_a_bare_500(failing: FlaskClient) -> None:
    answer = failing.get("/failing/fish", headers={"X-Request-Id": "mine-3"})
    error = {"code": "internal", "message": "the service failed; the log has the request id"}
    assert answer.status_code == 500
    assert answer.get_json() == {"error": error, "request_id": "mine-3"}
    assert answer.headers["X-Request-Id"] == "mine-3"


def test_a_view_that_fails_is_logged_in_full(failing: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    failing.get("/failing/fish", headers={"X-Request-Id": "mine-4"})
    (line,) = [record for record in request_lines(caplog) if record.levelno == logging.ERROR]
    assert (line.getMessage(), vars(line)["request_id"]) == ("GET /failing/<word> failed", "mine-4")
    assert SECRET in str(line.exc_info)


def test_a_view_that_fails_is_counted(failing: FlaskClient) -> None:
    failing.get("/failing/fish")
    (line,) = re.findall(
        r'^ml_http_request_duration_seconds_count\{.*"/failing/<word>".*', scraped(failing), re.MULTILINE
    )
    assert 'status="500"' in line
