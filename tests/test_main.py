"""``python -m serving``: exit codes, words and JSON, against a real registry and a real service."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from served import environment, free_port, running, settings_of
from werkzeug.serving import make_server

from serving.__main__ import main
from serving.settings import ROOT, Settings
from serving.table import aligned, side_by_side

sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from registered import Registered

READY_S = 90.0


@dataclass
class Place:
    """A registry with three versions of ``iris``, and where a service follows it."""

    client: Any
    settings: Settings
    url: str

    def holder(self, alias: str) -> str:
        return str(self.client.get_model_version_by_alias("iris", alias).version)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    from mlflow import MlflowClient

    home = tmp_path_factory.mktemp("main")
    registered = Registered(home / "registry")
    client = MlflowClient(tracking_uri=registered.uri, registry_uri=registered.uri)
    folder = registered.folders[registered.add_graph(seed=1)]
    registered.add_graph(seed=2)
    registered.add(folder, tags={"gate": "passed"})
    client.set_model_version_tag("iris", "2", "gate", "passed")
    registered.point("1")
    registered.point("2", "challenger")
    with running(settings_of(home, mlflow_tracking_uri=registered.uri, models=("iris",), poll_interval_s=0.5)) as app:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        _await_contest(app)
        told = settings_of(home, mlflow_tracking_uri=registered.uri)
        yield Place(client, told, f"http://127.0.0.1:{server.port}")
        server.shutdown()
        thread.join()
        server.server_close()


def _await_contest(app: Flask) -> None:
    deadline = time.monotonic() + READY_S
    client = app.test_client()
    while client.get("/models/iris/compare").status_code != 200:
        assert time.monotonic() < deadline, client.get("/models").text
        time.sleep(0.1)


@pytest.fixture
def run(place: Place, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command in this process: its exit code, what it says, and what it says on standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments, place.settings)
        return code, *capsys.readouterr()

    return run


# --- in the order in which a version lives ---------------------------------------------------------------------------


def test_two_versions_side_by_side(run: Any, place: Place) -> None:
    code, said, _ = run("compare", "iris", "--url", place.url)
    assert code == 3
    rows = [line.split() for line in said.splitlines()]
    assert ["champion", "challenger"] in rows
    assert ["version", "1", "2"] in rows
    assert "verdict: wait, about 100 more labels" in said
    code, said, _ = run("compare", "iris", "--url", place.url, "--margin", "0.01", "--json")
    assert (code, json.loads(said)["verdict"]["decision"]) == (3, "wait")


def test_an_undecided_one_waits(run: Any, place: Place) -> None:
    code, said, complaint = run("promote", "iris", "--url", place.url)
    assert (code, place.holder("champion")) == (3, "1")
    assert "wait with version 2 of iris: about 100 more labels are needed" in complaint
    assert "offline  yes" in said
    code, said, _ = run("promote", "iris", "--url", place.url, "--json")
    plain = json.loads(said)
    assert (code, plain["decision"], plain["labels_needed"]) == (3, "wait", 100)
    assert "quality" in [check["what"] for check in plain["checks"]]


def test_force_says_and_records_so(run: Any, place: Place) -> None:
    code, said, _ = run("promote", "iris", "--url", place.url, "--force", "--why", "I know it")
    assert (code, place.holder("champion")) == (0, "2")
    assert "forced: " in said
    assert "version 2 of iris is champion now, which was version 1" in said
    tags = place.client.get_registered_model("iris").tags
    [move] = [json.loads(text) for key, text in tags.items() if key.startswith("move.")]
    assert (move["from"], move["to"], move["why"], move["gate"][:7]) == ("1", "2", "I know it", "forced:")


def test_what_is_champion_already_is_done(run: Any, place: Place) -> None:
    code, said, _ = run("promote", "iris", "--version", "2", "--force")
    assert (code, said) == (0, "nothing to do: version 2 of iris is champion already\n")


def test_back_again_with_its_name(run: Any, place: Place) -> None:
    code, said, _ = run("rollback", "iris", "--why", "too fast")
    assert (code, said) == (0, "version 1 of iris is champion now, which was version 2\n")
    assert place.holder("champion") == "1"
    assert "rolled_back" in place.client.get_model_version("iris", "2").tags


def test_nothing_to_go_back_to_lists_what_there_is(run: Any, place: Place) -> None:
    code, said, complaint = run("rollback", "iris")
    assert code == 3
    assert "name one with --to" in complaint
    assert [line.split() for line in said.splitlines()] == [
        ["version", "aliases", "gate"],
        ["3", "passed"],
        ["2", "passed", "rolled", "back"],
        ["1", "champion"],
    ]
    code, said, _ = run("rollback", "iris", "--json")
    assert [one["version"] for one in json.loads(said)["versions"]] == ["3", "2", "1"]
    code, said, _ = run("rollback", "iris", "--to", "3", "--json")
    assert (code, json.loads(said)["from"], json.loads(said)["to"]) == (0, "1", "3")


# --- what cannot be done ---------------------------------------------------------------------------------------------


def test_a_service_that_is_away_is_a_failure(run: Any, place: Place) -> None:
    code, _, complaint = run("compare", "iris", "--url", f"http://127.0.0.1:{free_port()}")
    assert (code, "does not answer" in complaint) == (1, True)
    code, said, complaint = run("compare", "nobody", "--url", place.url, "--json")
    assert (code, json.loads(said)["error"]["code"]) == (1, "unknown_model")
    code, _, complaint = run("compare", "iris", "--url", f"{place.url}/docs")
    assert code == 1


def test_a_registry_that_is_away_is_a_failure_at_once(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    for uri in (f"sqlite:///{tmp_path}/none.db", f"http://127.0.0.1:{free_port()}"):
        assert main(["rollback", "iris"], settings_of(tmp_path, mlflow_tracking_uri=uri)) == 1
    assert time.monotonic() - started < 10
    said = capsys.readouterr().err
    assert "no SQLite file none.db" in said
    assert "connection refused" in said
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize("given", [[], ["promote"], ["compare", "iris", "--margin", "-1"], ["demote", "iris"]])
def test_what_is_not_understood_ends_with_2(place: Place, given: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(given, place.settings)
    assert ended.value.code == 2


def test_a_login_reaches_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "old")
    uri = f"http://127.0.0.1:{free_port()}"
    assert main(["rollback", "iris"], settings_of(tmp_path, mlflow_tracking_uri=uri, mlflow_tracking_token="new")) == 1
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "new"


def test_it_runs_as_a_command(place: Place) -> None:
    command = [sys.executable, "-m", "serving", "compare", "iris", "--url", place.url, "--json"]
    ran = subprocess.run(command, cwd=ROOT, env=environment(place.settings), capture_output=True, text=True)
    assert ran.returncode == 1  # nobody challenges any more
    assert json.loads(ran.stdout)["error"]["code"] == "no_challenger", ran.stderr
    wrong = {**environment(place.settings), "PORT": "many"}
    ran = subprocess.run(command, cwd=ROOT, env=wrong, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (1, "PORT must be a whole number, not 'many'\n")


# --- the table -------------------------------------------------------------------------------------------------------


def test_all_that_is_known_is_in_the_table() -> None:
    measure = {"mean": 0.9, "low": 0.85, "high": 0.95}
    side = {
        "version": "1",
        "rows": 12345,
        "error_ratio": 0.001,
        "latency": {"p50_s": 0.001, "p95_s": 0.002, "p99_s": None, "row_s": 0.0001},
        "quality": {"labelled_rows": 300, "accuracy": measure},
    }
    agreement = {"rows": 200, "agreed_ratio": 0.985, "mean_difference": 0.1, "failed_rows": 2, "dropped_rows": 0}
    check = {"what": "quality", "passed": True, "text": "accuracy is better"}
    found = {
        **{"model": "iris", "since": "2026-01-01", "part": "shadow", "champion": side},
        **{"challenger": {**side, "version": "22", "quality": {"labelled_rows": 0}}, "agreement": agreement},
        "verdict": {"decision": "promote", "labels_needed": 0, "checks": [check]},
    }
    said = side_by_side(found)
    rows = [line.split() for line in said.splitlines()]
    assert ["accuracy", "0.9000", "(0.8500", "to", "0.9500)", "-"] in rows
    assert ["failed", "0.1", "%", "0.1", "%"] in rows
    assert "both agree in 98.5 % of 200 rows that both answered (2 failed)" in said
    assert said.endswith("quality  yes  accuracy is better\n\nverdict: promote")


def test_columns_are_below_each_other() -> None:
    assert aligned([("a", "b"), ("long", "")]) == ["a     b", "long"]
