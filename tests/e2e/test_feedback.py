"""Predictions and their truth over HTTP, in a real PostgreSQL that comes and goes."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from harness import Running, wait_for
from load import Load

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from postgres import Postgres

ROWS = 10_000
A_REQUEST = 100
OUTAGE_S = 20.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres().start()
    yield server
    server.close()


def recorded(url: str) -> int:
    """How many predictions are in the database."""
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            return int(connection.execute(sa.text("SELECT count(*) FROM ledger_predictions")).scalar_one())
    finally:
        engine.dispose()


def quality(service: Running) -> dict[str, Any]:
    return service.call("/model/info").json["quality"] or {}


def test_quality_is_what_was_true(service: Running, postgres: Postgres) -> None:
    """Labels come late, twice, in any order, and are corrected."""
    from sklearn.datasets import load_iris

    X, y = load_iris(return_X_y=True, as_frame=True)
    service.settings["DATABASE_URL"] = url = postgres.new_database("quality")
    service.start()
    rng = random.Random(7)
    picks = [[rng.randrange(len(X)) for _ in range(A_REQUEST)] for _ in range(ROWS // A_REQUEST)]
    answers = [service.call("/predict", {"features": X.iloc[pick].to_numpy().tolist()}).json for pick in picks]
    items, right = [], 0
    for pick, answer in zip(picks, answers, strict=True):
        for row, (position, predicted) in enumerate(zip(pick, answer["predictions"], strict=True)):
            truth = int(y[position]) if rng.random() > 0.1 else (int(y[position]) + 1) % 3
            right += predicted["class_id"] == truth
            about = {"prediction_id": answer["prediction_id"], "row": row}
            items.append({**about, "label": truth, "observed_at": "2026-01-02T00:00:00Z"})
            if rng.random() < 0.3:
                items.append({**about, "label": (truth + 1) % 3, "observed_at": "2026-01-01T00:00:00Z"})
            if rng.random() < 0.3:
                items.append({**about, "label": truth, "observed_at": "2026-01-02T00:00:00Z"})
    rng.shuffle(items)
    said = {"accepted": 0, "corrected": 0, "repeated": 0, "stale": 0}
    for start in range(0, len(items), 1000):
        came = service.call("/feedback", items[start : start + 1000])
        assert (came.status, came.json["unknown"]) == (200, []), came.text
        for word in said:
            said[word] += came.json[word]
    assert said["accepted"] == ROWS
    assert sum(said.values()) == len(items)
    wait_for(lambda: quality(service).get("labelled_rows") == ROWS, 30, "not all labels are joined")
    assert quality(service)["accuracy"] == pytest.approx(right / ROWS, abs=1e-12)
    assert quality(service)["coverage"] == 1.0
    assert recorded(url) == ROWS


def test_a_database_that_is_gone_costs_nothing(service: Running, postgres: Postgres) -> None:
    """No prediction fails, and when it is back all are in it, each once."""
    service.settings.update(DATABASE_URL=postgres.new_database("outage"), WEB_CONCURRENCY="2")
    service.start()
    load = Load(service.port, connections=4, pause_s=0.01)
    time.sleep(2)
    postgres.stop()
    time.sleep(OUTAGE_S / 2)
    pending = service.call("/feedback", {"prediction_id": service.predict().json["prediction_id"], "label": 0})
    assert (pending.status, pending.json) == (202, {"pending": 1})
    time.sleep(OUTAGE_S / 2)
    postgres.start()
    time.sleep(1)
    records = load.stop()
    assert {record.status for record in records} == {200}
    sent = len(records) + 1
    url = service.settings["DATABASE_URL"]
    wait_for(lambda: recorded(url) >= sent, 30, "not all predictions are in the database")
    assert recorded(url) == sent
    wait_for(lambda: quality(service).get("labelled_rows") == 1, 30, "the label that waited is not joined")


def test_nothing_is_lost_at_the_end(service: Running, postgres: Postgres) -> None:
    service.settings.update(DATABASE_URL=postgres.new_database("ending"), WEB_CONCURRENCY="2", DRAIN_S="0.2")
    service.start()
    load = Load(service.port, connections=4)
    time.sleep(2)
    assert service.stop() == 0
    answered = sum(record.status == 200 for record in load.stop())
    # A request that was answered just when its connection ended may count on one side only.
    assert 0 <= recorded(service.settings["DATABASE_URL"]) - answered <= 4
    assert list((service.folder / "state" / "ledger" / "spool").iterdir()) == []


def test_an_end_without_the_database_keeps_everything_for_the_next_start(service: Running, postgres: Postgres) -> None:
    service.settings.update(DATABASE_URL=postgres.new_database("later"), WEB_CONCURRENCY="2", DRAIN_S="0.2")
    service.start()
    postgres.stop()
    for _ in range(50):
        assert service.predict().status == 200
    assert service.stop() == 0
    postgres.start()
    service.start()
    url = service.settings["DATABASE_URL"]
    wait_for(lambda: recorded(url) == 50, 30, "what was left is not in the database")
