"""MLflow's SQLite file as a registry, read with the standard library.

MLflow's own client takes two seconds to import and 140 MB in a process that stays, and needs packages that a serving
set has no other use for.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving import notes
from serving.errors import RegistryUnreachable, UnknownModel
from serving.registry.client import ClientRegistry
from serving.registry.versions import Ref, Version

if TYPE_CHECKING:
    import sqlite3

BUSY_S = 1.0  # a writer holds the file for milliseconds
SETTLED_S = 2.0  # a step of a migration takes half a second

# MLflow's migrations from 3.10 to 3.17: since workspaces came, the tables below have stayed as they are.
REVISIONS = frozenset(
    (
        *("1b5f0d9ad7c1", "e1f2a3b4c5d6", "76601a5f987d", "c3d6457b6d8a", "a5b4c3d2e1f0", "ae8bbe7743c9"),
        *("7d34483879f0", "da6fb0208061", "89d3d66ed43f", "b7e4c1a90f23", "a8b9c0d1e2f3", "c1d2e3f4a5b6"),
        *("c3d9e7f1a2b4", "6f8d9c3b2a1e", "1971f2d9a75b", "17e22815139b", "b7e2c1a4d9f3", "75868b020152"),
        "dc11669786a5",
    )
)
COLUMNS = {
    "registered_models": {"workspace", "name"},
    "registered_model_aliases": {"workspace", "name", "alias", "version"},
    "model_versions": {"workspace", "name", "version", "current_stage", "source", "storage_location", "run_id"},
    "model_version_tags": {"workspace", "name", "version", "key", "value"},
}
PROMPT_TAG = "mlflow.prompt.is_prompt"  # MLflow keeps prompts among the models

MODEL = "SELECT 1 FROM registered_models WHERE workspace = 'default' AND name = ?"
ALIAS = "SELECT version FROM registered_model_aliases WHERE workspace = 'default' AND name = ? AND alias = ?"
VERSIONS = """
    SELECT version, storage_location, source, run_id FROM model_versions
    WHERE workspace = 'default' AND name = ? AND current_stage != 'Deleted_Internal'
"""
TAGS = "SELECT key, value FROM model_version_tags WHERE workspace = 'default' AND name = ? AND version = ?"


class SqliteRegistry:
    """A file that MLflow keeps its registry in. What is unfamiliar about one is left to MLflow's client."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._file = Path(uri.removeprefix("sqlite:///"))
        self._client = ClientRegistry(uri)
        self._given_up = ""  # why MLflow's client was asked last

    def fingerprint(self) -> object:
        return tuple(notes.stamp(Path(f"{self._file}{end}")) for end in ("", "-wal"))

    def resolve(self, ref: Ref) -> Version:
        unfamiliar = self._given_up
        while True:
            try:
                return self._read(ref)
            except _Unfamiliar as err:
                if str(err) == unfamiliar:
                    break
                unfamiliar = str(err)
            # Setting up or migrating a file passes through many schemas: wait until one stands still.
            time.sleep(SETTLED_S)
        self._given_up = unfamiliar
        return self._through_mlflow(ref)

    def _through_mlflow(self, ref: Ref) -> Version:
        try:
            return self._client.resolve(ref)
        except RegistryUnreachable as err:
            raise RegistryUnreachable(f"{err} (asked because {self._given_up})") from err

    def _read(self, ref: Ref) -> Version:
        """Raises `_Unfamiliar` too."""
        import sqlite3

        if not self._file.is_file():
            raise RegistryUnreachable(f"registry: there is no SQLite file {self._file.name}")
        address = f"{self._file.absolute().as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None)) as db:
                db.execute("BEGIN")  # one state of the file for all that follows
                _check_schema(db)
                return _find(db, ref)
        except sqlite3.Error as err:
            if getattr(err, "sqlite_errorname", "") == "SQLITE_READONLY_ROLLBACK":
                raise _Unfamiliar("its last writer died in the middle, which only another writer can undo") from err
            raise RegistryUnreachable(f"registry sqlite:…: {err}") from err


class _Unfamiliar(Exception):
    """This module was not tested with what the file holds."""


def _check_schema(db: sqlite3.Connection) -> None:
    if os.environ.get("MLFLOW_ENABLE_WORKSPACES", "").lower() in ("true", "1"):
        raise _Unfamiliar("workspaces are enabled")
    if not _columns(db, "alembic_version"):
        raise RegistryUnreachable("registry sqlite:…: MLflow has not set up this file yet")
    for (revision,) in db.execute("SELECT version_num FROM alembic_version"):
        if revision not in REVISIONS:
            raise _Unfamiliar(f"revision {revision} of its schema is not known here")
    for table, wanted in COLUMNS.items():
        if missing := wanted - _columns(db, table):
            raise _Unfamiliar(f"its table {table} has no column {min(missing)}")
    if db.execute("SELECT 1 FROM registered_models WHERE workspace != 'default'").fetchone():
        raise _Unfamiliar("it has models in several workspaces")


def _columns(db: sqlite3.Connection, table: str) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM pragma_table_info(?)", (table,))}


def _find(db: sqlite3.Connection, ref: Ref) -> Version:
    number, location, source, run_id = _row(db, ref)
    tags: dict[str, str | None] = dict(db.execute(TAGS, (ref.name, number)))
    if PROMPT_TAG in tags:
        raise UnknownModel(f"registry: Registered Model with name={ref.name!r} not found.")
    return Version.registered(ref, str(number), location or source, run_id, tags)


def _row(db: sqlite3.Connection, ref: Ref) -> Any:
    """Number, storage location, source and run of the version that ``ref`` names. Raises `UnknownModel`."""
    version: Any = ref.version
    if not version:
        if not db.execute(MODEL, (ref.name,)).fetchone():
            raise UnknownModel(f"registry: Registered Model with name={ref.name} not found")
        if str(ref.alias).lower() == "latest":  # an alias that MLflow works out itself
            newest = db.execute(f"{VERSIONS} ORDER BY version DESC LIMIT 1", (ref.name,)).fetchone()
            if not newest:
                raise UnknownModel(f"registry: Latest version not found for model {ref.name}.")
            return newest
        alias = db.execute(ALIAS, (ref.name, ref.alias)).fetchone()
        if not alias:
            raise UnknownModel(f"registry: Registered model alias {ref.alias} not found.")
        (version,) = alias
    row = db.execute(f"{VERSIONS} AND version = ?", (ref.name, version)).fetchone()
    if not row:
        raise UnknownModel(f"registry: Model Version (name={ref.name}, version={version}) not found")
    return row
