"""The protocol-neutral core: what fails counts, and ids sort by time."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from flask import Flask
from flask.testing import FlaskClient
from served import running, settings_of

from serving.service import prediction_id


def test_prediction_ids_are_uuids_of_version_7() -> None:
    made = uuid.UUID(prediction_id(time.time()))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert abs((made.int >> 80) / 1000 - time.time()) < 5


def test_prediction_ids_sort_by_time_and_do_not_repeat() -> None:
    ids = []
    for _ in range(20):
        ids.append(prediction_id(time.time()))
        time.sleep(0.002)
    assert ids == sorted(ids)
    assert len({prediction_id(time.time()) for _ in range(10_000)}) == 10_000


def counted(client: FlaskClient, series: str) -> float:
    lines = client.get("/metrics").get_data(as_text=True).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(series))


def test_rows_are_counted_by_what_came_of_them(app: Flask, client: FlaskClient) -> None:
    before = counted(client, 'ml_predictions_total{model="iris",outcome="ok"')
    assert client.post("/predict", json={"features": [[5.1, 3.5, 1.4, 0.2]] * 3}).status_code == 200
    assert counted(client, 'ml_predictions_total{model="iris",outcome="ok"') - before == 3


def test_a_request_that_does_not_fit_is_counted_as_such(app: Flask, client: FlaskClient) -> None:
    series = 'ml_invalid_requests_total{column="sepal length (cm)",model="iris"}'
    before = counted(client, series)
    rows = counted(client, "ml_predictions_total")
    assert client.post("/predict", json={"features": ["x", 3.5, 1.4, 0.2]}).status_code == 400
    assert counted(client, series) - before == 1
    assert counted(client, "ml_predictions_total") == rows


def test_a_reload_is_counted_by_what_came_of_it(app: Flask, client: FlaskClient) -> None:
    series = 'ml_model_reloads_total{model="iris",outcome="unreachable"}'
    before = counted(client, series)
    assert client.post("/model/reload").status_code == 502
    assert counted(client, series) - before == 1


def test_without_a_ledger_there_is_no_feedback(tmp_path: Path) -> None:
    with running(settings_of(tmp_path, ledger_sample=0.0)) as app:
        answer = app.test_client().post("/feedback", json={"prediction_id": prediction_id(time.time()), "label": 1})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "no_ledger")
    assert not (tmp_path / "state" / "ledger").exists()


def test_a_draining_service_is_not_ready_but_answers(app: Flask, client: FlaskClient) -> None:
    service = app.extensions["service"]
    service.draining = True
    try:
        assert client.get("/readyz").status_code == 503
        assert client.get("/livez").status_code == 200
        assert client.post("/predict", json={"features": [5.1, 3.5, 1.4, 0.2]}).status_code == 200
    finally:
        service.draining = False
    assert client.get("/readyz").status_code == 200
