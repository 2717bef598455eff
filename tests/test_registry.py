"""Registries and fetching: a real MLflow server, a real database, real folders, and servers that misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from registries import empty_registry
from served import free_port

from serving.digest import folder_digest
from serving.errors import PrepareFailed, RegistryUnreachable, UnknownModel, VersionRefused
from serving.registry import (
    Auth,
    ClientRegistry,
    LocalFiles,
    Ref,
    Registry,
    RestRegistry,
    SqliteRegistry,
    Version,
    fetch,
    registry_at,
)
from serving.settings import ROOT

OPEN = Auth()
START_S = 90.0

# Names that have to be quoted in an address. Those with # or %20 the server itself does not take.
ODD_NAMES = ("with space.txt", "umläut-ß-日本.txt", "100%.txt", "a+b&c=d.txt", "archive.gz")


# --- Ref -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("iris", Ref("iris", "champion", None)),
        ("iris@challenger", Ref("iris", "challenger", None)),
        ("iris/12", Ref("iris", None, "12")),
        ("my iris-2.0_x", Ref("my iris-2.0_x", "champion", None)),
    ],
)
def test_a_ref_is_a_name_with_an_alias_or_a_version(text: str, ref: Ref) -> None:
    assert Ref.parse(text) == ref
    assert Ref.parse(str(ref)) == ref


@pytest.mark.parametrize(
    "text", ["", "@champion", "/1", "iris@", "iris/", "iris/one", "iris/1/2", "iris/-1", ".", "../1"]
)
def test_anything_else_is_no_ref(text: str) -> None:
    with pytest.raises(ValueError, match="is not a name, name@alias or name/version"):
        Ref.parse(text)


# --- what is registered ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MlflowServer:
    """A running ``mlflow server`` that also serves artifacts."""

    uri: str
    home: Path

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One server on SQLite, without the job runners, which would be seven more processes."""
    home, port = tmp_path_factory.mktemp("mlflow-server"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", empty_registry(home / "mlflow.db")]
    command += ["--artifacts-destination", str(home / "artifacts"), "--serve-artifacts"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home, env={**os.environ, **quiet})
    try:
        _await_listening(port, process, home / "server.log")
        yield MlflowServer(f"http://127.0.0.1:{port}", home)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _await_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"the MLflow server did not start: {log.read_text(errors='replace')[-2000:]}")


@dataclass(frozen=True)
class Registered:
    """One model on the server, in two versions, and the files of each as they were logged."""

    server: MlflowServer
    run_id: str
    first: Path
    second: Path

    @property
    def database(self) -> str:
        return f"sqlite:///{self.server.home / 'mlflow.db'}"


@pytest.fixture(scope="session")
def registered(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    home = tmp_path_factory.mktemp("logged")
    first = home / "first"
    (first / "data" / "sub folder" / "deep").mkdir(parents=True)
    (first / "MLmodel").write_text("flavors: {}\n")
    for name in ODD_NAMES:
        (first / "data" / "sub folder" / name).write_text(f"content of {name}")
    (first / "data" / "sub folder" / "deep" / "weights.bin").write_bytes(os.urandom(3_000_000))
    (first / "data" / "nothing").touch()
    second = home / "second"
    (second / "artifacts" / "artifacts").mkdir(parents=True)  # as the place on the server is called
    (second / "MLmodel").write_text("flavors: {python_function: {}}\n")
    (second / "artifacts" / "artifacts" / "words.txt").write_text("good")
    client = mlflow_server.client
    run_id = client.create_run("0").info.run_id
    client.create_registered_model("iris")
    for number, folder in enumerate((first, second), start=1):
        place = f"model-{number}" if number == 1 else "artifacts"
        client.log_artifacts(run_id, str(folder), place)
        source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
        client.create_model_version("iris", source, run_id, tags={"artifact_digest": folder_digest(folder)})
    client.set_registered_model_alias("iris", "champion", "1")
    client.set_model_version_tag("iris", "2", "breaking_change", "True")
    return Registered(mlflow_server, run_id, first, second)


@pytest.fixture(params=["http", "file", "client"])
def registry(request: pytest.FixtureRequest, registered: Registered) -> Registry:
    """The same registry, asked over HTTP, by reading its file, and through MLflow's client."""
    if request.param == "client":
        return ClientRegistry(registered.database)
    return registry_at(registered.server.uri if request.param == "http" else registered.database)


# --- resolving -------------------------------------------------------------------------------------------------------


def test_the_uri_decides_how_a_registry_is_asked(registered: Registered) -> None:
    assert isinstance(registry_at(registered.server.uri), RestRegistry)
    assert isinstance(registry_at("https://example.org/mlflow/"), RestRegistry)
    assert isinstance(registry_at(registered.database), SqliteRegistry)
    assert isinstance(registry_at("postgresql://127.0.0.1:1/mlflow"), ClientRegistry)


def test_an_alias_names_a_version(registry: Registry, registered: Registered) -> None:
    version = registry.resolve(Ref("iris"))
    assert (version.name, version.version, version.alias, version.source) == ("iris", "1", "champion", "registry")
    assert version.digest == folder_digest(registered.first)
    assert version.run_id == registered.run_id
    assert version.location == f"mlflow-artifacts:/0/{registered.run_id}/artifacts/model-1"
    assert not version.breaking


def test_a_version_can_be_fixed(registry: Registry, registered: Registered) -> None:
    version = registry.resolve(Ref("iris", None, "2"))
    assert (version.version, version.alias, version.breaking) == ("2", None, True)
    assert version.digest == folder_digest(registered.second)


def test_a_moved_alias_is_seen_at_the_next_look(registry: Registry, registered: Registered) -> None:
    client = registered.server.client
    client.set_registered_model_alias("iris", "moving", "1")
    assert registry.resolve(Ref("iris", "moving")).version == "1"
    client.set_registered_model_alias("iris", "moving", "2")
    assert registry.resolve(Ref("iris", "moving")).version == "2"
    client.delete_registered_model_alias("iris", "moving")
    with pytest.raises(UnknownModel):
        registry.resolve(Ref("iris", "moving"))


@pytest.mark.parametrize(
    "ref",
    [Ref("absent"), Ref("absent", None, "1"), Ref("iris", "nobody"), Ref("iris", None, "99")],
    ids=["model", "model of a version", "alias", "version"],
)
def test_what_is_not_there_is_unknown_and_not_unreachable(registry: Registry, ref: Ref) -> None:
    with pytest.raises(UnknownModel, match=r"^registry: .+"):
        registry.resolve(ref)


@pytest.mark.parametrize("name", ["ir is", "../iris", "iris&alias=x", "iris?", "irís%20"])
def test_odd_names_are_sent_as_they_are(registry: Registry, name: str) -> None:
    with pytest.raises(UnknownModel):
        registry.resolve(Ref(name))


def test_a_deleted_version_is_unknown(registry: Registry, registered: Registered) -> None:
    client = registered.server.client
    source = f"mlflow-artifacts:/0/{registered.run_id}/artifacts/model-1"
    made = client.create_model_version("iris", source, registered.run_id)
    assert registry.resolve(Ref("iris", None, made.version)).digest is None
    client.delete_model_version("iris", made.version)
    with pytest.raises(UnknownModel):
        registry.resolve(Ref("iris", None, made.version))


def test_a_model_that_mlflow_logged_and_registered_is_resolved_and_fetched(
    registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `log_model` leaves it, where the version's source is a logged model and no folder of a run."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.server.uri)

    class Counting(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return [len(model_input)]

    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="model", python_model=Counting(), pip_requirements=[], registered_model_name="counting"
        )
    version = registry_at(registered.server.uri).resolve(Ref("counting", None, "1"))
    assert version.location.startswith("mlflow-artifacts:/")
    got = fetch(version, tmp_path / "got", registered.server.uri, OPEN)
    assert {"MLmodel", "python_model.pkl"} <= {path.name for path in got.iterdir()}


# --- a registry that cannot be asked ---------------------------------------------------------------------------------


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(RegistryUnreachable, match="does not answer: connection refused"):
        registry_at(f"http://127.0.0.1:{free_port()}").resolve(Ref("iris"))


def test_a_host_that_has_no_address() -> None:
    with pytest.raises(RegistryUnreachable, match="does not answer"):
        registry_at("http://no-such-host.invalid:5000").resolve(Ref("iris"))


def test_a_server_that_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with contextlib.suppress(OSError):  # the test is over
                for _ in range(3):
                    connection, _address = listener.accept()
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(RegistryUnreachable, match="does not answer"):
            registry_at(f"http://127.0.0.1:{listener.getsockname()[1]}").resolve(Ref("iris"))


def test_a_database_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RegistryUnreachable, match="there is no SQLite file"):
        registry_at(f"sqlite:///{tmp_path / 'absent.db'}").resolve(Ref("iris"))
    assert not (tmp_path / "absent.db").exists(), "asking must not make one"


def test_a_database_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is not a database, however long it may be " * 100)
    with pytest.raises(RegistryUnreachable, match="file is not a database") as caught:
        registry_at(f"sqlite:///{tmp_path / 'mlflow.db'}").resolve(Ref("iris"))
    assert "\n" not in str(caught.value)


def test_a_database_whose_password_does_not_show() -> None:
    with pytest.raises(RegistryUnreachable) as caught:
        registry_at(f"postgresql://user:s3cret@127.0.0.1:{free_port()}/mlflow").resolve(Ref("iris"))
    assert "s3cret" not in str(caught.value)


def test_a_scheme_that_nobody_knows() -> None:
    with pytest.raises(RegistryUnreachable, match="registry nonsense:"):
        registry_at("nonsense://somewhere").resolve(Ref("iris"))


# --- servers that misbehave ------------------------------------------------------------------------------------------

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Starts a server that answers every request with a function; gives its address."""
    servers: list[ThreadingHTTPServer] = []

    def serve(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True, args=(0.01,)).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


Serve = Callable[[Answer], str]


def send(handler: BaseHTTPRequestHandler, body: Any, status: int = 200, **headers: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


HTML = b"<!doctype html><title>Sign in</title>"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (HTML, 200),
        (HTML, 404),
        (HTML, 502),
        (b"", 200),
        (None, 200),
        ([], 200),
        ("model_version", 200),
        ({}, 200),
        ({"model_version": None}, 200),
        ({"model_version": {}}, 200),
        ({"model_version": {"version": "1", "tags": [{}]}}, 200),
        ({"error_code": "INTERNAL_ERROR", "message": "no"}, 500),
        ({"error_code": "PERMISSION_DENIED", "message": "no"}, 403),
        ({"detail": "not found"}, 404),
        (["RESOURCE_DOES_NOT_EXIST"], 404),
    ],
)
def test_an_answer_that_is_not_mlflows_is_unreachable(serve: Serve, body: Any, status: int) -> None:
    uri = serve(lambda handler: send(handler, body, status))
    with pytest.raises(RegistryUnreachable) as caught:
        registry_at(uri).resolve(Ref("iris"))
    assert uri in str(caught.value)
    assert "<" not in str(caught.value)


def test_an_error_status_is_told(serve: Serve) -> None:
    for status in (401, 503):
        uri = serve(lambda handler, status=status: send(handler, {"error_code": "X"}, status))  # type: ignore[misc]
        with pytest.raises(RegistryUnreachable, match=f"answered {status}"):
            registry_at(uri).resolve(Ref("iris"))


@pytest.mark.parametrize(
    ("auth", "header"),
    [(Auth(), None), (Auth(token="t0ken"), "Bearer t0ken"), (Auth("user", "pässword"), "Basic dXNlcjpw5HNzd29yZA==")],
    ids=["none", "token", "basic"],
)
def test_the_login_is_sent_with_every_request(serve: Serve, tmp_path: Path, auth: Auth, header: str | None) -> None:
    seen: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["Authorization"])
        path = urlparse(handler.path).path
        if path.endswith("/alias"):
            send(handler, {"model_version": {"version": "1"}})
        elif path.endswith("get-download-uri"):
            send(handler, {"artifact_uri": "mlflow-artifacts:/model"})
        elif path.endswith("/artifacts"):
            send(handler, {"files": [{"path": "MLmodel", "is_dir": False}]})
        else:
            send(handler, b"flavors: {}")

    uri = serve(answer)
    version = registry_at(uri, auth).resolve(Ref("iris"))
    fetch(version, tmp_path / "got", uri, auth)
    assert seen == [header] * 4


def test_a_login_never_shows() -> None:
    auth = Auth("user", "s3cret", "t0ken")
    assert "s3cret" not in repr(auth)
    assert "t0ken" not in repr(auth)


# --- fingerprints ----------------------------------------------------------------------------------------------------


def test_a_database_file_tells_when_something_changed(registered: Registered) -> None:
    registry = SqliteRegistry(registered.database)
    before = registry.fingerprint()
    assert before is not None
    assert registry.fingerprint() == before
    registered.server.client.set_registered_model_alias("iris", "fingerprint", "1")
    assert registry.fingerprint() != before


def test_a_database_file_that_appears_is_a_change(tmp_path: Path) -> None:
    registry = SqliteRegistry(f"sqlite:///{tmp_path / 'mlflow.db'}")
    before = registry.fingerprint()
    (tmp_path / "mlflow.db").touch()
    assert registry.fingerprint() != before


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "postgresql://127.0.0.1:1/mlflow"])
def test_other_registries_do_not_tell(uri: str) -> None:
    assert registry_at(uri).fingerprint() is None


# --- local files -----------------------------------------------------------------------------------------------------

PROMOTED = Version("iris", "7", "champion", "registry", "elsewhere", "0123abcd", "sha256:00")


def model_folder(home: Path, content: str = "flavors: {}") -> Path:
    (home / "data").mkdir(parents=True)
    (home / "MLmodel").write_text(content)
    (home / "data" / "weights").write_bytes(b"\x00" * 100)
    return home


def test_what_was_published_is_found(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "models")
    source = model_folder(tmp_path / "model")
    place = files.publish(PROMOTED, source)
    assert files.resolve(Ref("iris")) == replace(PROMOTED, source="local", location=str(place))
    assert files.resolve(Ref("iris", None, "7")).alias is None
    assert folder_digest(place) == folder_digest(source)


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    for number in "123":
        files.publish(replace(PROMOTED, version=number), model_folder(tmp_path / f"model-{number}", f"v: {number}"))
    version = files.resolve(Ref("iris"))
    assert (version.version, (Path(version.location) / "MLmodel").read_text()) == ("3", "v: 3")
    assert len(list((tmp_path / "iris").glob("version-*"))) == 1


def test_what_is_published_can_be_read_by_others(tmp_path: Path) -> None:
    place = LocalFiles(tmp_path / "models").publish(PROMOTED, model_folder(tmp_path / "model"))
    assert place.stat().st_mode & 0o055 == 0o055
    assert (place.parent / "version.json").stat().st_mode & 0o044 == 0o044


def test_another_version_than_the_one_that_is_there_is_unknown(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "models")
    files.publish(PROMOTED, model_folder(tmp_path / "model"))
    with pytest.raises(UnknownModel, match="are version 7, not 8"):
        files.resolve(Ref("iris", None, "8"))


@pytest.mark.parametrize(
    "note",
    [
        None,
        "{",
        "[]",
        "{}",
        '{"version": "1", "artifacts": "gone"}',
        '{"version": "1"}',
        '{"artifacts": "version-7-x"}',
    ],
)
def test_half_of_local_files_is_none(tmp_path: Path, note: str | None) -> None:
    model_folder(tmp_path / "iris" / "version-7-x")
    if note is not None:
        (tmp_path / "iris" / "version.json").write_text(note)
    with pytest.raises(UnknownModel, match="no local files for 'iris'"):
        LocalFiles(tmp_path).resolve(Ref("iris"))


def test_a_publication_that_failed_leaves_the_old_one(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "models")
    files.publish(PROMOTED, model_folder(tmp_path / "model"))
    with pytest.raises(OSError, match="absent"):
        files.publish(replace(PROMOTED, version="8"), tmp_path / "absent")
    assert files.resolve(Ref("iris")).version == "7"


# --- fetching from folders -------------------------------------------------------------------------------------------


def at(location: str | Path) -> Version:
    return Version("iris", "1", "champion", "registry", str(location))


@pytest.mark.parametrize("name", ["model", "with space", "umläut", "c#", "50%", "a%20b", "what?", "semi;colon", "a:b"])
def test_a_folder_is_copied_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    source = model_folder(tmp_path / name)
    got = fetch(at(source), tmp_path / "got", "unused:", OPEN)
    assert folder_digest(got) == folder_digest(source)


@pytest.mark.parametrize("name", ["model", "with space", "umläut", "c#", "50%", "a%20b"])
def test_a_file_uri_is_a_folder(tmp_path: Path, name: str) -> None:
    source = model_folder(tmp_path / name)
    got = fetch(at(source.as_uri()), tmp_path / "got", "unused:", OPEN)
    assert folder_digest(got) == folder_digest(source)


@pytest.mark.parametrize("uri", [False, True], ids=["folder", "file URI"])
def test_a_folder_is_fetched_without_mlflow(tmp_path: Path, uri: bool) -> None:
    source = model_folder(tmp_path / "model")
    code = """
import sys
sys.modules["mlflow"] = sys.modules["requests"] = None  # as if they were not installed
from pathlib import Path
from serving import prepare, registry
version = registry.Version("iris", "1", None, "registry", sys.argv[1])
registry.fetch(version, Path(sys.argv[2]), "sqlite:///unused.db", registry.Auth())
"""
    place = source.as_uri() if uri else str(source)
    subprocess.run([sys.executable, "-c", code, place, str(tmp_path / "got")], check=True, cwd=ROOT)
    assert folder_digest(tmp_path / "got") == folder_digest(source)


def test_a_folder_that_is_not_there_is_the_versions_fault(tmp_path: Path) -> None:
    with pytest.raises(VersionRefused, match="its files are not at") as caught:
        fetch(at(tmp_path / "absent"), tmp_path / "got", "unused:", OPEN)
    assert caught.value.reason == "missing_files"


def test_no_room_for_the_files_is_our_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PrepareFailed, match="cannot write the files of iris 1: "):
        fetch(at(model_folder(tmp_path / "model")), tmp_path / "file" / "got", "unused:", OPEN)


# --- fetching from a server ------------------------------------------------------------------------------------------


def test_folders_and_odd_names_come_through_the_servers_proxy(registered: Registered, tmp_path: Path) -> None:
    version = registry_at(registered.server.uri).resolve(Ref("iris", None, "1"))
    got = fetch(version, tmp_path / "got", registered.server.uri, OPEN)
    assert {path.name for path in (got / "data" / "sub folder").iterdir()} == {*ODD_NAMES, "deep"}
    assert folder_digest(got) == version.digest == folder_digest(registered.first)


def test_a_slash_at_the_end_of_the_uri_does_not_matter(registered: Registered, tmp_path: Path) -> None:
    version = registry_at(f"{registered.server.uri}/").resolve(Ref("iris", None, "2"))
    got = fetch(version, tmp_path / "got", f"{registered.server.uri}/", OPEN)
    assert folder_digest(got) == folder_digest(registered.second)


def test_other_stores_go_through_mlflow(registered: Registered, tmp_path: Path) -> None:
    """Here the proxy under its full name, which is another server's as far as we know."""
    version = registry_at(registered.server.uri).resolve(Ref("iris", None, "2"))
    named = version.location.replace(
        "mlflow-artifacts:/", f"{registered.server.uri.replace('http', 'mlflow-artifacts')}/"
    )
    got = fetch(at(named), tmp_path / "got", registered.server.uri, OPEN)
    assert folder_digest(got) == folder_digest(registered.second)
    assert [path.name for path in tmp_path.iterdir()] == ["got"]


def test_a_version_without_files_is_refused(registered: Registered, tmp_path: Path) -> None:
    with pytest.raises(VersionRefused, match="has no files in the artifact store") as caught:
        fetch(at("mlflow-artifacts:/0/absent/artifacts/model"), tmp_path / "got", registered.server.uri, OPEN)
    assert caught.value.reason == "missing_files"


def test_a_store_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(RegistryUnreachable, match="the artifact store does not answer: connection refused"):
        fetch(at("mlflow-artifacts:/0/x"), tmp_path / "got", f"http://127.0.0.1:{free_port()}", OPEN)


@pytest.mark.parametrize(
    "location", ["nonsense://bucket/model", "ftp://127.0.0.1:1/model", "mlflow-artifacts://127.0.0.1:1/model"]
)
def test_a_store_that_gives_nothing_is_unreachable(tmp_path: Path, location: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnreachable, match="the artifact store"):
        fetch(at(location), tmp_path / "got", "http://127.0.0.1:1", OPEN)


def test_a_store_that_wants_a_login_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(RegistryUnreachable, match="credentials"):
        fetch(at("s3://bucket/model"), tmp_path / "got", "unused:", OPEN)


# --- fetching from servers that misbehave ----------------------------------------------------------------------------


def store_of(files: dict[str, bytes], listing: Callable[[str], Any] | None = None) -> Answer:
    """An artifact proxy that has ``files``, and lists folders as ``listing`` says."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        address = urlparse(handler.path)
        if address.path.endswith("/artifacts"):
            folder = parse_qs(address.query).get("path", [""])[0]
            send(handler, listing(folder) if listing else {"files": [{"path": name} for name in files]})
        elif (name := address.path.rsplit("/", 1)[1]) in files:
            send(handler, files[name])
        else:
            send(handler, {"error_code": "RESOURCE_DOES_NOT_EXIST"}, 404)

    return answer


def fetched_from(uri: str, into: Path) -> Path:
    return fetch(at("mlflow-artifacts:/model"), into, uri, OPEN)


def test_a_download_that_ends_early_is_unreachable(serve: Serve, tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if urlparse(handler.path).path.endswith("/artifacts"):
            return send(handler, {"files": [{"path": "weights.bin", "is_dir": False}]})
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.wfile.write(b"x" * 40_000)
        return None

    with pytest.raises(RegistryUnreachable, match="the artifact store does not answer"):
        fetched_from(serve(answer), tmp_path / "got")


@pytest.mark.parametrize(
    "path", ["../outside.txt", "a/../../outside.txt", "..", "data/../../../outside.txt", "./../outside.txt"]
)
def test_a_path_that_leaves_its_folder_is_refused(serve: Serve, tmp_path: Path, path: str) -> None:
    uri = serve(store_of({"outside.txt": b"evil"}, lambda _: {"files": [{"path": path, "is_dir": False}]}))
    with pytest.raises(VersionRefused, match="a file's path leaves its folder") as caught:
        fetched_from(uri, tmp_path / "deep" / "got")
    assert caught.value.reason == "bad_path"
    assert not [found for found in tmp_path.rglob("*") if found.is_file()]


def test_an_absolute_path_stays_in_the_folder(serve: Serve, tmp_path: Path) -> None:
    uri = serve(store_of({"evil.txt": b"x"}, lambda _: {"files": [{"path": "/evil.txt", "is_dir": False}]}))
    assert (fetched_from(uri, tmp_path / "got") / "evil.txt").read_bytes() == b"x"
    assert not Path("/evil.txt").exists()


def test_a_file_that_is_listed_and_not_there_is_missing(serve: Serve, tmp_path: Path) -> None:
    uri = serve(store_of({}, lambda _: {"files": [{"path": "weights.bin", "is_dir": False}]}))
    with pytest.raises(VersionRefused, match=r"file weights\.bin is missing") as caught:
        fetched_from(uri, tmp_path / "got")
    assert caught.value.reason == "missing_files"


@pytest.mark.parametrize("listing", [[], None, {"files": 5}, {"files": [{}]}, {"files": ["MLmodel"]}, {"files": None}])
def test_a_listing_that_is_not_mlflows_is_unreachable(serve: Serve, tmp_path: Path, listing: Any) -> None:
    with pytest.raises(RegistryUnreachable, match="does not answer as MLflow's does"):
        fetched_from(serve(store_of({}, lambda _: listing)), tmp_path / "got")


@pytest.mark.parametrize("status", [200, 403, 500])
def test_a_sign_in_page_for_a_listing_is_unreachable(serve: Serve, tmp_path: Path, status: int) -> None:
    with pytest.raises(RegistryUnreachable, match=f"the artifact store (does not answer|answers {status}$)"):
        fetched_from(serve(lambda handler: send(handler, HTML, status)), tmp_path / "got")


def test_what_the_artifact_store_says_is_passed_on(serve: Serve, tmp_path: Path) -> None:
    said = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "The specified bucket does not exist\\nHostId: 7"}'
    with pytest.raises(
        RegistryUnreachable, match=r"the artifact store answers 404: The specified bucket does not exist$"
    ):
        fetched_from(serve(lambda handler: send(handler, said, 404)), tmp_path / "got")


def test_a_disk_without_room_is_our_fault(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    uri = serve(store_of({"MLmodel": b"flavors: {}"}))
    with pytest.raises(PrepareFailed, match="cannot write the files of iris 1"):
        fetched_from(uri, tmp_path / "file" / "got")


def test_content_that_was_packed_on_the_way_is_unpacked(serve: Serve, tmp_path: Path) -> None:
    import gzip

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if urlparse(handler.path).path.endswith("/artifacts"):
            return send(handler, {"files": [{"path": "MLmodel", "is_dir": False}]})
        return send(handler, gzip.compress(b"flavors: {}"), Content_Encoding="gzip")

    assert (fetched_from(serve(answer), tmp_path / "got") / "MLmodel").read_bytes() == b"flavors: {}"


def test_the_login_is_read_from_mlflows_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"USERNAME": "user", "PASSWORD": "secret", "TOKEN": "t0ken"}.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    login = Auth.from_env()
    assert (login.username, login.password, login.token) == ("user", "secret", "t0ken")
    assert "secret" not in repr(login)
