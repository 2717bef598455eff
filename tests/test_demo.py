"""demo.py, run as a user runs it."""

from __future__ import annotations

import http.server
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from served import environment, free_port, settings_of

import demo
from serving.settings import ROOT
from serving.tensors import Field, Signature
from serving.transforms import tabular

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")

FLOWER = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")
TYPES = ("double", "float", "long", "integer", "boolean", "string", "datetime", "binary", "any")
SIGNATURES = {
    "iris": Signature("columns", tuple(Field(name, "double") for name in FLOWER)),
    "all types": Signature("columns", tuple(Field(kind, kind) for kind in TYPES)),
    "optional": Signature("columns", (Field("a", "long", False), Field("b", "string", False))),
    "one tensor": Signature("tensors", (Field("x", "float32", shape=(2, -1)),)),
    "a vector": Signature("tensors", (Field("features", "float64", shape=(4,)),)),
    "several tensors": Signature("tensors", (Field("ids", "int64", shape=(3,)), Field("mask", "bool", shape=(3,)))),
}


def run(*arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "demo.py"), *arguments]
    variables = {**os.environ, "COLUMNS": "120", **changed}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def other_url(tmp_path: Path) -> Iterator[str]:
    """Where something else answers: Python's own file server."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def own_environment(prepared: Path, tmp_path: Path) -> dict[str, str]:
    """For a service that the demo starts itself: iris from local files, everything else below ``tmp_path``."""
    settings = settings_of(tmp_path, models=("iris",), model_dir=prepared / "models", web_concurrency=1)
    (tmp_path / "temporary").mkdir()
    return {**environment(settings), "TMPDIR": str(tmp_path / "temporary")}


def processes_below(folder: Path) -> list[str]:
    """The commands of processes that were told of ``folder``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes() + (process / "cmdline").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it ended meanwhile, or is not ours
    return found


def test_all_holds_with_a_service_of_its_own(own_environment: dict[str, str], tmp_path: Path) -> None:
    done = run("--self-hosted", **own_environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "answers were as they should be" in done.stdout
    assert "✘" not in done.stdout
    assert "\x1b" not in done.stdout
    assert "setosa (100%), versicolor (91%), virginica (98%)" in done.stdout
    assert re.search(r"✔ +One row +200 +\d+\.\d ms +setosa", done.stdout)
    assert re.search(r"✔ +Look at the registry now +502 ", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert processes_below(tmp_path) == []
    assert list((tmp_path / "temporary").iterdir()) == []


class Mistaken(http.server.BaseHTTPRequestHandler):
    """A service that says what is live and fails at everything else."""

    def do_GET(self) -> None:
        field = {"name": "size", "type": "double", "required": True}
        workers = {"acknowledged": 1, "total": 1}
        info = {
            "name": "mistaken",
            "version": "1",
            "alias": "champion",
            "source": "registry",
            "runtime": "onnx",
            "signature": {"layout": "columns", "inputs": [field]},
            "workers": workers,
            "registry": {"reachable": True, "error": None},
            "refused": None,
        }
        listed = {"models": [{"name": "mistaken", "ready": True, "workers": workers}], "status": "ready"}
        known = {"/model/info": info, "/models/mistaken": info, "/health": listed, "/models": listed}
        self._answer(200 if self.path in known else 500, known.get(self.path, {}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(500, {"error": {"code": "model_failed", "message": "the model failed on this input"}})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_an_answer_that_is_wrong_is_said_and_counted() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mistaken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = run("--url", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert done.returncode == 1
    assert re.search(r"✘ +One row +500 .*expected 200: the model failed on this input", done.stdout)
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"\d+ of \d\d answers were not as they should be\.", last)
    assert done.stdout.count("✘") == 2 * int(last.split()[0])  # once as it happens, once in the summary


def test_in_colour_on_a_terminal(app_url: str) -> None:
    assert COLOUR.search(on_terminal(app_url))


def test_without_colour_where_it_is_not_wanted(app_url: str) -> None:
    assert not COLOUR.search(on_terminal(app_url, NO_COLOR="1"))


def on_terminal(url: str, **changed: str) -> str:
    """What the demo writes to a terminal; it must succeed."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "demo.py"), "--url", url],
        env={**kept, "TERM": "xterm-256color", "COLUMNS": "100", **changed},
        stdout=theirs,
    )
    os.close(theirs)
    written = b""
    while piece := _read(ours):
        written += piece
    os.close(ours)
    assert child.wait(timeout=60) == 0
    return written.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""  # Linux says so when the other end is closed


def test_no_service() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run("--url", url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"demo: no service at {url}; start one, or use --self-hosted\n"


def test_another_service(other_url: str) -> None:
    done = run("--url", other_url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"demo: what answers at {other_url} is not this service\n"


def test_no_such_model(app_url: str) -> None:
    done = run("--url", app_url.removeprefix("http://"), "--model", "tulips")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"demo: {app_url}: no model 'tulips' here; there is iris, prices\n"


def test_a_service_of_its_own_that_does_not_start(own_environment: dict[str, str], tmp_path: Path) -> None:
    done = run("--self-hosted", **own_environment | {"THREADS": "many"})
    assert done.returncode == 2
    assert "demo: the service ended with code 2; it said:\n" in done.stderr
    assert "THREADS must be a whole number, not 'many'" in done.stderr
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_while_it_starts_its_service(
    own_environment: dict[str, str], tmp_path: Path, number: int, code: int
) -> None:
    command = [sys.executable, str(ROOT / "demo.py"), "--self-hosted"]
    child = subprocess.Popen(command, env=own_environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not any("serving.agent" in process for process in processes_below(tmp_path)):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (code, b"")
    assert processes_below(tmp_path) == []
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("name", SIGNATURES)
def test_its_rows_fit_any_signature(name: str) -> None:
    signature = SIGNATURES[name]
    model = demo.Model({"name": name, "signature": signature.as_json()}, "")
    rows: list[Any] = [model.row(number) for number in range(3)]
    for features, many in [(model.row(), False), (model.named(), False), (rows, True)]:
        batch, is_many = tabular.parse(signature, features)
        assert (batch.rows, is_many) == (3 if many else 1, many)
