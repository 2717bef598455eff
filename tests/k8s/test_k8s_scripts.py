"""The scripts that run in the cluster: the smoke test against a real service, and the making of passwords."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError

import pytest
from rendered import K8S, named, parsed, pod, render

NAMESPACE = "/api/v1/namespaces/here/secrets"


def loaded(path: Path) -> ModuleType:
    """A script as a module, not run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- smoke test ------------------------------------------------------------------------------------------------------


@pytest.fixture
def smoke(tmp_path: Path) -> ModuleType:
    """The script beside requests of its own, which a test may change."""
    for file in (K8S / "smoke").iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    return loaded(tmp_path / "smoke.py")


def test_a_service_that_predicts_passes(smoke: ModuleType, app_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    smoke.main(app_url, app_url)
    assert capsys.readouterr().out.count(": ok\n") == 4


def test_another_answer_than_expected_fails(smoke: ModuleType, app_url: str, tmp_path: Path) -> None:
    (tmp_path / "golden.expected").write_text('"class_name":"tulip"\n')
    with pytest.raises(SystemExit, match=r'a known prediction: .* answers 200 .*; expected 200 "class_name":"tulip"'):
        smoke.main(app_url, app_url)


def test_a_bad_request_that_is_taken_fails(smoke: ModuleType, app_url: str, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "golden.request.json", tmp_path / "bad.request.json")
    with pytest.raises(SystemExit, match=r"a bad request: .* answers 200 .*; expected 400"):
        smoke.main(app_url, app_url)


def test_metrics_that_are_not_there_fail(smoke: ModuleType, app_url: str) -> None:
    with pytest.raises(SystemExit, match=r"metrics: .*/nothing/metrics answers 404"):
        smoke.main(app_url, f"{app_url}/nothing")


def test_a_service_that_is_away_fails(smoke: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"smoke: http://127.0.0.1:9/readyz: .*refused"):
        smoke.main("http://127.0.0.1:9", "http://127.0.0.1:9", 0)


def test_the_job_has_the_script_and_its_requests() -> None:
    objects = render("staging", "argocd")
    job = pod(named(objects, "Job", "mlflow-live-smoke"))
    content = named(objects, "ConfigMap", job["volumes"][0]["configMap"]["name"])["data"]
    assert content.keys() == {"smoke.py", "golden.request.json", "golden.expected", "bad.request.json"}
    assert job["containers"][0]["command"][:2] == ["python", "/smoke/smoke.py"]


# --- passwords -------------------------------------------------------------------------------------------------------


class ApiServer(BaseHTTPRequestHandler):
    """As much of Kubernetes' API as the Role allows: create Secrets, read one of them."""

    stored: dict[str, dict[str, Any]]

    def do_GET(self) -> None:
        name = self.path.removeprefix(f"{NAMESPACE}/")
        allowed = self.headers["Authorization"] == "Bearer of-the-pod" and name == "mlflow-passwords"
        self._answer(*((200, self.stored[name]) if allowed else (403, {"message": "forbidden"})))

    def do_POST(self) -> None:
        secret = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = secret["metadata"]["name"]
        if self.path != NAMESPACE or self.headers["Authorization"] != "Bearer of-the-pod":
            return self._answer(403, {"message": "forbidden"})
        if name in self.stored:
            return self._answer(409, {"message": "already exists"})
        data = {key: base64.b64encode(text.encode()).decode() for key, text in secret.pop("stringData").items()}
        self.stored[name] = secret | {"data": data}
        return self._answer(201, self.stored[name])

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def stored() -> dict[str, dict[str, Any]]:
    """The namespace's Secrets."""
    return {}


@pytest.fixture
def api_server(stored: dict[str, dict[str, Any]]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Api", (ApiServer,), {"stored": stored}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def maker() -> ModuleType:
    return loaded(K8S / "components/mlflow/setup/make_secrets.py")


@pytest.fixture
def api(maker: ModuleType, api_server: str, tmp_path: Path) -> Any:
    """What the script talks through, with the account of its pod."""
    (tmp_path / "namespace").write_text("here")
    (tmp_path / "token").write_text("of-the-pod\n")
    return maker.Api(api_server, tmp_path)


def plain(secret: dict[str, Any]) -> dict[str, str]:
    return {key: base64.b64decode(text).decode() for key, text in secret["data"].items()}


def test_passwords_are_made_once(maker: ModuleType, api: Any, stored: dict[str, dict[str, Any]]) -> None:
    maker.main(api)
    before = json.dumps(stored)
    maker.main(api)
    assert json.dumps(stored) == before
    made = plain(stored["mlflow-passwords"])
    assert len({made[key] for key in made if key.startswith(("postgres", "s3-password"))}) == 4
    assert made["pgpass"] == f"postgres:5432:mlflow:mlflow:{made['postgres-mlflow']}\n"
    assert made["s3-password"] in made["aws"]


def test_what_was_interrupted_is_finished(maker: ModuleType, api: Any, stored: dict[str, dict[str, Any]]) -> None:
    maker.main(api)
    del stored["mlflow-live"]
    maker.main(api)
    password = plain(stored["mlflow-passwords"])["postgres-ledger"]
    assert plain(stored["mlflow-live"])["database-url"] == f"postgresql://ledger:{password}@postgres/ledger"


def test_a_secret_of_the_operator_stays(maker: ModuleType, api: Any, stored: dict[str, dict[str, Any]]) -> None:
    stored["mlflow-live"] = {"data": {"database-url": "b3ducw=="}}
    maker.main(api)
    assert stored["mlflow-live"] == {"data": {"database-url": "b3ducw=="}}


def test_an_account_without_the_right_is_told(maker: ModuleType, api: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of-somebody")
    with pytest.raises(HTTPError, match="403"):
        maker.main(api)


def test_the_role_allows_what_the_script_does_and_no_more() -> None:
    rules = named(render("local", "mlflow"), "Role", "mlflow-setup")["rules"]
    assert [(rule["resources"], rule["verbs"], rule.get("resourceNames")) for rule in rules] == [
        (["secrets"], ["create"], None),
        (["secrets"], ["get"], ["mlflow-passwords"]),
    ]


def test_every_key_that_a_pod_mounts_is_made(maker: ModuleType) -> None:
    keys = set(maker.passwords())
    objects = render("local", "mlflow")
    for kind, name in (("StatefulSet", "postgres"), ("StatefulSet", "minio"), ("Deployment", "mlflow")):
        (secret,) = [volume["secret"] for volume in pod(named(objects, kind, name))["volumes"] if "secret" in volume]
        assert secret["secretName"] == maker.PASSWORDS
        assert {item["key"] for item in secret["items"]} <= keys


def test_only_the_first_step_sees_the_token() -> None:
    spec = pod(named(render("local", "mlflow"), "Deployment", "mlflow-setup"))
    seen = [
        one["name"]
        for one in (*spec["initContainers"], *spec["containers"])
        if any(mount["name"] == "account" for mount in one.get("volumeMounts", ()))
    ]
    assert seen == ["secrets"]


def test_what_setup_makes_is_announced(maker: ModuleType) -> None:
    notes = parsed((K8S / "components/mlflow/setup/deployment.yaml").read_text())[0]["metadata"]["annotations"]
    assert notes["mlflow-live/makes-secrets"] == f"{maker.PASSWORDS},{maker.SERVICE}"
