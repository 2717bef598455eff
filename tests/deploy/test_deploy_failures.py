"""Each stage fails once: its exit code, its reasons, and what is there afterwards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import cloned
from driver import BAD, GOOD, Driver, Outcome, digest


def check_rolled_back(driver: Driver, outcome: Outcome) -> None:
    assert outcome.went_back
    assert driver.live_image == digest("good")
    assert "rolled back to what was revision 1 (it is 3 now)" in outcome.err
    assert driver.world["revisions"][0]["annotations"]["mlflow-live/commit"] == "good"


@pytest.mark.parametrize(
    ("tool", "argv", "code", "says"),
    [
        ("docker", "build --target", 20, "docker build of mlflow-live:"),
        ("docker", "save -o", 20, "docker save of mlflow-live:"),
        ("kind", "load", 20, "kind did not take the image"),
        ("trivy", "image --scanners", 30, "Trivy could not scan mlflow-live:"),
        ("trivy", "--format cyclonedx", 30, "wrote no SBOM"),
        ("kubectl", "create --dry-run=server", 40, "no lock can be made: no space left"),
        ("kubectl", "get replicasets", 40, "the revisions cannot be read"),
        ("kubectl", "diff", 40, "kubectl diff failed: no space left"),
        ("kubectl", "--force-conflicts --field-manager=deploy --dry-run=server", 40, "the cluster refuses it"),
        ("kubectl", "-f /namespace", 40, ""),
    ],
)
def test_what_fails_before_anything_is_applied(driver: Driver, tool: str, argv: str, code: int, says: str) -> None:
    if argv == "-f /namespace":
        argv, says = "namespace.yaml", "namespace mlflow-live cannot be made"
    driver.fault(tool, argv, 2, stderr="no space left")
    outcome = driver.run()
    assert outcome.code == code, outcome.text
    assert says in outcome.err
    assert "no space left" in outcome.text
    assert driver.world["revisions"] == []
    assert not outcome.went_back


@pytest.mark.parametrize(
    ("what", "says"), [("image", "findings of CRITICAL,HIGH in mlflow-live:"), ("config", "in the manifests")]
)
def test_findings_stop_it(driver: Driver, what: str, says: str) -> None:
    driver.world.update(findings={what: "CVE-2026-1"})
    outcome = driver.run()
    assert outcome.code == 30
    assert says in outcome.err
    assert "CVE-2026-1" in outcome.text
    assert driver.world["namespaces"] == {}


def test_a_push_that_fails(driver: Driver) -> None:
    driver.fault("docker", "push", stderr="denied: requested access to the resource is denied")
    driver.fault("docker", "version", 0, stdout="28.2.2\n")
    outcome = driver.run("--registry", "localhost:1", "--skip-scan")
    assert outcome.code == 10  # nobody answers there
    assert "registry: localhost:1" in outcome.err


def test_an_apply_that_fails_half_way_goes_back(released: Driver) -> None:
    released.fault(
        "kubectl",
        "apply --server-side --force-conflicts --field-manager=deploy -f",
        stderr="Error from server: etcdserver: request timed out",
    )
    outcome = released.run(*BAD)
    assert outcome.code == 40
    assert "kubectl apply failed" in outcome.err
    assert outcome.went_back
    assert "rolled back to what was revision 1 (it is 1 now)" in outcome.err
    assert released.live_image == digest("good")


@pytest.mark.parametrize(
    ("reason", "log"),
    [("ImagePullBackOff", ""), ("CrashLoopBackOff", "cannot start: MODEL_DIR"), ("CreateContainerConfigError", "")],
)
def test_a_release_that_cannot_start_is_explained_and_rolled_back(released: Driver, reason: str, log: str) -> None:
    released.world.update(bad={digest("poor"): reason})
    outcome = released.run(*BAD)
    assert outcome.code == 50, outcome.text
    assert re.search(rf"FAIL  roll-out: not complete after \d+ s \(pods ready 1/2, new 1\): {reason}", outcome.err)
    assert f"Error: {reason}" in outcome.out  # the event
    assert log in outcome.out
    assert ("--previous" in outcome.out) == (reason == "CrashLoopBackOff")
    check_rolled_back(released, outcome)


def test_a_release_that_is_never_ready_is_given_its_time_and_no_more(released: Driver) -> None:
    released.world.update(bad={digest("poor"): "Starting"})
    outcome = released.run(*BAD, "--timeout", "1")
    assert outcome.code == 50, outcome.text
    check_rolled_back(released, outcome)


def test_the_deadline_of_the_release_before_does_not_fail_the_rollback(released: Driver) -> None:
    """The controller's condition outlives a rollback for a moment, and `kubectl rollout status` believes it."""
    released.world.update(bad={digest("poor"): "Starting"}, deadline_exceeded=True, stale_after_rollback=3)
    outcome = released.run(*BAD)
    assert outcome.code == 50, outcome.text
    assert "no progress within its deadline" in outcome.err
    check_rolled_back(released, outcome)


def test_a_service_without_endpoints_is_rolled_back(released: Driver) -> None:
    released.fault("kubectl", "get endpointslices", 1, times=10_000, stderr="Error from server (Forbidden): no")
    outcome = released.run(*BAD)
    assert outcome.code == 50, outcome.text
    assert "FAIL  health: Error from server (Forbidden): no" in outcome.err
    check_rolled_back(released, outcome)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("readyz", "/readyz answers 503 instead of 200"),
        ("commit", "the live service is of commit another, not poor"),
        ("info", "/model/info names no version and digest"),
        ("golden", 'the golden prediction lacks "class_name":"setosa"'),
        ("bad", "/predict answers 200 instead of 400"),
        ("metrics", "do not name model iris version 1"),
    ],
)
def test_a_release_that_answers_wrongly_is_rolled_back(released: Driver, broken: str, says: str) -> None:
    released.world.update(broken=broken, broken_image=digest("poor"))
    outcome = released.run(*BAD, DEPLOY_SMOKE_S="1")
    assert outcome.code == 60, outcome.text
    assert says in outcome.err
    check_rolled_back(released, outcome)


def test_what_was_rolled_back_can_be_deployed_again(released: Driver) -> None:
    released.world.update(bad={digest("poor"): "ImagePullBackOff"})
    assert released.run(*BAD).code == 50
    released.world.update(bad={})
    outcome = released.run(*BAD)
    assert outcome.code == 0, outcome.text
    assert "unchanged: the cluster" not in outcome.out
    assert released.live_image == digest("poor")


def test_a_rollback_that_fails_is_70(released: Driver) -> None:
    released.world.update(broken="golden")  # in every release
    outcome = released.run(*BAD)
    assert outcome.code == 70
    assert "FAIL  rollback to revision 1: the golden prediction lacks" in outcome.err


def test_a_rollback_that_is_refused_is_70(released: Driver) -> None:
    released.world.update(bad={digest("poor"): "ImagePullBackOff"})
    released.fault("kubectl", "revision.json", stderr="error: forbidden")
    assert released.run(*BAD).code == 70


def test_the_first_release_has_nothing_to_go_back_to(driver: Driver) -> None:
    driver.images_pushed("poor")
    driver.world.update(bad={digest("poor"): "ImagePullBackOff"})
    outcome = driver.run(*BAD)
    assert outcome.code == 50
    assert "nothing to go back to" in outcome.out
    assert "deployment/mlflow-live" in driver.world["objects"]


def test_it_goes_back_to_what_was_ready_and_not_to_another_failure(released: Driver) -> None:
    released.images_pushed("worse")
    released.world.update(bad={digest("poor"): "ImagePullBackOff", digest("worse"): "CrashLoopBackOff"})
    assert released.run(*BAD, "--no-rollback").code == 50
    assert released.live_image == digest("poor")
    outcome = released.run("--skip-scan", "--image", "r.test/mlflow-live:worse")
    assert outcome.code == 50
    assert outcome.went_back
    assert released.live_image == digest("good")


def test_a_second_run_of_a_failed_release_has_nothing_to_roll_back(released: Driver) -> None:
    released.world.update(bad={digest("poor"): "ImagePullBackOff"})
    released.run(*BAD, "--no-rollback")
    outcome = released.run(*BAD)
    assert outcome.code == 50
    assert "nothing is applied" in outcome.out
    assert not outcome.went_back


# ---------------------------------------------------------------------------------------------------- the report


def test_the_report_of_a_success(released: Driver) -> None:
    outcome = released.run(*GOOD, "--json")
    report = outcome.json
    assert len(outcome.out.splitlines()) == 1
    assert "== smoke" in outcome.err
    wanted = {
        "code": 0,
        "verb": "up",
        "stage": "done",
        "reason": "",
        "image": digest("good"),
        "namespace": "mlflow-live",
    }
    wanted |= {
        "digest": digest("good").split("@")[1],
        "commit": "good",
        "revision": "1",
        "rollback": "none",
        "context": "kind-dev",
    }
    assert {key: report[key] for key in wanted} == wanted
    assert report["url"].startswith("http://127.0.0.1:")
    assert isinstance(report["duration_s"], int)


def test_the_report_of_a_failure(released: Driver) -> None:
    released.world.update(broken="golden", broken_image=digest("poor"))
    report: dict[str, Any] = released.run(*BAD, "--json").json
    wanted = {"code": 60, "stage": "smoke", "rollback": "done", "image": digest("good"), "revision": "3"}
    assert {key: report[key] for key in wanted} == wanted
    assert '"class_name":"setosa"' in report["reason"]  # escaped, and back


def test_the_report_of_a_preflight_that_fails_and_of_wrong_usage(driver: Driver) -> None:
    driver.world.update(reachable=False)
    report = driver.run("--json").json
    assert (report["code"], report["stage"]) == (10, "preflight")
    report = driver.run("--nonsense", "x", "--json").json
    assert (report["code"], report["stage"]) == (2, "usage")
    assert "--nonsense" in report["reason"]


def test_an_overlay_that_does_not_render(driver: Driver, tmp_path: Path) -> None:
    driver.checkout = cloned(tmp_path / "broken")
    (driver.checkout / "k8s/overlays/local/kustomization.yaml").write_text("resources: [nowhere.yaml]\n")
    outcome = driver.run()
    assert outcome.code == 10
    assert "overlay: does not render" in outcome.err
    assert "nowhere.yaml" in outcome.out
