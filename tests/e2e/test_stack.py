"""The whole stack as a client sees it: MLflow over HTTP, with its runs in PostgreSQL and its artifacts in a bucket."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from harness import Running, wait_for
from load import Load, Record
from sklearn.linear_model import LogisticRegression
from stack import S3, Stack, Uploaded, started, without_keys

import train_model
from serving.digest import folder_digest
from serving.settings import ROOT
from training import iris

LARGE_BYTES = 120 * 2**20
OUTAGE_S = 2.0


class Followed:
    """A service that follows the stack."""

    def __init__(self, stack: Stack, home: Path) -> None:
        settings = {"WEB_CONCURRENCY": "2", "POLL_INTERVAL_S": "1", "DATABASE_URL": stack.ledger}
        self.stack = stack
        self.service = Running(home, stack.mlflow.uri, settings)
        self.records: list[Record] = []  # all that was ever predicted
        self.registry = Uploaded(home, stack.mlflow.uri)

    @property
    def info(self) -> dict[str, Any]:
        return dict(self.service.call("/model/info").json)

    @property
    def recorded(self) -> int:
        """How many predictions are in the ledger."""
        return int(self.stack.rows(self.stack.ledger, "SELECT count(*) FROM ledger_predictions")[0][0])

    @contextmanager
    def under_load(self) -> Iterator[None]:
        """No request may fail meanwhile."""
        load = Load(self.service.port, connections=3, pause_s=0.03)
        try:
            yield
        finally:
            records = load.stop()
            self.records += records
        assert {record.status for record in records} == {200}

    def await_version(self, version: str) -> None:
        """Until it is live in every worker."""

        def live() -> bool:
            return self.service.all_ready() and self.info["version"] == version

        wait_for(live, 90, f"version {version} is not served")


@pytest.fixture(autouse=True, scope="module")
def client() -> Iterator[None]:
    """The tests are clients: they have no keys, and what training sets is gone with them."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(without_keys(), **train_model.ENVIRONMENT)
    yield
    mlflow.set_tracking_uri(None)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with started(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture(scope="module")
def followed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    """A service that was started before there was anything to serve, and the first version of ``iris``."""
    followed = Followed(stack, tmp_path_factory.mktemp("followed"))
    try:
        followed.service.start(ready=False)
        rows = iris.FAMILY.data().train
        model = LogisticRegression(max_iter=500).fit(rows.inputs, rows.labels)  # soon proven, and none too good
        followed.registry.point(followed.registry.add_model(model, rows.inputs))
        followed.await_version("1")
        yield followed
    finally:
        followed.service.kill()


def test_what_a_client_trains_is_served_by_itself(followed: Followed, tmp_path: Path) -> None:
    stack = followed.stack
    environment = {**without_keys(), "MLFLOW_TRACKING_URI": stack.mlflow.uri, "MODEL_DIR": str(tmp_path)}
    with followed.under_load():
        done = subprocess.run(
            [sys.executable, "train_model.py", "iris"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        followed.await_version("2")
    assert {record.version for record in followed.records} == {"1", "2"}
    info = followed.info
    assert (info["source"], info["fallback"]) == ("registry", None)

    [(model_id, digest)] = stack.rows(
        stack.runs,
        "SELECT substring(source FROM 'm-[0-9a-f]+'), value FROM model_versions v JOIN model_version_tags t "
        "ON t.name = v.name AND t.version = v.version WHERE v.version = 2 AND t.key = 'artifact_digest'",
    )
    assert info["digest"] == digest
    files = {key.rpartition("/")[2] for key in stack.s3.objects() if model_id in key}
    assert {"MLmodel", "reference.npz", "profile.json"} < files
    assert stack.rows(stack.runs, "SELECT count(*) FROM runs WHERE status = 'FINISHED'") == [(4,)]


def without_a_bucket(s3: S3) -> None:
    s3.start_empty()


def with_other_keys(s3: S3) -> None:
    s3.start_locked()


def not_at_all(s3: S3) -> None:
    pass


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (without_a_bucket, "Failed to list artifacts in s3://mlflow: The specified bucket does not exist"),
        (with_other_keys, "The AWS Access Key Id you provided does not exist in our records"),
        (not_at_all, "answers 500; its log says why"),
    ],
)
def test_training_says_in_one_line_what_is_wrong_with_the_bucket(
    stack: Stack,
    start: Callable[[S3], None],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the work, so that no run is left of it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.mlflow.uri)
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    runs = "SELECT count(*) FROM runs"
    before = stack.rows(stack.runs, runs)
    stack.s3.stop()
    try:
        start(stack.s3)
        assert train_model.main(["iris"]) == train_model.ERROR
    finally:
        stack.s3.stop()
        stack.s3.start()
    error = capsys.readouterr().err
    assert error.startswith("train_model.py: artifact store mlflow-artifacts:/")
    assert error.count("\n") == 1
    assert words in error
    assert stack.rows(stack.runs, runs) == before


def test_servers_that_go_one_after_the_other(followed: Followed) -> None:
    stack, service = followed.stack, followed.service
    before = followed.info["version"]
    processes = [service.process, *service.worker_pids(), *service.agent_pids()]
    version = followed.registry.add_graph(seed=1)
    with followed.under_load():
        stack.postgres.stop()
        wait_for(lambda: followed.info["registry"]["reachable"] is False, 15, "the registry's absence is not told")
        time.sleep(OUTAGE_S)
        stack.postgres.start()
        wait_for(lambda: followed.info["registry"]["reachable"], 30, "the registry's return is not told")

        stack.s3.stop()
        followed.registry.point(version)
        wait_for(lambda: "the artifact store answers 500" in service.log, 15, "nobody misses the files")
        time.sleep(OUTAGE_S)
        assert followed.info["version"] == before
        stack.s3.start()
        followed.await_version(version)
    wait_for(lambda: followed.recorded == len(followed.records), 30, "not all predictions are in the ledger")
    assert [service.process, *service.worker_pids(), *service.agent_pids()] == processes


def test_all_go_in_the_middle_of_a_large_version(followed: Followed, tmp_path: Path) -> None:
    """Nothing half is left of it, and when they are back it comes live by itself."""
    stack, service = followed.stack, followed.service
    before = followed.info["version"]
    bundles = service.folder / "state" / "models" / "iris" / "bundles"
    registry = followed.registry
    files = Path(shutil.copytree(registry.folders[registry.add_graph(seed=2)], tmp_path / "large"))
    (files / "large.bin").write_bytes(os.urandom(LARGE_BYTES))
    version = registry.add(files)
    [key] = [key for key in stack.s3.objects() if key.endswith("/large.bin")]
    assert stack.s3.parts(key) > 1
    with followed.under_load():
        registry.point(version)
        wait_for(lambda: _written(bundles, "large.bin") > 2**20, 60, "it is not fetched")
        stack.mlflow.stop()
        wait_for(lambda: followed.info["registry"]["reachable"] is False, 15, "the registry's absence is not told")
        assert list(bundles.glob(".prepare-*")) == list(bundles.glob(f"{version}-*")) == []
        stack.s3.stop()
        stack.postgres.stop()
        time.sleep(OUTAGE_S)
        assert followed.info["version"] == before
        for server in (stack.postgres, stack.s3, stack.mlflow):
            server.start()
        followed.await_version(version)
    assert (followed.info["digest"], followed.info["fallback"]) == (folder_digest(files), None)
    wait_for(lambda: followed.recorded == len(followed.records), 30, "not all predictions are in the ledger")


def _written(bundles: Path, name: str) -> int:
    """How much of a file is there of a version that is being prepared."""
    return sum(path.stat().st_size for path in bundles.glob(f".prepare-*/artifacts/{name}"))
