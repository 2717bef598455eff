"""Predictions for the ledger, and a ledger to put them in."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import postgres
import sqlalchemy as sa

from serving.ledger import Sheet, Spool, Taken
from serving.ledger.database import Database, reading
from serving.ledger.writer import Hooks, Writer
from serving.state import LedgerState
from serving.tensors import Batch, Classes, Prediction

FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
NAMES = ("setosa", "versicolor", "virginica")
CLASSES = Classes.of([0, 1, 2], NAMES)
KINDS = ("sqlite", "postgresql")

_databases = itertools.count()


def new_url(kind: str, folder: Path) -> str:
    """An empty database of its own, of one of `KINDS`."""
    if kind == "sqlite":
        return f"sqlite:///{folder}/database/ledger.db"
    return postgres.shared().new_database(f"ledger_{next(_databases)}")


def new_id(at: float | None = None) -> str:
    """A UUIDv7 of ``at``, now by default."""
    millis = int((time.time() if at is None else at) * 1000)
    random = int.from_bytes(os.urandom(10), "big") & ~(0xF << 76) & ~(0x3 << 62)
    return str(uuid.UUID(int=millis << 80 | random | 0x7 << 76 | 0x2 << 62))


def sheet(**changed: Any) -> Sheet:
    given = {"model": "iris", "version": "1", "digest": "sha256:1", "route": "champion"}
    return Sheet(**{**given, "features": FEATURES, "classes": CLASSES, **changed})


def taken(random: np.random.Generator, rows: int = 1, at: float | None = None) -> Taken:
    """A prediction of irises: probabilities, and the likeliest class."""
    at = time.time() if at is None else at
    chances = random.dirichlet([0.5, 0.5, 0.5], rows)
    batch = Batch(FEATURES, block=random.normal(5, 1, (rows, 4)).round(1))
    return Taken(new_id(at), at, f"request-{random.integers(1e9)}", batch, Prediction(chances.argmax(axis=1), chances))


class Ledger:
    """A ledger at ``url`` as a service has it, and what is in its database."""

    def __init__(self, url: str, state_dir: Path, **options: Any) -> None:
        self.url = url
        self.state = LedgerState(state_dir)
        self.spool = Spool(self.state.spool, 1 << 30)
        self.counted: list[tuple[Any, ...]] = []
        self._options = options
        self._database = Database(url)

    def writer(self) -> Writer:
        """Made anew for each run, as a new agent would."""

        def hook(name: str) -> Any:
            return lambda *values: self.counted.append((name, *values))

        hooks = Hooks(*map(hook, ("written", "lost", "label", "delay", "reachable")))
        return Writer(self.url, self.state, hooks=hooks, **self._options)

    def put(self, predictions: Sequence[Taken]) -> None:
        """Write them into the spool as one page."""
        assert self.spool.write(sheet().encode(predictions)) is not None

    def drain(self, timeout_s: float = 20.0) -> bool:
        return self.writer().drain(timeout_s)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        connection = self._database.connect()
        try:
            with reading(connection):
                return [tuple(row) for row in connection.execute(sa.text(query))]
        finally:
            connection.close()

    def ids(self) -> list[str]:
        return [str(row[0]) for row in self.rows("SELECT prediction_id FROM ledger_predictions ORDER BY 1")]

    def total(self, name: str) -> int:
        """What a hook was called with, added up."""
        return sum(entry[1] for entry in self.counted if entry[0] == name)


def until(condition: Any, timeout_s: float = 15.0) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
