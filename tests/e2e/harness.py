"""A real registry and a real service, each in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 4


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Response:
    """An HTTP answer."""

    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def call(port: int, path: str, body: Any = None, *, method: str | None = None, timeout_s: float = 60.0) -> Response:
    """One request over a fresh connection; an error status is an answer too."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, method=method)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return Response(answer.status, answer.headers, answer.read().decode())
    except urllib.error.HTTPError as err:
        return Response(err.code, err.headers, err.read().decode())


def wait_for(what: Any, timeout_s: float, message: str) -> Any:
    """What ``what()`` gives once it is true; AssertionError with ``message`` when it is not.

    ``timeout_s`` is what it may take on a machine that does nothing else, which one that tests is not.
    """
    deadline = time.monotonic() + PATIENCE * timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if got := what():
                return got
        time.sleep(0.05)
    raise AssertionError(f"{message} (waited {timeout_s:g} s)")


@dataclass
class Running:
    """A service that runs: ``python app.py`` with settings of its own."""

    folder: Path
    tracking_uri: str
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / "service.log").read_text(encoding="utf-8", errors="replace")

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "PROMETHEUS"))}
        return {
            **kept,
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "STATE_DIR": str(self.folder / "state"),
            "MODEL_DIR": str(self.folder / "models"),
            "PORT": str(self.port),
            "POLL_INTERVAL_S": "2",
            "WEB_CONCURRENCY": "4",
            "LOG_FORMAT": "json",
            **self.settings,
        }

    def start(self, *, ready: bool = True, timeout_s: float = 180.0) -> Running:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "app.py")], stdout=log, stderr=log, env=self.environment(), cwd=ROOT
            )
        if ready:
            wait_for(self.all_ready, timeout_s, "the service is not ready")
        return self

    def all_ready(self) -> bool:
        """Every worker acknowledged, by the count that the service gives itself."""
        answer = self.call("/model/info")
        if answer.status != 200:
            return False
        workers = answer.json["workers"]
        return bool(workers["acknowledged"] == workers["total"] == int(self.environment()["WEB_CONCURRENCY"]))

    def call(self, path: str, body: Any = None, **options: Any) -> Response:
        return call(self.port, path, body, **options)

    def predict(self) -> Response:
        return self.call("/predict", {"features": [5.1, 3.5, 1.4, 0.2]})

    def reload(self) -> Response:
        return self.call("/model/reload", b"", method="POST", timeout_s=200)

    def worker_pids(self) -> list[int]:
        notes = (self.folder / "state" / "workers").glob("*.json")
        return sorted(int(path.stem.split("-")[0]) for path in notes)

    def agent_pids(self) -> list[int]:
        return [
            pid for pid in _pids() if b"serving.agent" in _command(pid) and str(self.folder).encode() in _command(pid)
        ]

    def stop(self, sig: int = signal.SIGTERM, timeout_s: float = 45.0) -> int:
        assert self.process is not None
        self.process.send_signal(sig)
        code = self.process.wait(timeout_s)
        self.process = None
        return code

    def kill(self) -> None:
        """Whatever is left, for the end of a test."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def proportional_set_bytes(pid: int) -> int:
    """What a process costs: its own pages, and its share of those it shares."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no Pss for {pid}")
