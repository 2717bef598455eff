"""Callers of a model that takes long whatever it is asked are answered together, in time or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from harness import Response, Running
from registered import Registered
from sklearn.datasets import load_iris
from sklearn.ensemble import AdaBoostClassifier

CALLERS = 64
ROWS, SPECIES = load_iris(return_X_y=True, as_frame=True)
MODEL = AdaBoostClassifier(n_estimators=50, random_state=0).fit(ROWS, SPECIES)  # has no kernel; about 10 ms a call


@pytest.fixture(scope="module")
def version(registered: Registered) -> str:
    return registered.add_model(MODEL, ROWS)


@pytest.fixture
def busy(service: Running, registered: Registered, version: str) -> Running:
    """A service of that version with a thread for each caller; not started yet."""
    registered.point(version)
    service.settings |= {"WEB_CONCURRENCY": "1", "THREADS": str(CALLERS)}
    return service


def ask_all(service: Running, times: int = 1) -> list[tuple[int, Response]]:
    """Every caller asks about rows of its own, all at once: the row's number with its answer."""
    numbers = [number % len(ROWS) for number in range(CALLERS * times)]

    def ask(number: int) -> tuple[int, Response]:
        return number, service.call("/predict", {"features": ROWS.iloc[number].tolist()})

    with ThreadPoolExecutor(CALLERS) as callers:
        return list(callers.map(ask, numbers))


def right(answers: list[tuple[int, Response]]) -> bool:
    expected = MODEL.predict_proba(ROWS)
    given = np.array([list(answer.json["probabilities"].values()) for _, answer in answers])
    return bool(np.array_equal(given, expected[[number for number, _ in answers]]))


def metric(service: Running, name: str) -> float:
    lines = [line for line in service.call("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_sixty_four_callers_are_answered_together(busy: Running) -> None:
    busy.start()
    assert busy.call("/model/info").json["batching"] is True
    answers = ask_all(busy, times=4)
    assert {answer.status for _, answer in answers} == {200}
    assert right(answers)
    batches, rows = metric(busy, "ml_batch_rows_count"), metric(busy, "ml_batch_rows_sum")
    assert rows >= CALLERS * 4
    assert rows / batches > 4


def test_whoever_finds_the_queue_full_is_told_when_to_come_again(busy: Running) -> None:
    busy.settings |= {"MAX_QUEUE_ROWS": "4", "MAX_BATCH_ROWS": "4"}
    busy.start()
    answers = ask_all(busy)
    refused = [answer for _, answer in answers if answer.status == 503]
    assert refused
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert {answer.json["error"]["code"] for answer in refused} == {"queue_full"}
    answered = [(number, answer) for number, answer in answers if answer.status == 200]
    assert len(answered) + len(refused) == CALLERS
    assert right(answered)


def test_whoever_would_wait_too_long_is_told_so(busy: Running, tmp_path: Path) -> None:
    busy.settings |= {"MAX_BATCH_ROWS": "1", "PREDICT_TIMEOUT_S": "0.1"}
    busy.start()
    answers = ask_all(busy)
    late = [answer for _, answer in answers if answer.status == 504]
    assert late
    assert {answer.json["error"]["code"] for answer in late} == {"deadline_exceeded"}
    in_time = [(number, answer) for number, answer in answers if answer.status == 200]
    assert not in_time or right(in_time)  # on a slow machine nobody may be
    assert metric(busy, "ml_dropped_rows_total") > 0
