"""demo.py, run as a user runs it."""

from __future__ import annotations

import http.server
import io
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
from PIL import Image
from served import environment, free_port, settings_of

import demo
from serving import drift
from serving.digest import folder_digest
from serving.registry import LocalFiles, Version
from serving.settings import ROOT
from serving.tensors import Classes, Field, Signature
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


def run(*arguments: str, replaced: dict[str, str] | None = None, **changed: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "demo.py"), *arguments]
    variables = {**(replaced or {**os.environ, **changed}), "COLUMNS": "100"}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=180, check=False)


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


def with_all(own_environment: dict[str, str]) -> dict[str, str]:
    """The same for all that is in the folder, with the usual limits."""
    changed = ("MODELS", "MAX_BODY_BYTES", "MAX_ROWS")
    return {name: value for name, value in own_environment.items() if name not in changed}


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
    assert re.search(r"✔ One row +200 +\d+\.\d ms +setosa", done.stdout)
    assert re.search(r"✔ Look at the registry now +502 ", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert processes_below(tmp_path) == []
    assert list((tmp_path / "temporary").iterdir()) == []


def test_every_model_that_is_there_in_the_way_that_fits_it(own_environment: dict[str, str]) -> None:
    done = run("--self-hosted", replaced=with_all(own_environment))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    parts = re.findall(r"^(\w+) (\d+)  (.+?) ─", done.stdout, re.MULTILINE)
    assert parts == [
        ("iris", "1", "4 inputs → 3 classes, compiled"),
        ("pictures", "2", "pictures → 3 classes, image"),
        ("prices", "7", "5 inputs → values, sklearn"),
        ("sentences", "5", "texts → vectors, text"),
        ("texts", "3", "texts → vectors, onnx"),
    ]
    assert re.search(r"✔ A picture, the best 3 classes +200 +\d+\.\d ms +\w+ \(\d+%\), \w+ \(\d+%\)", done.stdout)
    assert re.search(r"✔ The same as a file +200 .*, the same$", done.stdout, re.MULTILINE)
    assert re.search(r"✔ Half a file +400 ", done.stdout)
    assert done.stdout.count("the same vectors, to the last bit") == 4  # of two models, by two protocols each
    assert re.search(r"✔ An empty text +400 +\d+\.\d ms +input is an empty text", done.stdout)


def test_one_model_alone(own_environment: dict[str, str]) -> None:
    done = run("--self-hosted", "--only", "pictures", "--verbose", replaced=with_all(own_environment))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.findall(r"^(.+?) ─", done.stdout, re.MULTILINE) == ["pictures 2  pictures → 3 classes, image"]
    assert "POST /models/pictures/predict" in done.stdout
    assert '{"features":["iVBORw0KGgo' in done.stdout


def save_payments(folder: Path) -> Path:
    """A small model of payments as training logs it, with threshold and profile."""
    import mlflow.sklearn
    from mlflow.models import infer_signature

    from training import fraud
    from training.flavor import ScikitLearn
    from training.profile import profile
    from training.transactions import payments

    rows = payments(6000, seed=3)
    model = fraud.classifier({"model": "logistic", "C": 0.3}, seed=0).fit(rows.inputs, rows.labels)
    metadata = {"class_names": list(fraud.CLASS_NAMES), "threshold": model.threshold, "positive_class": "fraud"}
    mlflow.sklearn.save_model(
        model,
        folder,
        signature=infer_signature(rows.inputs, model.predict(rows.inputs)),
        metadata=metadata,
        serialization_format="cloudpickle",
        pip_requirements=[],
    )
    classes = Classes.of(range(2), fraud.CLASS_NAMES)
    made = profile(rows.batch(), ScikitLearn().predict(model, rows.inputs), classes)
    (folder / drift.FILE_NAME).write_text(json.dumps(made.as_json()), encoding="utf-8")
    return folder


def test_payments_are_judged_by_a_threshold_and_watched(own_environment: dict[str, str], tmp_path: Path) -> None:
    folder = save_payments(tmp_path / "saved" / "payments")
    version = Version("payments", "4", "champion", "local", str(folder), digest=folder_digest(folder))
    LocalFiles(tmp_path / "own").publish(version, folder)
    done = run("--self-hosted", replaced={**with_all(own_environment), "MODEL_DIR": str(tmp_path / "own")})
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.search(r"✔ An honest payment +200 .* legitimate: score 0\.0\d+, threshold 0\.0\d+", done.stdout)
    assert re.search(r"✔ A stolen card +200 .* fraud: score 0\.\d+, threshold 0\.0\d+", done.stdout)
    assert re.search(r"✔ What has moved\? +200 +\S+ ms +amount: PSI .*\n +device: PSI ", done.stdout)
    assert re.search(r"✔ Has the data moved\? .* drift: amount, device$", done.stdout, re.MULTILINE)


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
    assert re.search(r"✘ One row +500 .*expected 200: the model failed on this", done.stdout)
    assert '{"features":[1]}' in done.stdout  # what failed is shown with both sides
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"\d+ of \d\d answers were not as they should be\.", last)
    assert done.stdout.count("✘") == int(last.split()[0])


def test_in_colour_on_a_terminal(app_url: str) -> None:
    assert COLOUR.search(on_terminal(app_url))


def test_without_colour_where_it_is_not_wanted(app_url: str) -> None:
    assert not COLOUR.search(on_terminal(app_url, NO_COLOR="1"))


def on_terminal(url: str, **changed: str) -> str:
    """What the demo writes to a terminal; it must succeed."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "demo.py"), "--url", url, "--only", "iris"],
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
    done = run("--url", app_url.removeprefix("http://"), "--only", "tulips")
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
    info = {"name": name, "version": "1", "runtime": "native", "signature": signature.as_json()}
    model = demo.Model(info)
    rows: list[Any] = [model.row(number) for number in range(3)]
    for features, many in [(model.row(), False), (model.named(), False), (rows, True)]:
        batch, is_many = tabular.parse(signature, features)
        assert (batch.rows, is_many) == (3 if many else 1, many)


def test_its_pictures_are_pictures() -> None:
    with Image.open(io.BytesIO(demo.png(demo.zero, size=24))) as picture:
        picture.load()
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (24, 24))
        assert picture.getpixel((12, 12)) == 0  # within the ring
        assert picture.getpixel((12, 3)) > 150  # on it


BINS = (("<= 8.95", 0.0, 8.95), ("(8.95, 14.1]", 8.95, 14.1), ("> 164.2", 164.2, 200.0))
WHOLE = (("<= 0", -1, 0), ("(0, 1]", 0, 1), ("(7, 10]", 7, 10), ("> 21", 21, 23), ("<= 7", -1, 7))


@pytest.mark.parametrize(("label", "above", "most"), BINS + WHOLE)
def test_a_value_falls_into_its_bin(label: str, above: float, most: float) -> None:
    kind = "long" if (label, above, most) in WHOLE else "double"
    value = demo._inside(label, kind)
    assert above < value <= most
    assert type(value) is (int if kind == "long" else float)


CHALLENGER = {"version": "2", "part": "10%", "since": "2026-11-01T00:00:00+00:00"}


def test_a_caller_that_changes_versions_is_noticed() -> None:
    signature = SIGNATURES["iris"].as_json()
    info = {"name": "iris", "version": "1", "runtime": "compiled", "signature": signature, "challenger": CHALLENGER}
    answered = [{"model": {"version": "2" if caller == 3 else "1"}} for caller in range(demo.CALLERS)]
    first, _ = demo.challenged(demo.Model(info))
    assert [first.headers(number) for number in (0, demo.CALLERS)] == [{"X-Routing-Key": "caller-1"}] * 2
    said = [first.say(content) for content in answered * 2]
    assert said[-1] == "version 2 has 10%: caller 4 of 20, both times"
    other, _ = demo.challenged(demo.Model(info))
    for content in answered:
        other.say(content)
    with pytest.raises(demo.Wrong, match="another version"):
        other.say({"model": {"version": "2"}})
    with pytest.raises(demo.Wrong, match="version 9 should answer nobody"):
        demo.challenged(demo.Model(info))[0].say({"model": {"version": "9"}})


def test_versions_that_nobody_challenges() -> None:
    info = {"name": "iris", "version": "1", "runtime": "compiled", "signature": SIGNATURES["iris"].as_json()}
    assert demo.challenged(demo.Model(info)) == []
    refused = {"version": "2", "reason": "proof_failed", "message": "it does not answer what it did"}
    assert demo.challenged(demo.Model({**info, "challenger": refused})) == []
