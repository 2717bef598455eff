"""The stack as its users handle it: by ``docker compose`` and the ports that it publishes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Response, call, wait_for
from load import Load, Record

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "mlflow-live-e2e"
PORTS = {
    "API_PORT": 15001,
    "MLFLOW_PORT": 15000,
    "PROMETHEUS_PORT": 19090,
    "GRAFANA_PORT": 13000,
    "MINIO_CONSOLE_PORT": 19001,
}


@dataclass
class Stack:
    """A compose project; ``services``: what runs of it, all when empty."""

    services: list[str]
    settings: dict[str, str] = field(default_factory=dict)
    up_s: float = 0.0

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {name: str(port) for name, port in PORTS.items()} | self.settings

    def compose(self, *arguments: str, check: bool = True, timeout_s: float = 3600) -> str:
        """What ``docker compose`` prints. Raises AssertionError with its last lines when it fails and ``check``."""
        command = ["docker", "compose", "--progress", "plain", "--project-name", PROJECT, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0 or not check, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout if check else done.stdout + done.stderr

    def up(self, *services: str) -> float:
        """Bring it up; seconds until everything was healthy."""
        start = time.monotonic()
        self.compose("up", "--detach", "--wait", *(services or self.services))
        self.up_s = time.monotonic() - start
        return self.up_s

    def api(self, path: str, body: Any = None, **options: Any) -> Response:
        return call(PORTS["API_PORT"], path, body, **options)

    def version(self) -> str:
        return str(self.api("/model/info").json["version"])

    def sql(self, database: str, query: str) -> str:
        """The answer of PostgreSQL, without heads."""
        return self.compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", database, "-Atc", query).strip()

    def kept(self) -> int:
        """Predictions in the ledger."""
        return int(self.sql("ledger", "SELECT count(*) FROM ledger_predictions"))

    def settled(self) -> int:
        """Predictions in the ledger, once there are no more on their way."""
        before = -1
        while before != (now := self.kept()):
            before = now
            time.sleep(3)
        return now

    def state(self, service: str) -> dict[str, Any]:
        """What Docker says of a service's container."""
        container = self.compose("ps", "--all", "--quiet", service).strip()
        output = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True).stdout
        return dict(json.loads(output)[0])

    def objects(self) -> list[str]:
        """The keys in the bucket."""
        code = "import boto3; print(*(o.key for o in boto3.resource('s3').Bucket('mlflow').objects.all()))"
        return self.compose("run", "--rm", "--no-deps", "-T", "bucket", "python", "-c", code).split()

    def prometheus(self, path: str) -> Any:
        return call(PORTS["PROMETHEUS_PORT"], f"/api/v1/{path}").json["data"]

    def train(self, *arguments: str) -> str:
        """Train from this machine, as a user does who has no key of the object store."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS", "MLFLOW"))}
        environment["MLFLOW_TRACKING_URI"] = f"http://localhost:{PORTS['MLFLOW_PORT']}"
        environment["MODEL_DIR"] = "/tmp/mlflow-live-e2e-models"
        done = subprocess.run(
            [sys.executable, "train_model.py", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ledger_empties(self, expected: int, timeout_s: float = 90) -> None:
        """Wait until the ledger has as many predictions as were answered; more would be twice the same one."""

        def complete() -> bool:
            with contextlib.suppress(AssertionError):  # PostgreSQL may be on its way
                return self.kept() >= expected
            return False

        wait_for(complete, timeout_s, f"the ledger does not get to {expected} predictions")
        assert self.kept() == expected


def under_load(connections: int = 4, pause_s: float = 0.02) -> Load:
    return Load(PORTS["API_PORT"], connections, pause_s)


def failed(records: list[Record]) -> list[Record]:
    return [record for record in records if record.status != 200]
