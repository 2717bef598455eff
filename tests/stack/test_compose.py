"""The whole platform, brought up by one command: what it serves, what it keeps, and what it survives.

The tests build on each other in the order in which they stand.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from composed import PORTS, ROOT, Stack, failed, under_load
from harness import wait_for

AWAY_S = 8.0  # longer than the service looks away from the registry


def test_the_first_version_comes_from_the_registry(stack: Stack) -> None:
    info = stack.api("/model/info").json
    assert (info["version"], info["source"]) == ("1", "registry")
    print(f"healthy after {stack.up_s:.0f} s")


def test_artifacts_lie_in_the_bucket_and_runs_in_postgresql(stack: Stack) -> None:
    assert any(key.endswith("MLmodel") for key in stack.objects())
    assert int(stack.sql("mlflow", "SELECT count(*) FROM runs")) > 0
    assert stack.sql("mlflow", "SELECT name, version FROM model_versions") == "iris|1"


def test_the_demo_passes(stack: Stack) -> None:
    url = f"http://localhost:{PORTS['API_PORT']}"
    done = subprocess.run([sys.executable, "demo.py", "--url", url], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nobody_runs_as_root_or_may_write_to_its_image(stack: Stack) -> None:
    for service in ("api", "mlflow"):
        config = stack.state(service)
        assert config["Config"]["User"] == "10001:10001"
        assert config["HostConfig"]["ReadonlyRootfs"]
        assert config["HostConfig"]["CapDrop"] == ["ALL"]
        assert all(b["HostIp"] == "127.0.0.1" for to in config["HostConfig"]["PortBindings"].values() for b in to)


def test_no_secret_is_in_an_environment_or_a_command_line(stack: Stack) -> None:
    password = stack.compose("exec", "-T", "postgres", "cat", "/run/secrets/ledger").strip()
    assert len(password) >= 32
    for service in ("api", "mlflow", "postgres", "minio"):
        state = stack.state(service)
        assert password not in str(state)
        assert "PASSWORD=" not in str(state["Config"]["Env"])


def test_a_version_trained_on_the_host_goes_live_without_a_failed_request(stack: Stack) -> None:
    before = stack.version()
    load = under_load()
    stack.train("iris", "--seed", "7", "--force")
    wait_for(lambda: stack.version() != before, 60, "the new version does not go live")
    time.sleep(2)
    records = load.stop()
    assert failed(records) == []
    assert {record.version for record in records} == {before, stack.version()}


@pytest.mark.parametrize("away", [["postgres"], ["minio"], ["mlflow"], ["mlflow", "minio", "postgres"]], ids="+".join)
def test_what_is_behind_may_go_and_come_back(stack: Stack, away: list[str]) -> None:
    kept, started, version = stack.settled(), stack.state("api")["State"]["StartedAt"], stack.version()
    load = under_load()
    time.sleep(2)
    stack.compose("stop", *away)
    time.sleep(AWAY_S)
    gone = stack.state(away[0])["State"]["Running"]
    stack.compose("start", *reversed(away))
    time.sleep(AWAY_S)
    records = load.stop()
    assert not gone
    assert failed(records) == []
    assert len(records) > 100
    assert stack.state("api")["State"]["StartedAt"] == started
    assert stack.version() == version
    stack.ledger_empties(kept + len(records))
    for service in away:
        wait_for(lambda: stack.state(service)["State"]["Health"]["Status"] == "healthy", 90, f"{service} is not well")  # noqa: B023


def test_a_restart_serves_the_same_version(stack: Stack) -> None:
    version = stack.version()
    start = time.monotonic()
    stack.compose("restart", "api")
    wait_for(lambda: stack.api("/readyz").status == 200, 60, "the service is not back")
    print(f"back after {time.monotonic() - start:.1f} s")
    assert stack.version() == version


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may kill a process of a container from outside")
def test_a_killed_service_comes_back_with_the_same_version(stack: Stack) -> None:
    version, pid = stack.version(), stack.state("api")["State"]["Pid"]
    start = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: stack.state("api")["State"]["Pid"] not in (0, pid), 30, "Docker does not start it again")
    wait_for(lambda: stack.api("/readyz").status == 200, 60, "the service is not back")
    print(f"back after {time.monotonic() - start:.1f} s")
    assert stack.version() == version


def test_down_and_up_loses_nothing(stack: Stack) -> None:
    version, kept = stack.version(), stack.settled()
    stack.compose("down")
    print(f"healthy again after {stack.up():.0f} s")
    info = stack.api("/model/info").json
    assert (info["version"], info["source"]) == (version, "registry")
    assert stack.kept() == kept
    assert int(stack.sql("mlflow", "SELECT count(*) FROM model_versions")) == 2  # nothing was trained again


def firing(stack: Stack) -> set[str]:
    alerts = stack.prometheus("alerts")["alerts"]
    return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def test_prometheus_sees_everything_and_nothing_is_wrong(stack: Stack) -> None:
    if stack.services and "prometheus" not in stack.services:
        pytest.skip("Prometheus does not run")

    def all_up() -> bool:
        return {target["health"] for target in stack.prometheus("targets?state=active")["activeTargets"]} == {"up"}

    wait_for(all_up, 60, "a target is not up")
    jobs = {target["labels"]["job"] for target in stack.prometheus("targets?state=active")["activeTargets"]}
    assert jobs == {"mlflow-live", "mlflow", "prometheus"}
    rules = [rule for group in stack.prometheus("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 50
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []
    assert firing(stack) <= {"Watchdog"}


WRONG = {
    "a wrong password": (["-e", "PGPASSFILE=/tmp/none", "migrate"], "password"),
    "a wrong key": (["-e", "AWS_SHARED_CREDENTIALS_FILE=/tmp/none", "bucket"], "credentials"),
    "no S3 server": (["-e", "AWS_ENDPOINT_URL_S3=http://nobody:9000", "bucket"], "nobody"),
    "no MLflow": (["-e", "MLFLOW_TRACKING_URI=http://nobody:5000", "train"], "MLflow does not answer"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_stands_in_the_last_line(stack: Stack, case: str) -> None:
    arguments, reason = WRONG[case]
    output = stack.compose("run", "--rm", "--no-deps", "-T", *arguments, check=False)
    assert reason in output.strip().splitlines()[-1]
