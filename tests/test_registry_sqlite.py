"""MLflow's SQLite file, read directly: always the same answers as MLflow's own client gives, or that client's."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from registries import empty_registry

from serving.errors import RegistryUnreachable, ServingError, UnknownModel
from serving.follower import TICK_S
from serving.registry import ClientRegistry, Ref, Registry, SqliteRegistry, Version, registry_at
from serving.registry.sqlite import REVISIONS
from serving.settings import ROOT

ODD_NAMES = ("with space", "umläut ß 日本", "it's", 'a"b', "100%_", "a;--", "a?b#c", "x..", "CaSe")
UNKNOWN_REVISION = "feedfacecafe"


@dataclass(frozen=True)
class Store:
    """A registry that MLflow itself has filled."""

    file: Path
    refs: tuple[Ref, ...]  # what there is to ask

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.file}"

    def execute(self, statement: str) -> None:
        with closing(sqlite3.connect(self.file)) as db:
            db.execute(statement)
            db.commit()


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Made once: MLflow takes seconds to set up a file."""
    import mlflow
    from mlflow import MlflowClient

    home = tmp_path_factory.mktemp("sqlite")
    uri = empty_registry(home / "mlflow.db")
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    with pytest.MonkeyPatch.context() as patch:
        mlflow.set_tracking_uri(None)  # not where a test before this one said; it takes the variable away too
        patch.setenv("MLFLOW_TRACKING_URI", uri)  # MLflow looks a logged model up there, whatever its client was told
        _fill(client, home)
        for name in ODD_NAMES:
            client.create_registered_model(name)
            client.create_model_version(name, "/odd", tags={"artifact_digest": name})
            client.set_registered_model_alias(name, "champion", "1")
    refs = [
        Ref("iris", alias) for alias in ("champion", "moved", "deleted", "of-deleted", "Champion", "latest", "LATEST")
    ]
    refs += [Ref("iris", None, str(number)) for number in range(12)] + [
        Ref("iris", None, "03"),
        Ref("iris", None, "9" * 30),
    ]
    refs += [Ref("absent"), Ref("absent", "latest"), Ref("absent", None, "1"), Ref("empty"), Ref("empty", "latest")]
    refs += [Ref("prompt"), Ref("prompt", None, "1"), Ref("iris", "no-such"), Ref("iris", "x y"), Ref("IRIS")]
    refs += [Ref(name) for name in ODD_NAMES] + [Ref(name, None, "1") for name in ODD_NAMES]
    return Store(home / "mlflow.db", tuple(refs))


def _fill(client: Any, home: Path) -> None:
    experiment = client.create_experiment("e", artifact_location=(home / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    logged = client.create_logged_model(experiment, "m", source_run_id=run_id)
    client.create_registered_model("iris", tags={"breaking_change": "true"})  # on the model, where it means nothing
    client.create_registered_model("empty")
    sources = ("/models/one", "file:///models/two", f"runs:/{run_id}/model", "s3://bucket/four", "models:/iris/2")
    for source in (*sources, f"models:/{logged.model_id}", "/models/seven", "/models/eight", "/models/nine"):
        client.create_model_version("iris", source, run_id if source.startswith("runs:") else None)
    client.set_model_version_tag("iris", "1", "artifact_digest", "sha256:one")
    client.set_model_version_tag("iris", "2", "breaking_change", "True")
    client.set_model_version_tag("iris", "3", "breaking_change", "no")
    client.set_model_version_tag("iris", "3", "artifact_digest", "")
    client.set_registered_model_alias("iris", "champion", "3")
    client.set_registered_model_alias("iris", "moved", "1")
    client.set_registered_model_alias("iris", "moved", "2")
    client.set_registered_model_alias("iris", "deleted", "1")
    client.delete_registered_model_alias("iris", "deleted")
    client.set_registered_model_alias("iris", "of-deleted", "8")
    with pytest.warns(FutureWarning, match="deprecated"):
        client.transition_model_version_stage("iris", "4", "Archived")
    client.delete_model_version("iris", "8")
    client.delete_model_version("iris", "9")
    client.create_model_version("iris", "/models/nine, again")
    client.register_prompt("prompt", "Say {{word}}")
    client.set_prompt_alias("prompt", "champion", 1)


@pytest.fixture
def store(filled: Store, tmp_path: Path) -> Store:
    """A copy of it, to be changed at will."""
    return Store(Path(shutil.copy(filled.file, tmp_path / "mlflow.db")), filled.refs)


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits neither for migrations nor for locks."""
    monkeypatch.setattr("serving.registry.sqlite.SETTLED_S", 0.01)
    monkeypatch.setattr("serving.registry.sqlite.BUSY_S", 0.01)


def outcome(registry: Registry, ref: Ref) -> Version | tuple[type, str]:
    try:
        return registry.resolve(ref)
    except ServingError as err:
        return type(err), str(err)


def asked_mlflow(registry: SqliteRegistry) -> bool:
    return registry._client._client is not None


# --- the same answers as MLflow's ------------------------------------------------------------------------------------


def test_it_answers_as_mlflows_client_does(filled: Store) -> None:
    ours, mlflows = SqliteRegistry(filled.uri), ClientRegistry(filled.uri)
    for ref in filled.refs:
        theirs = outcome(mlflows, ref)
        if len(ref.version or "") > 20:  # a number that MLflow's driver cannot hold
            theirs = UnknownModel, f"registry: Model Version (name=iris, version={ref.version}) not found"
        elif ref.alias == "x y":  # MLflow says that no alias can be called so
            theirs = UnknownModel, "registry: Registered model alias x y not found."
        elif ref.version == "03":
            assert isinstance(theirs, Version)
        assert outcome(ours, ref) == theirs, ref
    assert not asked_mlflow(ours)


def test_the_answers_are_those_that_were_registered(filled: Store) -> None:
    registry = SqliteRegistry(filled.uri)
    champion = registry.resolve(Ref("iris"))
    assert (champion.version, champion.alias, champion.source) == ("3", "champion", "registry")
    assert champion.location == f"runs:/{champion.run_id}/model"
    assert registry.resolve(Ref("iris", None, "1")).digest == "sha256:one"
    assert [registry.resolve(Ref("iris", None, number)).breaking for number in "123"] == [False, True, False]
    assert registry.resolve(Ref("iris", None, "5")).location == "file:///models/two"
    logged = registry.resolve(Ref("iris", None, "6"))
    assert logged.location.startswith(f"{(filled.file.parent / 'artifacts').as_uri()}/models/m-")
    assert logged.run_id == champion.run_id
    assert registry.resolve(Ref("iris", "latest")).location == "/models/nine, again"


@pytest.mark.parametrize("name", ["a/b", "a:b", "../iris", " "])
def test_a_name_that_mlflow_refuses_is_unknown(filled: Store, name: str) -> None:
    for registry in (SqliteRegistry(filled.uri), ClientRegistry(filled.uri)):
        with pytest.raises(UnknownModel):
            registry.resolve(Ref(name))


def test_a_tag_without_a_value_says_nothing(store: Store) -> None:
    store.execute("UPDATE model_version_tags SET value = NULL")
    version = SqliteRegistry(store.uri).resolve(Ref("iris", None, "2"))
    assert (version.digest, version.breaking) == (None, False)


def test_without_a_storage_location_the_source_counts(store: Store) -> None:
    store.execute("UPDATE model_versions SET storage_location = NULL")
    ours, mlflows = SqliteRegistry(store.uri), ClientRegistry(store.uri)
    assert ours.resolve(Ref("iris", None, "6")).location.startswith("models:/m-")
    assert all(
        outcome(ours, Ref("iris", None, number)) == outcome(mlflows, Ref("iris", None, number)) for number in "1236"
    )


@pytest.mark.parametrize("name", ["with space.db", "50%#1.db", "a%20b.db", "umläut.db", "a&b=c;d.db"])
def test_a_file_is_found_whatever_it_is_called(store: Store, name: str) -> None:
    file = store.file.rename(store.file.with_name(name))
    assert registry_at(f"sqlite:///{file}").resolve(Ref("iris")).version == "3"


def test_a_file_may_be_named_from_here(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.file.parent)
    assert SqliteRegistry("sqlite:///mlflow.db").resolve(Ref("iris")).version == "3"


def test_what_is_said_to_the_driver_goes_to_mlflow(store: Store) -> None:
    registry = registry_at(f"{store.uri}?timeout=7")
    assert isinstance(registry, ClientRegistry)
    assert registry.resolve(Ref("iris")).version == "3"


# --- the lean set ----------------------------------------------------------------------------------------------------

LEAN = """
import sys
for name in ("sqlalchemy", "alembic", *sys.argv[2:]):
    sys.modules[name] = None  # as if it were not installed
from serving.registry import Ref, registry_at
try:
    print(registry_at(sys.argv[1]).resolve(Ref("iris")).version)
except Exception as err:
    print(type(err).__name__, err)
"""


def in_lean_set(store: Store, *missing: str) -> str:
    command = [sys.executable, "-c", LEAN, store.uri, *missing]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def test_neither_mlflow_nor_its_packages_are_needed(store: Store) -> None:
    assert in_lean_set(store, "mlflow", "requests") == "3"


def test_where_mlflow_would_be_needed_and_is_not_there_it_says_so(store: Store) -> None:
    store.execute(f"UPDATE alembic_version SET version_num = '{UNKNOWN_REVISION}'")
    said = in_lean_set(store)
    assert said.startswith("RegistryUnreachable registry sqlite:…: the mlflow that is installed does not read this")
    assert "needs the full mlflow package" in said
    assert str(store.file) not in said
    assert f"revision {UNKNOWN_REVISION} of its schema is not known here" in said


# --- the gate --------------------------------------------------------------------------------------------------------


def test_the_schema_of_the_mlflow_that_is_installed_is_known(filled: Store) -> None:
    with closing(sqlite3.connect(filled.file)) as db:
        revisions = {revision for (revision,) in db.execute("SELECT version_num FROM alembic_version")}
    assert revisions <= REVISIONS


def test_every_known_schema_is_read_rightly(tmp_path: Path) -> None:
    """MLflow's own migrations, one after the other, with content from the first of them on."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import InitialBase, _get_alembic_config, create_sqlalchemy_engine

    store = Store(tmp_path / "mlflow.db", ())
    config = _get_alembic_config(store.uri)
    InitialBase.metadata.create_all(create_sqlalchemy_engine(store.uri))
    migrations = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]
    first = next(number for number, revision in enumerate(migrations) if revision in REVISIONS)
    assert set(migrations[first:]) == REVISIONS
    command.upgrade(config, migrations[first])
    store.execute("INSERT INTO registered_models (name) VALUES ('iris')")
    for number, location in enumerate(("'/stored'", "NULL"), start=1):
        values = f"'iris', {number}, 'None', '/source', {location}, 'r'"
        columns = "name, version, current_stage, source, storage_location, run_id"
        store.execute(f"INSERT INTO model_versions ({columns}) VALUES ({values})")
    store.execute("INSERT INTO registered_model_aliases (name, alias, version) VALUES ('iris', 'champion', 1)")
    store.execute(
        "INSERT INTO model_version_tags (name, version, key, value) VALUES ('iris', 1, 'artifact_digest', 'd')"
    )
    registry = SqliteRegistry(store.uri)
    for revision in migrations[first:]:
        command.upgrade(config, revision)
        assert registry.resolve(Ref("iris")) == Version("iris", "1", "champion", "registry", "/stored", "r", "d"), (
            revision
        )
        assert registry.resolve(Ref("iris", None, "2")).location == "/source", revision
    assert not asked_mlflow(registry)
    mlflows = ClientRegistry(store.uri)
    for ref in (Ref("iris"), Ref("iris", None, "2")):
        assert mlflows.resolve(ref) == registry.resolve(ref)


@pytest.mark.usefixtures("_at_once")
@pytest.mark.parametrize(
    ("statement", "why"),
    [
        (
            f"UPDATE alembic_version SET version_num = '{UNKNOWN_REVISION}'",
            f"revision {UNKNOWN_REVISION} of its schema",
        ),
        (f"INSERT INTO alembic_version VALUES ('{UNKNOWN_REVISION}')", f"revision {UNKNOWN_REVISION} of its schema"),
        (
            "ALTER TABLE model_versions RENAME COLUMN storage_location TO place",
            "model_versions has no column storage_l",
        ),
        ("ALTER TABLE registered_model_aliases RENAME TO aliases", "registered_model_aliases has no column alias"),
        ("INSERT INTO registered_models (workspace, name) VALUES ('other', 'iris')", "models in several workspaces"),
    ],
    ids=["revision", "two revisions", "column", "table", "workspace"],
)
def test_an_unfamiliar_file_is_left_to_mlflows_client(store: Store, statement: str, why: str) -> None:
    store.execute(statement)
    ours, mlflows = SqliteRegistry(store.uri), ClientRegistry(store.uri)
    for ref in (Ref("iris"), Ref("iris", "no-such"), Ref("absent")):
        theirs = outcome(mlflows, ref)
        if isinstance(theirs, tuple) and theirs[0] is RegistryUnreachable:
            got = outcome(ours, ref)
            assert isinstance(got, tuple)
            assert got[0] is RegistryUnreachable
            assert got[1].startswith(theirs[1])
        else:
            assert outcome(ours, ref) == theirs
    assert why in ours._given_up


@pytest.mark.usefixtures("_at_once")
def test_enabled_workspaces_are_left_to_mlflows_client(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    registry = SqliteRegistry(store.uri)
    outcome(registry, Ref("iris"))
    assert registry._given_up == "workspaces are enabled"


@pytest.mark.usefixtures("_at_once")
def test_a_file_that_became_familiar_again_is_read_directly(store: Store) -> None:
    registry = SqliteRegistry(store.uri)
    store.execute("UPDATE registered_models SET workspace = 'other' WHERE name = 'empty'")
    assert outcome(registry, Ref("iris"))[0] is RegistryUnreachable  # type: ignore[index]  # as MLflow has it
    store.execute("UPDATE registered_models SET workspace = 'default'")
    assert registry.resolve(Ref("iris")).version == "3"


def test_a_file_that_mlflow_is_setting_up_is_waited_for(tmp_path: Path) -> None:
    """MLflow's client would run the migrations too, at the same time, if it were asked."""
    file = tmp_path / "mlflow.db"
    uri = f"sqlite:///{file}"
    code = f"from mlflow import MlflowClient as C; C({uri!r}, {uri!r}).create_registered_model('iris')"
    registry, seen = SqliteRegistry(uri), set()
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as training:
        while training.poll() is None:
            seen.add(outcome(registry, Ref("iris", None, "1")))
            time.sleep(TICK_S)
    assert training.returncode == 0
    assert {kind for kind, _ in seen} == {RegistryUnreachable, UnknownModel}  # type: ignore[misc]
    assert not asked_mlflow(registry)


# --- a file that cannot be read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", None], ids=["empty", "tables of others"])
def test_a_file_without_mlflows_tables_is_not_set_up_by_asking(tmp_path: Path, content: bytes | None) -> None:
    store = Store(tmp_path / "mlflow.db", ())
    if content is None:
        store.execute("CREATE TABLE others (x)")
    else:
        store.file.write_bytes(content)
    before = store.file.read_bytes()
    with pytest.raises(RegistryUnreachable, match="MLflow has not set up this file yet"):
        SqliteRegistry(store.uri).resolve(Ref("iris"))
    assert store.file.read_bytes() == before


def _cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 3)


def _scratch(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))


def _replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [_cut_off, _scratch, _replace_by_folder])
def test_a_damaged_file_is_unreachable(store: Store, damage: Callable[[Path], None]) -> None:
    damage(store.file)
    registry = SqliteRegistry(store.uri)
    for ref in (Ref("iris"), Ref("iris", None, "1"), Ref("absent")):
        with pytest.raises(RegistryUnreachable, match=r"^registry"):
            registry.resolve(ref)
    assert not asked_mlflow(registry)


@pytest.mark.usefixtures("_at_once")
def test_a_locked_file_is_unreachable_until_it_is_free(store: Store) -> None:
    registry = SqliteRegistry(store.uri)
    with closing(sqlite3.connect(store.file, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")  # a transaction under way is no hindrance
        assert registry.resolve(Ref("iris")).version == "3"
        writer.execute("ROLLBACK")
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RegistryUnreachable, match="registry sqlite:…: database is locked"):
            registry.resolve(Ref("iris"))
    assert registry.resolve(Ref("iris")).version == "3"


def test_a_lock_that_is_held_for_a_moment_is_waited_for(store: Store) -> None:
    with closing(sqlite3.connect(store.file, isolation_level=None, check_same_thread=False)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(0.1, writer.execute, ("ROLLBACK",))
        release.start()
        assert SqliteRegistry(store.uri).resolve(Ref("iris")).version == "3"
        release.join()


@pytest.mark.usefixtures("_at_once")
def test_a_file_whose_writer_died_is_mended_by_mlflow(store: Store) -> None:
    code = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN")
db.execute("UPDATE registered_model_aliases SET version = 1")
many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i + 1 FROM n WHERE i < 9999) SELECT i FROM n"
db.execute(f"CREATE TABLE much AS {many}")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code, str(store.file)], check=True)
    assert Path(f"{store.file}-journal").is_file()
    assert SqliteRegistry(store.uri).resolve(Ref("iris")).version == "3"
    again = SqliteRegistry(store.uri)
    assert again.resolve(Ref("iris")).version == "3"
    assert not asked_mlflow(again)


# --- what a look leaves behind ---------------------------------------------------------------------------------------


def test_a_look_changes_nothing(store: Store) -> None:
    before = store.file.read_bytes()
    registry = SqliteRegistry(store.uri)
    fingerprint = registry.fingerprint()
    for ref in store.refs:
        outcome(registry, ref)
    assert registry.fingerprint() == fingerprint
    assert store.file.read_bytes() == before
    assert [path.name for path in store.file.parent.iterdir()] == ["mlflow.db"]
    assert not [link for link in Path("/proc/self/fd").iterdir() if os.path.realpath(link) == str(store.file)]


def test_a_write_ahead_log_is_read_and_watched(store: Store) -> None:
    registry = SqliteRegistry(store.uri)
    with closing(sqlite3.connect(store.file)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        registry.resolve(Ref("iris"))
        before = registry.fingerprint()
        writer.execute("UPDATE registered_model_aliases SET version = 1 WHERE alias = 'champion'")
        writer.commit()
        assert registry.fingerprint() != before
        assert registry.resolve(Ref("iris")).version == "1"
    registry.resolve(Ref("iris"))  # the writer took its log with it, and this look made another
    before = registry.fingerprint()
    registry.resolve(Ref("iris"))
    assert registry.fingerprint() == before, "each look would cause the next"


def test_many_threads_may_ask_at_once(filled: Store) -> None:
    registry = SqliteRegistry(filled.uri)
    got: list[str] = []
    threads = [
        threading.Thread(target=lambda: got.extend(registry.resolve(Ref("iris")).version for _ in range(50)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == ["3"] * 400
