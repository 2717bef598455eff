"""The writer's one connection: made when it is needed, and given up when anything was wrong with it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import sqlalchemy as sa

from serving.ledger.database import CALL_S, Database, discard, reading
from serving.ledger.patience import Patience


class Session:
    """Transactions on one connection, no statement of which takes longer than `CALL_S`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: sa.Connection | None = None
        self._patience: Patience | None = None
        self._ends_at = math.inf

    def connect(self) -> sa.Connection:
        """The connection, made now if there is none. Raises what `Database.connect` does."""
        if self._connection is None:
            self._connection = self._database.connect(self._seconds())
        return self._connection

    @contextlib.contextmanager
    def transaction(self, *, writes: bool = True) -> Iterator[sa.Connection]:
        """Commit at the end, or roll back and raise."""
        connection = self.connect()
        with Patience(connection, CALL_S) as self._patience:
            self.go_on()  # `end_within` may have been called before it could see our patience
            with connection.begin() if writes else reading(connection):
                yield connection

    def go_on(self) -> None:
        """Another statement begins: it has all the time again."""
        if self._patience is not None:
            self._patience.renew(self._seconds())

    def end_within(self, seconds: float) -> None:
        """From now on there are no more than ``seconds``, also for a call that is under way in another thread."""
        self._ends_at = time.monotonic() + seconds
        self.go_on()

    @property
    def out_of_time(self) -> bool:
        """Whether `end_within` is over."""
        return time.monotonic() >= self._ends_at

    def discard(self) -> None:
        """The next transaction takes a new connection."""
        if self._connection is not None:
            discard(self._connection)
            self._connection = None

    def close(self) -> None:
        self.discard()
        self._database.engine.dispose()

    def _seconds(self) -> float:
        return min(CALL_S, max(0.0, self._ends_at - time.monotonic()))
