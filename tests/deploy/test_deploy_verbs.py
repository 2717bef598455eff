"""status, rollback, smoke, doctor and down; the lock; what refuses to begin."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from driver import BAD, GOOD, SYSTEM, Driver, digest, install

LOCK = "mlflow-live-deploy-lock"


def two_releases(driver: Driver) -> None:
    assert driver.run(*BAD).code == 0  # nothing is wrong with it here


# ---------------------------------------------------------------------------------------------------- status and smoke


def test_status_tells_what_is_live(released: Driver) -> None:
    outcome = released.run("status")
    assert outcome.code == 0, outcome.text
    assert re.findall(r"^  (\w+) {2,}(.*)$", outcome.out, re.M)[:4] == [
        ("image", digest("good")),
        ("digest", digest("good").split("@")[1]),
        ("commit", "good"),
        ("revision", "1"),
    ]
    assert "mlflow-live-h1-x Running, ready" in outcome.out
    assert "iris version 1" in outcome.out
    assert "lock      free" in outcome.out


def test_status_is_50_when_nothing_is_there_or_it_is_not_healthy(driver: Driver) -> None:
    outcome = driver.run("status", "--json")
    assert (outcome.code, outcome.json["code"]) == (50, 50)
    assert '"mlflow-live" not found' in outcome.json["reason"]


def test_status_of_a_roll_out_that_is_stuck(released: Driver) -> None:
    released.world.update(bad={digest("poor"): "ImagePullBackOff"}, configmaps={})
    released.run(*BAD, "--no-rollback")
    assert released.run("status").code == 50


def test_smoke_alone(released: Driver) -> None:
    assert released.run("smoke").code == 0
    released.world.update(broken="golden")
    outcome = released.run("smoke")
    assert outcome.code == 60
    assert not outcome.went_back
    assert not outcome.called("kubectl", "create")


# ---------------------------------------------------------------------------------------------------- rollback


def test_rollback_goes_to_the_revision_before(released: Driver) -> None:
    two_releases(released)
    outcome = released.run("rollback", "--json")
    assert outcome.code == 0, outcome.text
    assert released.live_image == digest("good")
    assert outcome.json["rollback"] == "done"
    assert outcome.json["revision"] == "3"


def test_rollback_passes_over_a_revision_that_failed(released: Driver) -> None:
    released.images_pushed("better")
    released.world.update(bad={digest("poor"): "ImagePullBackOff"})
    assert released.run(*BAD).code == 50  # revision 2; what was 1 is 3 now
    assert released.run("--skip-scan", "--image", "r.test/mlflow-live:better").code == 0
    outcome = released.run("rollback")
    assert outcome.code == 0, outcome.text
    assert released.live_image == digest("good")
    assert f"revision 2  commit poor  {digest('poor')}  (did not pass its smoke test)" in outcome.out
    outcome = released.run("rollback", "--to-revision", "2")
    assert outcome.code == 70


def test_what_is_applied_again_is_the_revision_without_what_kubernetes_added(released: Driver) -> None:
    """The same template finds its ReplicaSet; and a later release owns every field of it."""
    (revision,) = released.world["revisions"]
    before = json.loads(json.dumps(revision))
    two_releases(released)
    assert released.run("rollback").code == 0
    first, second = released.world["revisions"]
    assert (first["revision"], second["revision"]) == (3, 2)
    assert (first["template"], first["annotations"]) == (before["template"], before["annotations"])


def test_rollback_to_a_revision_that_does_not_exist_names_those_that_do(released: Driver) -> None:
    two_releases(released)
    outcome = released.run("rollback", "--to-revision", "9")
    assert outcome.code == 10
    assert f"revision 1  commit good  {digest('good')}" in outcome.out
    assert f"revision 2  commit poor  {digest('poor')}  (live)" in outcome.out
    assert released.live_image == digest("poor")


def test_rollback_of_the_only_revision(released: Driver) -> None:
    outcome = released.run("rollback")
    assert outcome.code == 10
    assert "no revision before 1" in outcome.err


def test_rollback_that_fails_is_70(released: Driver) -> None:
    two_releases(released)
    released.world.update(broken="golden")
    assert released.run("rollback").code == 70


# ---------------------------------------------------------------------------------------------------- lock


def held(driver: Driver, expires: float, holder: str = "anna@laptop pid 4711") -> None:
    data = {"holder": holder, "since": "2026-11-21T10:00:00Z", "expires": str(int(expires))}
    driver.world["configmaps"][LOCK] = {
        "kind": "ConfigMap",
        "metadata": {"name": LOCK, "resourceVersion": "7"},
        "data": data,
    }


def test_the_lock_of_another_is_respected(released: Driver) -> None:
    held(released, time.time() + 600)
    released.world["keep_lock"] = True
    for arguments in (BAD, ("down", "--yes")):
        outcome = released.run(*arguments)
        assert outcome.code == 40
        assert "anna@laptop pid 4711 is deploying since 2026-11-21T10:00:00Z" in outcome.err
        assert "delete configmap mlflow-live-deploy-lock" in outcome.err
        assert released.world["configmaps"][LOCK]["data"]["holder"].startswith("anna")
    assert released.live_image == digest("good")


def test_a_lock_that_has_ended_is_taken_over(released: Driver) -> None:
    held(released, time.time() - 1)
    outcome = released.run(*BAD)
    assert outcome.code == 0, outcome.text
    assert "taking over the lock of anna@laptop pid 4711" in outcome.out


def test_it_is_the_servers_clock_that_counts(released: Driver) -> None:
    """The holder's clock and ours may be anything."""
    released.world.update(skew=7200)
    held(released, time.time() + 600)  # to the server, that is long ago
    assert released.run(*BAD).code == 0


def test_only_one_can_take_over(released: Driver) -> None:
    held(released, time.time() - 1)
    released.world["keep_lock"] = True
    released.fault(
        "kubectl",
        "replace -f",
        stderr='Error from server (Conflict): error when replacing "x": the object has been modified',
    )
    outcome = released.run(*BAD)
    assert outcome.code == 40
    assert "another was faster" in outcome.err


def test_the_lock_of_a_process_that_is_gone(released: Driver) -> None:
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    ended = subprocess.Popen(["true"])
    ended.wait()
    held(released, time.time() + 600, f"{user}@here pid {ended.pid}")
    assert released.run(*BAD, HOSTNAME="here").code == 0


def test_two_in_a_row_and_the_lock_names_its_holder(released: Driver) -> None:
    released.fault("kubectl", "diff", hang=True)
    process = released.start(*BAD)
    released.hangs(process)
    data = released.world["configmaps"][LOCK]["data"]
    assert re.fullmatch(r"\S+@\S+ pid \d+", data["holder"])
    assert 600 < int(data["expires"]) - time.time() < 1200
    assert released.world["configmaps"][LOCK]["metadata"]["labels"] == {"app.kubernetes.io/part-of": "mlflow-live"}
    process.terminate()
    released.ended(process)


# ---------------------------------------------------------------------------------------------------- who refuses


@pytest.mark.parametrize("verb", ["up", "rollback", "down"])
@pytest.mark.parametrize(
    ("mark", "name"),
    [
        ({"argocd.argoproj.io/tracking-id": "live:apps/Deployment:mlflow-live/mlflow-live"}, "Argo CD"),
        ({}, "Flux"),
    ],
)
def test_a_gitops_controller_is_not_fought(released: Driver, verb: str, mark: dict[str, str], name: str) -> None:
    released.world.update(gitops=mark)
    if name == "Flux":
        released.world["objects"]["deployment/mlflow-live"]["metadata"]["labels"][
            "kustomize.toolkit.fluxcd.io/name"
        ] = "apps"
    outcome = released.run(verb, "--skip-scan", "--yes")
    assert outcome.code == 10
    assert f"{name} manages mlflow-live" in outcome.out
    assert "repository" in outcome.out


def test_a_remote_cluster_must_be_meant(driver: Driver) -> None:
    driver.images_pushed("good")
    driver.world.update(context="cloud", server="https://cloud.example:443")
    outcome = driver.run(*GOOD)
    assert outcome.code == 10
    assert "say --context cloud, or --yes" in outcome.out
    assert not outcome.called("kubectl", "api-resources")
    assert driver.run(*GOOD, "--yes").code == 0
    assert driver.run(*GOOD, "--context", "cloud").code == 0


@pytest.mark.parametrize(
    "server",
    [
        "https://localhost:6443",
        "https://127.0.0.1:6443",
        "https://[::1]:6443",
        "https://kubernetes.docker.internal:6443",
    ],
)
def test_a_cluster_on_this_machine_is_local(driver: Driver, server: str) -> None:
    driver.images_pushed("good")
    driver.world.update(context="anything", server=server)
    assert driver.run(*GOOD, "--dry-run").code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nonsense", "x"], "--nonsense: there is no such option"),
        (["frobnicate"], "frobnicate: there is no such verb"),
        (["--env", "test"], "--env test"),
        (["--target", "moon"], "--target moon"),
        (["--timeout", "soon"], "--timeout soon"),
        (["--timeout", "0"], "--timeout 0"),
        (["--with", "a b"], "--with a b"),
        (["--severity", "high"], "--severity high"),
        (["--namespace", "Mine"], "--namespace Mine"),
        (["--tag", "-x"], "--tag -x"),
        (["--registry"], "--registry: what follows it is missing"),
        (["--context="], "--context: empty"),
        (["--to-revision", "2"], "--to-revision: only for rollback"),
        (["status", "--dry-run"], "--dry-run: only for up"),
        (["--image", "a:b", "--tag", "c"], "--tag: not together with --image"),
        (["--target", "registry"], "--target registry: needs --registry"),
        (["--with", "mlflow,argocd"], "--with argocd: that component is for Argo CD"),
    ],
)
def test_wrong_usage_is_2_and_names_the_option(driver: Driver, arguments: list[str], says: str) -> None:
    outcome = driver.run(*arguments)
    assert outcome.code == 2
    assert says in outcome.err
    assert outcome.calls == []


# ---------------------------------------------------------------------------------------------------- doctor


def test_doctor_changes_nothing(driver: Driver) -> None:
    outcome = driver.run("doctor")
    assert outcome.code == 0, outcome.text
    assert "Ready to deploy." in outcome.out
    assert not outcome.called("docker", "build", "--tag")


def rows(text: str) -> dict[str, tuple[str, str]]:
    """check: (ok|warn|FAIL, the rest of its line)."""
    found = {}
    for line in text.splitlines():
        row = re.match(r"  (ok  |warn|FAIL)  (\S.*?)  +(\S.*)", line)
        if row:
            found[row[2]] = row[1].strip(), row[3].strip()
    return found


def test_all_that_is_missing_is_in_one_table(driver: Driver, tmp_path: Path) -> None:
    path = install(tmp_path / "bin", ("kubectl",))
    for tool in ("git", "curl", "diff"):
        (path / tool).unlink()
    driver.environment["PATH"] = str(path)
    outcome = driver.run("--env", "production", "--with", "monitoring")
    assert outcome.code == 10
    table = rows(outcome.out)
    failing = {check for check, (status, _) in table.items() if status == "FAIL"}
    assert {"git", "curl", "diff", "docker", "kind", "commit", "pull policy", "trivy"} <= failing
    assert {check for check in failing if check.startswith("kind ")} >= {"kind ServiceMonitor", "kind PrometheusRule"}
    assert "leave out component monitoring" in outcome.out
    assert "install git" in table["git"][1]
    assert all(check in outcome.err for check in failing)


@pytest.mark.parametrize(
    ("world", "arguments", "check", "status", "says"),
    [
        ({"version": "v1.36.0"}, [], "kubectl, cluster", "warn", "install kubectl 1.36"),
        ({"version": "v1.33.0"}, [], "kubectl, cluster", "ok", "1.32, 1.33"),
        ({"denied": ["deployments.apps"]}, [], "rights", "FAIL", "deployments.apps"),
        ({"denied": ["--subresource=portforward"]}, [], "rights", "FAIL", "portforward"),
        (
            {"metrics": False},
            ["--env", "staging", "--registry", "localhost:1"],
            "metrics server",
            "warn",
            "metrics-server",
        ),
        ({"daemonsets": []}, ["--env", "staging", "--registry", "localhost:1"], "network policies", "warn", "Calico"),
        (
            {"daemonsets": [], "version": "v1.33.1+k3s1"},
            ["--env", "staging", "--registry", "localhost:1"],
            "network policies",
            "ok",
            "k3s",
        ),
        ({"reachable": False}, [], "context", "FAIL", "does not answer"),
        ({"context": ""}, [], "registry", "FAIL", "--registry"),
        (
            {"namespaces": {"mlflow-live": {"pod-security.kubernetes.io/enforce": "privileged"}}},
            [],
            "namespace",
            "warn",
            "restricted",
        ),
        ({}, ["--registry", "localhost:1"], "registry", "FAIL", "does not answer"),
        ({}, ["--context", "other"], "context", "FAIL", "does not exist"),
        ({}, ["--with", "nonsense"], "overlay", "FAIL", "accumulating"),
        ({}, ["--image", "a/b:c", "--with", "mlflow"], "image", "FAIL", "mlflow-live-mlflow"),
    ],
)
def test_each_finding(
    driver: Driver, world: dict[str, Any], arguments: list[str], check: str, status: str, says: str
) -> None:
    driver.world.update(world)
    outcome = driver.run("doctor", *arguments)
    found = rows(outcome.out)[check]
    assert found[0] == status, outcome.out
    assert says in found[1] or says in outcome.out
    assert outcome.code == (10 if "FAIL" in outcome.out else 0)


def test_a_secret_that_is_needed_and_one_that_is_not(driver: Driver) -> None:
    assert rows(driver.run("doctor").out)["secret mlflow-live"] == ("ok", "absent, not used")


# ---------------------------------------------------------------------------------------------------- down


def test_down_needs_a_yes(released: Driver) -> None:
    outcome = released.run("down")
    assert outcome.code == 2
    assert "--yes" in outcome.err
    assert "deployment.apps/mlflow-live" in outcome.out
    assert "deployment/mlflow-live" in released.world["objects"]


def test_down_deletes_what_up_made(released: Driver) -> None:
    outcome = released.run("down", "--yes")
    assert outcome.code == 0, outcome.text
    assert released.world["namespaces"] == {}
    assert released.run("down", "--yes").code == 0  # again


def test_down_leaves_what_belongs_to_the_cluster(driver: Driver) -> None:
    outcome = driver.run("down", "--yes", "--env", "staging")
    assert outcome.code == 0, outcome.text
    assert "mlflow-live-staging stays: a PriorityClass belongs to the cluster" in outcome.out
    assert not any("priorityclass" in word for call in outcome.called("kubectl", "delete") for word in call)


def test_down_leaves_what_is_yours(released: Driver) -> None:
    released.world.update(kept=[["PersistentVolumeClaim", "data-postgres-0"]])
    outcome = released.run("down", "--yes", "--with", "mlflow")
    assert outcome.code == 0, outcome.text
    assert "persistentvolumeclaim/data-postgres-0" in outcome.out
    assert "mlflow-live" in released.world["namespaces"]
    assert "deployment/mlflow-live" not in released.world["objects"]


# ---------------------------------------------------------------------------------------------------- terminals


def on_a_terminal(driver: Driver, *arguments: str, **environment: str) -> str:
    """What it writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["bash", str(driver.checkout / "deploy.sh"), *arguments],
        env=driver.environment | {"TERM": "xterm"} | environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            got = os.read(ours, 65536)
        except OSError:
            break
        if not got:
            break
        text += got
    process.wait()
    os.close(ours)
    return text.decode()


def test_colours_only_on_a_terminal_that_wants_them(driver: Driver) -> None:
    assert "\033[" in on_a_terminal(driver, "--skip-scan")
    assert "\033[" not in on_a_terminal(driver, "doctor", NO_COLOR="1")
    assert "\033[" not in driver.run("doctor").text


def test_docker_speaks_for_itself_on_a_terminal_and_otherwise_when_it_fails(driver: Driver) -> None:
    assert "#1 building" in on_a_terminal(driver, "--skip-scan")
    driver.world["images"].clear()
    assert "#1 building" not in driver.run("--skip-scan").text
    driver.world["images"].clear()
    driver.fault("docker", "build --target", stderr="ERROR: failed to solve")
    assert "ERROR: failed to solve" in driver.run("--skip-scan").err


def test_the_tools_of_the_system_that_it_uses_are_few() -> None:
    assert not {"jq", "python3", "perl", "gawk", "timeout", "realpath"} & set(SYSTEM)
