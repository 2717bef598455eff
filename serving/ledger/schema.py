"""The ledger's tables, and how a database gets them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql

VERSION_TABLE = "ledger_alembic_version"
UPGRADE_LOCK = 0x6C656467  # any number that nobody else takes in this database


class LedgerTooNew(Exception):
    """The tables were made by a later release than this one; nothing may be written."""


class Moment(sa.types.TypeDecorator[datetime]):
    """A time with its zone. SQLite has no such type: there it is UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _: sa.Dialect) -> datetime | None:
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: Any, _: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def json_text() -> sa.types.TypeEngine[Any]:
    """JSON, handed over and given back as text. Not SQLite's own, where a JSON text ``"5"`` comes back as a number."""
    return sa.Text().with_variant(postgresql.JSON(none_as_null=True), "postgresql")


def identifier() -> sa.types.TypeEngine[Any]:
    """A UUID, as text with hyphens on our side."""
    return sa.Text().with_variant(postgresql.UUID(as_uuid=False), "postgresql")


metadata = sa.MetaData()

# One row for each predicted row. Ids sort by time (UUIDv7), so the primary key does too.
predictions = sa.Table(
    "ledger_predictions",
    metadata,
    sa.Column("prediction_id", identifier(), primary_key=True),
    sa.Column("row", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", Moment, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("features", json_text()),
    sa.Column("output", json_text()),
    sa.Index("ledger_predictions_by_version", "model", "version", "at"),
    sqlite_with_rowid=False,
)

# What turned out to be true. From ``model`` on null until the prediction is here too.
labels = sa.Table(
    "ledger_labels",
    metadata,
    sa.Column("prediction_id", identifier(), primary_key=True),
    sa.Column("row", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("label", json_text(), nullable=False),
    sa.Column("observed_at", Moment, nullable=False),
    sa.Column("received_at", Moment, nullable=False),
    sa.Column("model", sa.Text),
    sa.Column("version", sa.Text),
    sa.Column("predicted_at", Moment),
    sa.Column("delay_s", sa.Double),
    sa.Column("class_name", sa.Text),
    sa.Column("correct", sa.Double),
    sa.Column("brier", sa.Double),
    sa.Column("log_loss", sa.Double),
    sa.Column("absolute_error", sa.Double),
    sa.Index("ledger_labels_by_version", "model", "version", "predicted_at"),
    sqlite_with_rowid=False,
)

# The classes of each version, by which labels are understood.
versions = sa.Table(
    "ledger_versions",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("classes", json_text()),
)


def upgrade(connection: sa.Connection) -> None:
    """Bring the tables up to date, however many pods do so at once. Raises `LedgerTooNew`.

    ``connection`` is in no transaction.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    with connection.begin():
        if _revisions(connection) == set(scripts.get_heads()):
            return
    with connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(UPGRADE_LOCK)))
        known = {script.revision for script in scripts.walk_revisions()}
        if newer := _revisions(connection) - known:
            raise LedgerTooNew(f"the database has the ledger's revision {', '.join(sorted(newer))}, a later release's")
        _run(connection, config, scripts)


def _revisions(connection: sa.Connection) -> set[str]:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return set(context.get_current_heads())


def _run(connection: sa.Connection, config: Config, scripts: ScriptDirectory) -> None:
    """Alembic's own environment, without the file that it usually takes."""

    def steps(revision: Any, _: MigrationContext) -> Any:
        return scripts._upgrade_revs("head", revision)

    environment = EnvironmentContext(config, scripts, fn=steps, destination_rev="head")
    with environment:
        environment.configure(connection=connection, target_metadata=metadata, version_table=VERSION_TABLE)
        environment.run_migrations()
