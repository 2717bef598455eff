"""The mover: pages from the spool into the database, and off the disk once they are committed."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import sqlalchemy as sa

from serving.ledger import schema
from serving.ledger.database import Database
from serving.ledger.labels import share
from serving.ledger.page import Line, Row, read
from serving.ledger.session import Session
from serving.ledger.spool import waiting
from serving.routing import SHADOW
from serving.state import LedgerState

TRANSACTION_ROWS = 5000
TRANSACTION_PAGES = 100
STATEMENT_ROWS = 2000
LARGE_BYTES = 4 * 1024 * 1024  # a page beyond is put in part by part, so that what was done of it stays done
MAX_BAD = 100
ID, ROW, ROUTE = (list(schema.predictions.columns.keys()).index(name) for name in ("prediction_id", "row", "route"))
MAX_BAD_BYTES = 1_000_000

log = logging.getLogger("serving.ledger")


class Mover:
    """Pages, the oldest first. What cannot be written is counted and set aside, and holds up nothing."""

    def __init__(
        self,
        database: Database,
        session: Session,
        state: LedgerState,
        *,
        written: Callable[[int], None],
        lost: Callable[[int, str], None],
    ) -> None:
        """``written`` is called with rows after their commit, ``lost`` with how many and why."""
        self._database = database
        self._session = session
        self._state = state
        self._written = written
        self._lost = lost
        self._backlog: deque[Path] = deque()
        self._stuck: set[Path] = set()  # written, and cannot be removed

    @property
    def busy(self) -> bool:
        """Whether pages wait that were seen already."""
        return bool(self._backlog)

    def move(self) -> None:
        """Write all pages that wait, or as many as there are until somebody waits for an answer to labels."""
        known = self._stuck.union(self._backlog)
        self._backlog.extend(path for path in waiting(self._state.spool) if path not in known)
        while self._backlog:
            for _ in range(self._some()):
                self._remove(self._backlog.popleft())
            if waiting(self._state.asks) or self._session.out_of_time:
                return

    def _some(self) -> int:
        """Put some pages of the backlog in, and say how many."""
        if _size(self._backlog[0]) > LARGE_BYTES:
            self._in_parts(self._backlog[0])
            return 1
        pages = 0
        unread: list[bytes] = []
        versions: set[Row] = set()
        rows: list[Row] = []
        for path in list(self._backlog)[:TRANSACTION_PAGES]:
            if len(rows) >= TRANSACTION_ROWS or (pages and _size(path) > LARGE_BYTES):
                break
            for line in self._lines(path):
                versions |= {line.version} if line.version is not None else set()
                rows.extend(line.predictions)
                unread += [line.unreadable] if line.unreadable is not None else []
            pages += 1
        try:
            with self._session.transaction() as connection:
                self._put(connection, versions, rows)
        except Exception as err:
            if not refused(err):
                raise
            self._in_parts(self._backlog[0])
            return 1
        self._written(len(rows))
        self._lose(self._backlog[0].name, unread)
        return pages

    def _in_parts(self, path: Path) -> None:
        """A page by several transactions; a part in which the database refuses something, row by row."""
        lost: list[bytes] = []
        for line in self._lines(path):
            if line.unreadable is not None:
                lost.append(line.unreadable)
            for start in range(0, len(line.predictions), TRANSACTION_ROWS):
                part = Line(line.predictions[start : start + TRANSACTION_ROWS], line.version)
                lost.extend(self._part(part))
        self._lose(path.name, lost)

    def _part(self, part: Line) -> list[bytes]:
        """Put ``part`` in, and give back the rows that are refused."""
        try:
            with self._session.transaction() as connection:
                self._put(connection, [part.version] if part.version is not None else [], part.predictions)
        except Exception as err:
            if not refused(err):
                raise
            if len(part.predictions) == 1:
                log.error("a prediction is refused by the database: %s", self._database.told(err))
                return [repr(part.predictions[0]).encode("utf-8", "replace")]
            return [row for one in part.predictions for row in self._part(Line([one], part.version))]
        self._written(len(part.predictions))
        return []

    def _put(self, connection: sa.Connection, versions: Collection[Row], rows: Sequence[Row]) -> None:
        if versions:
            in_order = sorted(versions, key=lambda row: row[:3])  # or pods could wait for each other
            self._database.put(connection, schema.versions, in_order)
        for start in range(0, len(rows), STATEMENT_ROWS):
            self._session.go_on()
            self._database.put(connection, schema.predictions, rows[start : start + STATEMENT_ROWS])
        if shadows := [(row[ID], row[ROW]) for row in rows if row[ROUTE] == SHADOW]:
            share(connection, self._database, shadows)

    def _lines(self, path: Path) -> Iterator[Line]:
        try:
            return read(path.read_bytes())
        except OSError as err:
            log.error("a page of predictions cannot be read: %s", err.strerror)
            return iter([Line(unreadable=b"")])

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as err:
            log.error("a page that was written cannot be removed: %s", err.strerror)
            self._stuck.add(path)

    def _lose(self, name: str, lost: list[bytes]) -> None:
        if lost:
            log.error("%d lines of predictions cannot be written; see %s", len(lost), self._state.bad)
            self._lost(len(lost), "unreadable")
            set_aside(self._state, name, b"\n".join(lost))


def set_aside(state: LedgerState, name: str, content: bytes) -> None:
    """Keep what cannot be written, or its beginning, for people to look at; not more than `MAX_BAD` of it."""
    with contextlib.suppress(OSError):
        state.bad.mkdir(parents=True, exist_ok=True)
        if len(waiting(state.bad)) < MAX_BAD:
            (state.bad / name).write_bytes(content[:MAX_BAD_BYTES])


def refused(err: Exception) -> bool:
    """Whether the database answered, and does not take this content."""
    if isinstance(err, (ValueError, TypeError, OverflowError, sa.exc.DataError, sa.exc.IntegrityError)):
        return True
    if not isinstance(err, sa.exc.DBAPIError):
        return isinstance(err, sa.exc.StatementError)
    return str(getattr(err.orig, "pgcode", None) or "")[:2] in ("22", "23", "54")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
