"""Load on a running service, for people to watch: one row, many rows, and bad input that must be refused.

``make load HOST=http://localhost:5000 USERS=20 DURATION=30s``; what to send is learned from ``GET /model/info``.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import requests

try:
    from locust import FastHttpUser, between, events, task
except ImportError:  # what is sent can be tested without locust
    FastHttpUser = None

MANY_ROWS = 100
# A value of its own for each type that a signature may name, where the model has no example.
VALUES = {"string": "text", "boolean": True, "datetime": "2026-01-01T00:00:00", "binary": "AA=="}


def row_of(info: Mapping[str, Any]) -> Any:
    """One row that the model takes: the first of its example, or one made from its signature.

    Raises ValueError if it has neither.
    """
    example = info.get("example")
    if example:
        return example[0] if isinstance(example, list) else example
    inputs = (info.get("signature") or {}).get("inputs") or []
    if not inputs:
        raise ValueError(f"{info.get('name')} has no example and no signature: nothing is known of its input")
    if all(field.get("shape") is None for field in inputs):
        return {field["name"]: VALUES.get(field["type"], 1) for field in inputs}
    return _filled(inputs[0]["shape"], VALUES.get(inputs[0]["type"], 1))


def bad_bodies(row: Any) -> list[bytes]:
    """What every model must refuse with 400: no JSON, no object, no rows, an unknown field, rows that are none."""
    broken = [b'{"features": [1, 2', b"[1, 2, 3]", b"{}", b'{"feature": [1]}', b'{"instances": [1, "x"]}']
    if isinstance(row, dict):
        broken.append(b'{"features": {"no such column": 1}}')
    return broken


def _filled(shape: list[int], value: Any) -> Any:
    """``value`` in lists of ``shape``; a free dimension is 1."""
    if not shape:
        return value
    return [_filled(shape[1:], value) for _ in range(max(1, shape[0]))]


if FastHttpUser is not None:

    @events.test_start.add_listener
    def learn(environment: Any, **_: Any) -> None:
        """What is served decides what is sent; without an answer nothing is."""
        try:
            answer = requests.get(f"{environment.host}/model/info", timeout=10)
            answer.raise_for_status()
            Caller.row = row_of(answer.json())
        except (requests.RequestException, ValueError) as err:
            print(f"cannot load {environment.host}: {err}")
            environment.process_exit_code = 2
            environment.runner.quit()

    class Caller(FastHttpUser):
        """Eight calls in ten send one row, one sends many, one sends what must be refused."""

        wait_time = between(0.0, 0.02)
        row: Any = None
        bad = itertools.count(random.randrange(10))

        @task(8)
        def one_row(self) -> None:
            self.client.post("/predict", json={"features": self.row}, name="one row")

        @task(1)
        def many_rows(self) -> None:
            self.client.post("/predict", json={"instances": [self.row] * MANY_ROWS}, name=f"{MANY_ROWS} rows")

        @task(1)
        def bad_input(self) -> None:
            bodies = bad_bodies(self.row)
            body = bodies[next(self.bad) % len(bodies)]
            headers = {"Content-Type": "application/json"}
            with self.client.post(
                "/predict", data=body, headers=headers, name="bad input, refused", catch_response=True
            ) as answer:
                if answer.status_code == 400:
                    answer.success()
                else:
                    answer.failure(f"expected 400 for {body.decode()}, got {answer.status_code}")
