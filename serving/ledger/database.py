"""The database: SQLite or PostgreSQL."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from serving.errors import SettingError
from serving.ledger import schema
from serving.ledger.patience import Patience

CONNECT_S = 5
LEAST_CONNECT_S = 2  # libpq's own
STATEMENT_S = 30  # what the server is told
CALL_S = 40.0  # what it is given when it does not keep to that
BUSY_S = 5.0
ZONELESS = len("2026-01-31 12:00:00.000000")
MAX_ERROR_CHARACTERS = 300
POSTGRESQL = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "serving.ledger",
}


class Database:
    """Where the ledger is. Making one connects to nothing."""

    def __init__(self, url: str) -> None:
        """``sqlite:///path``, or ``postgresql://…`` as libpq knows it. Raises `SettingError`."""
        self._url = _parsed(url)
        self._secrets = _secrets(url, self._url)
        self._connect_s = CONNECT_S
        self.dialect = self._url.get_backend_name()
        self.engine = self._postgresql() if self.dialect == "postgresql" else self._sqlite()

    def connect(self, seconds: float = CALL_S) -> sa.Connection:
        """A connection to a database whose tables are up to date, which may take ``seconds``.

        Raises what the driver does, or `LedgerTooNew`.
        """
        if self.dialect == "sqlite" and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        self._connect_s = max(LEAST_CONNECT_S, min(CONNECT_S, int(seconds)))
        connection = self.engine.connect()
        try:
            with Patience(connection, seconds):
                schema.upgrade(connection)
        except BaseException:
            discard(connection)
            raise
        return connection

    def put(
        self,
        connection: sa.Connection,
        table: sa.Table,
        rows: Sequence[tuple[Any, ...]],
        on_conflict: str = "DO NOTHING",
    ) -> None:
        """Insert ``rows``, which are values in the order of the columns; ``on_conflict`` says what if one is there.

        SQLAlchemy's own way takes three times as long: it looks at every value of every row.
        """
        times = [position for position, column in enumerate(table.columns) if isinstance(column.type, schema.Moment)]
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        for position in times:
            columns[position] = [_written(time) for time in columns[position]]
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        into = f"INSERT INTO {table.name} ({names})"
        if self.dialect == "postgresql":
            types = [column.type.compile(self.engine.dialect) for column in table.columns]
            arrays = ", ".join(f"%s::{kind}[]" for kind in types)
            given = tuple(list(column) for column in columns)
            connection.exec_driver_sql(f"{into} SELECT * FROM unnest({arrays}) ON CONFLICT {on_conflict}", given)
            return
        for position in times:
            columns[position] = [text and text[:ZONELESS] for text in columns[position]]  # as `Moment` has it there
        places = ", ".join("?" for _ in columns)
        statement = f"{into} VALUES ({places}) ON CONFLICT {on_conflict}"
        connection.exec_driver_sql(statement, list(zip(*columns, strict=True)))

    def among(self, column: sa.Column[str], ids: Collection[str]) -> sa.ColumnElement[bool]:
        """Whether ``column`` is one of ``ids``, however many: they travel as one value."""
        if self.dialect == "postgresql":
            uuids = postgresql.ARRAY(postgresql.UUID(as_uuid=False))
            return column == sa.any_(sa.bindparam(None, list(ids), type_=uuids))
        given = sa.func.json_each(json.dumps(list(ids))).table_valued("value")
        return column.in_(sa.select(given.c.value))

    def told(self, err: BaseException) -> str:
        """What ``err`` says, in one line and without the password."""
        cause = err.orig if isinstance(err, sa.exc.DBAPIError) and err.orig is not None else err
        text = " ".join(str(cause).split()) or type(cause).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:MAX_ERROR_CHARACTERS]

    def _postgresql(self) -> sa.Engine:
        engine = sa.create_engine(
            self._url.set(drivername="postgresql+psycopg2"),
            connect_args={key: value for key, value in POSTGRESQL.items() if key not in self._url.query},
            pool_size=1,
            max_overflow=1,
            pool_timeout=CONNECT_S,
            json_serializer=_as_it_is,
            json_deserializer=_as_it_is,
            hide_parameters=True,
        )
        sa.event.listen(engine, "begin", _limit_statements)
        sa.event.listen(engine, "do_connect", lambda *given: given[-1].update(connect_timeout=self._connect_s))
        return engine

    def _sqlite(self) -> sa.Engine:
        engine = sa.create_engine(self._url, connect_args={"timeout": BUSY_S}, hide_parameters=True)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine


def discard(connection: sa.Connection) -> None:
    """Close a connection that may be broken: it is not used again."""
    with contextlib.suppress(Exception):
        connection.invalidate()
    with contextlib.suppress(Exception):
        connection.close()


@contextlib.contextmanager
def reading(connection: sa.Connection) -> Iterator[sa.Connection]:
    """A transaction that only reads, and keeps no writer waiting."""
    connection.execution_options(ledger_reads=True)
    try:
        with connection.begin():
            yield connection
    finally:
        connection.execution_options(ledger_reads=False)


def _parsed(url: str) -> sa.URL:
    scheme, found, rest = url.partition("://")
    kind = scheme.partition("+")[0]
    if not found or kind not in ("sqlite", "postgresql", "postgres"):
        raise SettingError("DATABASE_URL must begin with sqlite:/// or postgresql://")
    if "+" in scheme and scheme != "postgresql+psycopg2":
        raise SettingError("DATABASE_URL must name no driver: sqlite:/// or postgresql://")
    try:
        return sa.make_url(f"{'postgresql' if kind == 'postgres' else scheme}://{rest}")
    except (sa.exc.ArgumentError, ValueError):  # whose text may hold the password
        raise SettingError(
            "DATABASE_URL cannot be read; expected postgresql://user:password@host:port/name, "
            "where characters such as @ : / in the password are written as %40 %3A %2F"
        ) from None


def _secrets(url: str, parsed: sa.URL) -> list[str]:
    """The password as it is, and as it stands in the URL."""
    _, _, rest = url.partition("://")
    written = rest.rpartition("@")[0].partition(":")[2]
    queried = parsed.query.get("password", "")
    found = {str(parsed.password or ""), written, unquote(written), queried if isinstance(queried, str) else ""}
    return sorted(found - {""}, key=len, reverse=True)


def _written(time: datetime | None) -> str | None:
    """UTC, with its zone at the end."""
    return time.astimezone(UTC).isoformat(" ", "microseconds") if time is not None else None


def _as_it_is(text: Any) -> Any:
    return text


def _limit_statements(connection: sa.Connection) -> None:
    """For this transaction only: poolers between us and the server take no settings that stay."""
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {STATEMENT_S * 1000}")


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin_sqlite`, DDL included
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a label that was answered outlives a loss of power


def _begin_sqlite(connection: sa.Connection) -> None:
    """Who is going to write says so first: a transaction that reads before it writes could not go on otherwise."""
    reads = connection.get_execution_options().get("ledger_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
