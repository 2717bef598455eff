"""The database: what may be its address, what is said of its errors, and how long it may take."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from ledgers import KINDS, new_url

from serving.errors import SettingError
from serving.ledger import schema
from serving.ledger.database import Database, discard, reading
from serving.ledger.patience import Patience
from serving.ledger.schema import VERSION_TABLE, metadata


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    database = Database(new_url(request.param, tmp_path))
    yield database
    database.engine.dispose()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://u:hunter2@h/d", "must begin with"),
        ("", "must begin with"),
        ("hunter2", "must begin with"),
        ("postgresql+asyncpg://u:hunter2@h/d", "must name no driver"),
        ("postgresql://u:hunter2/@h:x/d", "%40"),
        ("postgresql://u:hunter2@h:port/d", "%40"),
    ],
)
def test_what_is_no_address_is_said_without_the_password(url: str, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        Database(url)
    assert "DATABASE_URL" in str(caught.value)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_addresses_of_postgresql(scheme: str) -> None:
    database = Database(f"{scheme}://u:p%40ss@h:5433/d?sslmode=require")
    assert database.dialect == "postgresql"
    assert database.engine.url.password == "p@ss"
    assert database.engine.url.query == {"sslmode": "require"}


@pytest.mark.parametrize("password", ["hunter2", "a:b/c", "ä@ß"])
def test_an_error_never_has_the_password(password: str) -> None:
    url = sa.URL.create("postgresql", "u", password, "127.0.0.1", 1, "d")
    database = Database(url.render_as_string(hide_password=False))
    with pytest.raises(sa.exc.OperationalError) as caught:
        database.connect()
    assert "refused" in database.told(caught.value)
    text = database.told(ValueError(f"could not use {url.render_as_string(hide_password=False)} or {password}\nmore"))
    assert "***" in text
    assert password not in text
    assert "\n" not in text


def test_an_error_of_many_words_is_cut(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x")
    assert len(database.told(ValueError("x" * 10_000))) == 300
    assert database.told(ValueError()) == "ValueError"


def test_the_tables_are_what_the_migrations_make(database: Database) -> None:
    connection = database.connect()
    connection.close()
    again = database.connect()  # nothing to do
    with reading(again):
        context = MigrationContext.configure(again, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, metadata) == []
    again.close()


def test_reading_keeps_no_writer_waiting(database: Database) -> None:
    one, other = database.connect(), database.connect()
    with reading(one):
        one.execute(sa.text("SELECT count(*) FROM ledger_predictions"))
        with other.begin():
            other.execute(sa.text("DELETE FROM ledger_predictions"))
    one.close()
    other.close()


def test_postgresql_is_told_how_long_a_statement_may_take(tmp_path: Path) -> None:
    database = Database(new_url("postgresql", tmp_path))
    connection = database.connect()
    with connection.begin():
        assert connection.scalar(sa.text("SHOW statement_timeout")) == "30s"
    connection.close()
    database.engine.dispose()


def test_ids_are_looked_up_however_many(database: Database) -> None:
    ids = [str(uuid.uuid4()) for _ in range(40_000)]
    connection = database.connect()
    columns = schema.predictions.columns
    row = {"prediction_id": ids[7], "row": 0, "at": datetime.now(UTC)}
    texts = dict.fromkeys(("model", "version", "digest", "route"), "x")
    with connection.begin():
        database.put(connection, schema.predictions, [tuple({**row, **texts}.get(column.name) for column in columns)])
        query = sa.select(columns.prediction_id).where(database.among(columns.prediction_id, ids))
        assert list(connection.scalars(query)) == [ids[7]]
        assert list(connection.scalars(query.where(database.among(columns.prediction_id, [])))) == []
    connection.close()


def test_a_table_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    """SQLite has one writer: the second one waits, and then goes on."""
    database = Database(f"sqlite:///{tmp_path}/ledger.db")
    one, other = database.connect(), Database(f"sqlite:///{tmp_path}/ledger.db").connect()
    first = one.begin()
    threading.Timer(0.2, first.commit).start()
    began = time.monotonic()
    with other.begin():
        assert 0.1 < time.monotonic() - began < 3.0
    one.close()
    other.close()


def test_a_call_that_takes_too_long_is_cut(database: Database) -> None:
    connection = database.connect()
    endless = {
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "postgresql": "SELECT pg_sleep(60)",
    }[database.dialect]
    began = time.monotonic()
    with Patience(connection, 60.0) as patience:
        patience.renew(0.2)
        with pytest.raises(sa.exc.DBAPIError):
            connection.execute(sa.text(endless))
    assert 0.1 < time.monotonic() - began < 3.0
    discard(connection)


def test_a_call_that_is_over_is_not_cut(database: Database) -> None:
    connection = database.connect()
    with Patience(connection, 0.1) as patience:
        pass
    patience.renew(0.0)
    time.sleep(0.15)
    with reading(connection):
        assert connection.scalar(sa.text("SELECT 1")) == 1
    connection.close()
