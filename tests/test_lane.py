"""The lane takes plain predictions past Flask, counts and logs them as Flask does, and leaves it all else."""

from __future__ import annotations

import math
import re
from typing import Any

import orjson
import pytest
from flask import Flask
from flask.testing import FlaskClient
from served import MAX_BODY_BYTES

from serving.errors import ModelNotReady
from serving.lane import CHEAP_BODY_BYTES, Lane
from serving.live import SLOW_S

ROW = b'{"features": [5.1, 3.5, 1.4, 0.2]}'
HOUSE = b'{"features": ["Ulm", 2, 50.0, false]}'
JSON = "application/json"
CHUNKED = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}


@pytest.fixture
def passed(app: Flask, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the requests that go on to Flask."""
    paths: list[str] = []
    behind = app.wsgi_app.app

    def noting(environ: dict[str, Any], start_response: Any) -> Any:
        paths.append(environ["PATH_INFO"])
        return behind(environ, start_response)

    monkeypatch.setattr(app.wsgi_app, "app", noting)
    return paths


@pytest.mark.parametrize("path", ["/predict", "/models/iris/predict", "/models/iris/versions/1/predict"])
@pytest.mark.parametrize("kind", [JSON, f"{JSON}; charset=utf-8", ""])
def test_plain_predictions_do_not_reach_flask(client: FlaskClient, passed: list[str], path: str, kind: str) -> None:
    assert client.post(path, data=ROW, content_type=kind).status_code == 200
    assert passed == []


def test_errors_of_the_body_are_answered_here_too(client: FlaskClient, passed: list[str]) -> None:
    assert client.post("/predict", data=b"{", content_type=JSON).status_code == 400
    assert passed == []


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/predict", {}, 405),
        ("PUT", "/predict", {"data": ROW}, 405),
        ("POST", "/model/reload", {}, 502),
        ("POST", "/models/tulips/predict", {"data": ROW}, 404),
        ("POST", "/models/iris/versions/99/predict", {"data": ROW}, 404),
        ("POST", "/models/iris/versions//predict", {"data": ROW}, 404),
        ("POST", "/models/iris/versions/<version>/predict", {"data": ROW}, 404),
        ("POST", "/models/iris/versions/", {"data": ROW}, 404),
        ("POST", "/versions/1/predict", {"data": ROW}, 404),
        ("POST", "/predict/", {"data": ROW}, 404),
        ("POST", "/predict", {"data": ROW, "content_type": "application/own+json"}, 200),
        ("POST", "/predict", {"data": ROW, "content_type": "text/csv"}, 415),
        ("POST", "/predict", {"data": ROW, "headers": {"Content-Encoding": "gzip"}}, 415),
        ("POST", "/predict", {"data": b"[" * (MAX_BODY_BYTES + 1)}, 413),
        ("POST", "/predict", {"headers": {"Content-Length": ""}}, 400),
        ("POST", "/predict", {"data": ROW, "environ_overrides": CHUNKED}, 200),
        ("POST", "/predict", {"data": ROW, "environ_overrides": {"CONTENT_LENGTH": "99"}}, 400),
    ],
)
def test_all_else_reaches_flask(
    client: FlaskClient, passed: list[str], method: str, path: str, options: dict[str, Any], status: int
) -> None:
    options = {"content_type": JSON, **options}
    assert client.open(path, method=method, **options).status_code == status
    assert passed == [path]


def test_while_no_version_is_live_flask_says_so(
    app: Flask, client: FlaskClient, passed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def live(*_: Any) -> None:
        raise ModelNotReady("not yet")

    monkeypatch.setattr(app.extensions["service"].store, "live", live)
    assert client.post("/predict", data=ROW, content_type=JSON).status_code == 503
    assert passed == ["/predict"]


def test_a_bug_is_a_bare_500_and_logged(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_: Any) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(app.extensions["service"], "predict", bug)
    with caplog.at_level("ERROR", logger="serving"):
        past, through = (client.post("/predict", data=ROW, content_type=kind) for kind in (JSON, "application/a+json"))
    assert past.status_code == through.status_code == 500
    assert past.get_json()["error"] == through.get_json()["error"]
    assert "swordfish" not in past.text
    assert [record.getMessage() for record in caplog.records] == ["POST /predict failed"] * 2
    assert "swordfish" in str(caplog.records[0].exc_info)


@pytest.mark.parametrize("body", [ROW, b"{"], ids=["200", "400"])
def test_both_ways_are_counted_in_the_same_series(client: FlaskClient, body: bytes) -> None:
    for kind in (JSON, "application/own+json"):
        before = counts(client)
        status = client.post("/models/iris/predict", data=body, content_type=kind).status_code
        grown = {series for series, value in counts(client).items() if value - before.get(series, 0) == 1}
        labels = f'method="POST",route="/models/<model>/predict",status="{status}"'
        assert f"ml_http_request_duration_seconds_count{{{labels}}}" in grown
        assert f'ml_http_request_total{{method="POST",status="{status}"}}' in grown


def counts(client: FlaskClient) -> dict[str, float]:
    text = client.get("/metrics").get_data(as_text=True)
    return {name: float(value) for name, value in re.findall(r"^(ml_http_\S+) (\S+)$", text, re.MULTILINE)}


def test_flask_has_no_hook_that_the_lane_does_not_know(app: Flask) -> None:
    """Whoever hooks into Flask's requests must do the same in the lane; then change this list."""
    hooks = (app.before_request_funcs, app.after_request_funcs)
    named = [sorted(f"{f.__module__}.{f.__name__}" for fs in by.values() for f in fs) for by in hooks]
    exporter = "prometheus_flask_exporter"
    assert named == [
        [f"{exporter}.before_request", "serving.web.begin"],
        [f"{exporter}.after_request", "serving.web.end"],
    ]


def test_what_takes_long_is_not_cheap(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap, live = app.extensions["cheap"], app.extensions["service"].store.live("iris")
    monkeypatch.setitem(vars(live), "warm_s", 0.0001)
    for fixed_s, per_row_s, expected in [(0.0002, 0.00001, True), (0.0002, 0.0005, False), (0.01, 0.0, True)]:
        cost = {"fixed_s": fixed_s, "per_row_s": per_row_s, "rows": 64}  # where the first was slow, this worker knows
        monkeypatch.setitem(vars(live.bundle), "cost", cost)
        assert cheap("/predict", 30) is expected
    monkeypatch.setitem(vars(live.bundle), "runtime", "pyfunc")
    assert not cheap("/predict", 30)
    monkeypatch.setitem(vars(live.bundle), "runtime", "sklearn")
    monkeypatch.setitem(vars(live), "batcher", object())
    assert not cheap("/predict", 30)


def test_without_a_cost_what_this_worker_saw_decides(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap, live = app.extensions["cheap"], app.extensions["service"].store.live("iris")
    monkeypatch.setitem(vars(live.bundle), "cost", None)
    for runtime, warm_s, expected in [("sklearn", 0.0001, False), ("onnx", 0.0001, True), ("onnx", 0.1, False)]:
        monkeypatch.setitem(vars(live.bundle), "runtime", runtime)
        monkeypatch.setitem(vars(live), "warm_s", warm_s)
        assert cheap("/predict", 30) is expected


def test_large_bodies_and_unknown_models_are_not_cheap(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap, live = app.extensions["cheap"], app.extensions["service"].store.live("iris")
    monkeypatch.setitem(vars(live), "warm_s", 0.0001)
    monkeypatch.setitem(vars(live.bundle), "cost", {"fixed_s": 0.0001, "per_row_s": 0.0, "rows": 64})
    assert cheap("/models/iris/predict", CHEAP_BODY_BYTES)
    assert not cheap("/models/iris/predict", CHEAP_BODY_BYTES + 1)
    assert not cheap("/models/tulips/predict", 30)
    assert not cheap("/reload", 30)


def test_who_takes_long_over_one_row_is_slow(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, live = app.wsgi_app.slow, app.extensions["service"].store.live("iris")
    for warm_s, expected in [(0.0001, False), (SLOW_S, True), (1.5, True), (math.inf, False)]:  # inf: never warmed
        monkeypatch.setitem(vars(live), "warm_s", warm_s)
        assert slow("/models/iris/predict") is expected
    monkeypatch.setitem(vars(live), "warm_s", 1.5)
    assert not slow("/models/prices/predict")
    assert not slow("/models/tulips/predict")
    assert not slow("/reload")


def test_the_lane_is_what_the_server_calls(app: Flask, client: FlaskClient) -> None:
    assert isinstance(app.wsgi_app, Lane)
    assert orjson.loads(client.post("/models/prices/predict", data=HOUSE, content_type=JSON).data)["prediction"]
