"""The writer: the one thread of a pod that moves pages and labels from disk into the database.

What is on disk goes only after it was committed, and putting it in twice changes nothing. So whatever dies, and
whenever, each prediction is in the database exactly once. A database that is slow, hung or gone holds up nobody else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from serving import notes
from serving.ledger import schema
from serving.ledger.contests import Contest, standing
from serving.ledger.database import Database
from serving.ledger.inbox import Inbox, Waiting
from serving.ledger.labels import Settled, join, known, settle
from serving.ledger.mover import Mover, refused, set_aside
from serving.ledger.quality import Retention, quality
from serving.ledger.session import Session
from serving.ledger.spool import waiting
from serving.state import LedgerState, Lock

PAGES_EVERY_S = 0.25
LOOK_S, IDLE_LOOK_S, BUSY_FOR_S = 0.005, 0.05, 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S, DRAIN_PAUSE_S = 0.5, 15.0, 0.1
GRACE_S = 2.0  # for what is under way when the writer is told to stop
QUALITY_LEAST_S, QUALITY_MOST_S, RETENTION_S = 10.0, 60.0, 60.0
SHARE = 20  # quality takes at most one part in so many of the time

log = logging.getLogger("serving.ledger")


def _nothing(*_: Any) -> None: ...


@dataclass(frozen=True)
class Hooks:
    """Who counts: each is called after the commit, from the writer's thread."""

    written: Callable[[int], None] = _nothing  # rows
    lost: Callable[[int, str], None] = _nothing  # rows, reason
    label: Callable[[str, str, int], None] = _nothing  # model, outcome, labels
    delay: Callable[[str, float], None] = _nothing  # model, seconds from prediction to label
    reachable: Callable[[bool], None] = _nothing


class Writer:
    """Moves what waits in ``state`` into the database at ``url`` (the state's own SQLite file by default)."""

    def __init__(
        self,
        url: str,
        state: LedgerState,
        *,
        keep_days: float = 30.0,
        max_rows: int = 1_000_000,
        window_days: float = 30.0,
        hooks: Hooks | None = None,
        contests: Callable[[], list[Contest]] = list,
    ) -> None:
        """``window_days`` is what quality looks back on; ``contests`` gives those that are on.

        Raises `SettingError` when ``url`` cannot be one.
        """
        self._database = Database(url or state.default_url)
        self._session = Session(self._database)
        self._state = state
        self._hooks = hooks or Hooks()
        self._contests = contests
        self._inbox = Inbox(state)
        self._mover = Mover(self._database, self._session, state, written=self._written, lost=self._hooks.lost)
        self._window = timedelta(days=window_days)
        self._retention = Retention(keep_days, max_rows)
        self._lock = Lock(state.lock)
        self._note = _Note(state.status)
        self._pages_at = self._retention_at = self._quality_due_at = self._quality_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Go on until ``stop``; then end within about `GRACE_S`, whatever the database does."""
        while not self._acquire():
            if stop.wait(FIRST_PAUSE_S):
                return
        threading.Thread(target=self._end_with, args=(stop,), daemon=True).start()
        pause_s = FIRST_PAUSE_S
        try:
            while not stop.is_set():
                try:
                    self._turn()
                    pause_s = FIRST_PAUSE_S
                    stop.wait(LOOK_S if self._inbox.busy(BUSY_FOR_S) else IDLE_LOOK_S)
                except Exception as err:
                    if stop.is_set():
                        return  # we cut it off ourselves
                    self._down(err)
                    stop.wait(pause_s)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        finally:
            self._close()

    def drain(self, timeout_s: float) -> bool:
        """Write all that waits, and end; whether all was written within ``timeout_s``."""
        self._session.end_within(timeout_s)
        while not self._acquire():
            if self._session.out_of_time:
                return False
            time.sleep(LOOK_S)
        try:
            while waiting(self._state.spool) or waiting(self._state.asks):
                if self._session.out_of_time:
                    return False
                try:
                    self._mover.move()
                    self._labels(patient=False)
                except Exception as err:
                    self._down(err)
                    time.sleep(DRAIN_PAUSE_S)
            return True
        finally:
            self._close()

    def _end_with(self, stop: threading.Event) -> None:
        stop.wait()
        self._session.end_within(GRACE_S)

    def _acquire(self) -> bool:
        """Become the one writer, if there is none and the disk allows it."""
        try:
            return self._lock.acquire()
        except OSError as err:
            log.error("the ledger's lock cannot be taken: %s", err.strerror)
            return False

    def _close(self) -> None:
        self._session.close()
        self._lock.release()

    # --- one turn ---

    def _turn(self) -> None:
        self._session.connect()
        self._labels(patient=True)
        now = time.monotonic()
        if self._mover.busy or now >= self._pages_at or self._inbox.postponed:
            self._mover.move()
            self._pages_at = now + PAGES_EVERY_S
        self._maintain()
        self._up()

    def _written(self, rows: int) -> None:
        self._hooks.written(rows)
        self._up()  # before all that waits is written, which may take a while

    def _up(self) -> None:
        if self._note.reachable(True):
            self._hooks.reachable(True)

    def _down(self, err: Exception) -> None:
        self._session.discard()
        if not isinstance(err, (sa.exc.SQLAlchemyError, schema.LedgerTooNew, OSError)):
            log.exception("the ledger's writer failed")
        if self._note.reachable(False, self._database.told(err)):
            self._hooks.reachable(False)

    def _labels(self, *, patient: bool) -> None:
        """Settle the labels that wait. If ``patient``, not yet those whose prediction may be on its way."""
        ready = self._inbox.ready()
        if patient and (young := set[str]().union(*(one.young for one in ready))):
            with self._session.transaction(writes=False) as connection:
                here = known(connection, self._database, young)
            ready = [one for one in ready if one.young <= here or not self._inbox.postpone(one)]
        if not ready:
            return
        try:
            self._settle(ready)
        except Exception as err:
            if not refused(err):
                raise
            for one in ready:
                self._settle_alone(one)

    def _settle(self, ready: list[Waiting]) -> None:
        with self._session.transaction() as connection:
            settled = settle(connection, self._database, [one.ask for one in ready])
        self._inbox.answer(ready, settled.answers)
        self._count(settled)

    def _settle_alone(self, one: Waiting) -> None:
        try:
            self._settle([one])
        except Exception as err:
            if not refused(err):
                raise
            log.error("labels are refused by the database: %s", self._database.told(err))
            set_aside(self._state, one.path.name, one.path.read_bytes())
            self._inbox.answer([one], [{"refused": "the database does not take these labels"}])

    def _count(self, settled: Settled) -> None:
        for (model, outcome), labels in settled.counts.items():
            self._hooks.label(model, outcome, labels)
        for model, seconds in settled.delays:
            self._hooks.delay(model, seconds)

    # --- quality and retention ---

    def _maintain(self) -> None:
        now = time.monotonic()
        changed = self._inbox.settled_at > self._quality_at
        stale = not self._quality_at or now >= self._quality_at + QUALITY_MOST_S
        if now >= self._quality_due_at and (changed or stale):
            self._refresh_quality(now)
        elif now >= self._retention_at:
            self._retention_at = now + RETENTION_S  # first, so that a failure does not come again at once
            with self._session.transaction() as connection:
                more = self._retention.slice(connection, datetime.now(UTC))
            self._retention_at = now if more else self._retention_at
            self._inbox.forget_answers()

    def _refresh_quality(self, now: float) -> None:
        self._quality_at, self._quality_due_at = now, now + QUALITY_MOST_S
        joined = None
        while joined is None or joined.counts:
            with self._session.transaction() as connection:
                joined = join(connection, self._database)
            self._count(joined)
        with self._session.transaction(writes=False) as connection:
            found = quality(connection, datetime.now(UTC) - self._window)
            standings = [standing(connection, contest) for contest in self._contests()]
        self._note.quality(found, standings)
        self._quality_due_at = now + max(QUALITY_LEAST_S, SHARE * (time.monotonic() - now))


@dataclass
class _Note:
    """What others read of the writer: status.json. Written when something changes."""

    path: Path
    _content: dict[str, Any] = field(default_factory=lambda: {"reachable": None, "error": None, "quality": []})

    def reachable(self, reachable: bool, error: str | None = None) -> bool:
        """Say whether the database answers, and give back whether that is new."""
        before = self._content["reachable"]
        if reachable and before:
            return False
        if before is not False and not reachable:
            log.warning("the ledger's database cannot be used; what comes waits on disk: %s", error)
        if before is False and reachable:
            log.info("the ledger's database is back")
        self._content.update(reachable=reachable, error=error)
        self._write()
        return reachable != before

    def quality(self, found: list[dict[str, Any]], standings: list[dict[str, Any]]) -> None:
        self._content.update(quality=found, contests=standings)
        self._write()

    def _write(self) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            notes.write(self.path, {**self._content, "checked_at": now})
        except OSError as err:
            log.error("the ledger's status cannot be written: %s", err.strerror)
