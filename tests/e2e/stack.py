"""The stack without containers: MLflow's own server, a PostgreSQL for its runs, and an S3 server for its artifacts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psycopg2
from botocore.config import Config
from harness import free_port, wait_for
from postgres import Postgres
from registered import Registered

from serving.digest import folder_digest
from serving.registry import DIGEST_TAG

BUCKET = "mlflow"
KEY, SECRET, REGION = "the-server", "alone", "us-east-1"


def without_keys() -> dict[str, str]:
    """The environment of somebody who is told where MLflow is, and nothing of what is behind it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS", "MLFLOW"))}


def own_database(postgres: Postgres, name: str) -> str:
    """The address of a new database, as a user of its own."""
    with closing(psycopg2.connect(postgres.url)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(f"CREATE USER {name} PASSWORD 'of-{name}'")
        cursor.execute(f"CREATE DATABASE {name} OWNER {name}")
        cursor.execute(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
    return postgres.url_of(name).replace(f"postgres:{postgres.URL_PASSWORD}@", f"{name}:of-{name}@")


class Server:
    """A program that answers over HTTP, in processes of its own. It comes back on the same port."""

    def __init__(self, home: Path, name: str) -> None:
        self.port = free_port()
        self._home = home / name
        self._home.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End it at once, with all that it started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    stop = close

    def _run(self, *command: str, **environment: str) -> None:
        """Start it, and wait until it answers; its temporary files stay in its folder, because it will be killed."""
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env={**without_keys(), "TMPDIR": str(self._home), **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._answers, 60, f"{self._home} does not start; see its log")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._home / "log").read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
        except urllib.error.HTTPError:  # an answer too
            return True
        return True


class S3(Server):
    """moto's server, with one bucket. It keeps objects in memory, so we carry them over a stop."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, "s3")
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name=REGION,
            config=Config(retries={"total_max_attempts": 1}),
        )
        self._kept: dict[str, bytes] = {}
        self._has_bucket = False

    def start(self) -> S3:
        """Start it with all that it had."""
        self.start_empty()
        self.client.create_bucket(Bucket=BUCKET)
        self._has_bucket = True
        for key, content in self._kept.items():
            self.client.put_object(Bucket=BUCKET, Key=key, Body=content)
        return self

    def start_empty(self) -> None:
        """Start it without the bucket."""
        self._run("moto.server", "-H", "127.0.0.1", "-p", str(self.port))

    def start_locked(self) -> None:
        """Start it such that nobody's key opens it."""
        self._run("moto.server", "-H", "127.0.0.1", "-p", str(self.port), INITIAL_NO_AUTH_ACTION_COUNT="0")

    def stop(self) -> None:
        """End it, and remember all that it has."""
        if self._has_bucket:
            self._kept = {key: self._content(key) for key in self.objects()}
            self._has_bucket = False
        self.close()

    def objects(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def parts(self, key: str) -> int:
        """In how many pieces an object was uploaded."""
        tag = self.client.head_object(Bucket=BUCKET, Key=key)["ETag"].strip('"')
        return int(tag.partition("-")[2] or 1)

    def _content(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())


class Mlflow(Server):
    """MLflow's server, the only one who knows the database and the key of the bucket."""

    def __init__(self, home: Path, database: str, s3: S3) -> None:
        super().__init__(home, "mlflow")
        self.uri = f"http://localhost:{self.port}"
        self._database, self._s3 = database, s3

    def start(self) -> Mlflow:
        options = {
            "--backend-store-uri": self._database,
            "--artifacts-destination": f"s3://{BUCKET}",
            "--workers": "1",
            "--port": str(self.port),
        }
        self._run(
            *("mlflow", "server", "--serve-artifacts"),
            *(word for pair in options.items() for word in pair),
            MLFLOW_S3_ENDPOINT_URL=self._s3.url,
            AWS_ACCESS_KEY_ID=KEY,
            AWS_SECRET_ACCESS_KEY=SECRET,
            AWS_DEFAULT_REGION=REGION,
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
            MLFLOW_DISABLE_TELEMETRY="true",
        )
        return self


class Uploaded(Registered):
    """A registry that gets its versions' files as artifacts of runs, over HTTP."""

    def add(self, folder: Path, *, digest: str | None = None, tags: dict[str, str] | None = None) -> str:
        found = self._client.get_experiment_by_name("uploads")
        experiment_id = found.experiment_id if found else self._client.create_experiment("uploads")
        run = self._client.create_run(experiment_id).info
        self._client.log_artifacts(run.run_id, str(folder), "model")
        recorded = {DIGEST_TAG: digest or folder_digest(folder), **(tags or {})}
        made = self._client.create_model_version("iris", f"{run.artifact_uri}/model", run.run_id, tags=recorded)
        self.folders[str(made.version)] = folder
        return str(made.version)


@dataclass(frozen=True)
class Stack:
    """All of them, with a database for the ledger beside the one for MLflow's runs."""

    postgres: Postgres
    s3: S3
    mlflow: Mlflow
    runs: str
    ledger: str

    @staticmethod
    def rows(database: str, query: str) -> list[tuple[Any, ...]]:
        """What a query gives in one of the databases."""
        with closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()


@contextmanager
def started(home: Path) -> Iterator[Stack]:
    """The stack, with what it keeps in ``home``; nothing is left running."""
    with ExitStack() as ends:
        postgres = Postgres()
        ends.callback(postgres.close)
        postgres.start()
        runs, ledger = own_database(postgres, "mlflow"), own_database(postgres, "ledger")
        s3 = S3(home)
        ends.callback(s3.close)
        s3.start()
        mlflow = Mlflow(home, runs, s3)
        ends.callback(mlflow.close)
        mlflow.start()
        yield Stack(postgres, s3, mlflow, runs, ledger)
