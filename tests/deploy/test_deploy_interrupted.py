"""Interrupted at every stage, by a signal to the script alone (kill) or to all that runs (Ctrl-C): nothing stays.

SIGINT goes to the whole group, because bash drops one that comes alone while a child of a moment is in the foreground.
`Driver.ended` looks each time for the lock, for processes and for temporary files.
"""

from __future__ import annotations

import os
import signal

import pytest
from conftest import git
from driver import BAD, GOOD, Driver, digest

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}

BEFORE = [
    ("kubectl", "kustomize", "preflight"),
    ("docker", "version", "preflight"),
    ("kubectl", "version -o json", "preflight"),
    ("kubectl", "api-resources", "preflight"),
    ("docker", "build --target", "build"),
    ("docker", "save -o", "build"),
    ("kind", "load", "build"),
    ("trivy", "image", "scan"),
    ("trivy", "convert", "scan"),
    ("kubectl", "namespace.yaml", "deploy"),
    ("kubectl", "create -f", "deploy"),
    ("kubectl", "get replicasets", "deploy"),
    ("kubectl", "diff", "deploy"),
    ("kubectl", "--dry-run=server -f", "deploy"),
]
AFTER = [
    ("kubectl", "apply --server-side --force-conflicts --field-manager=deploy -f", "deploy"),
    ("kubectl", "get deployment mlflow-live -o jsonpath={.metadata.gen", "roll-out"),
    ("kubectl", "get endpointslices", "health"),
    ("kubectl", "port-forward --address 127.0.0.1 service", "smoke"),
    ("kubectl", "port-forward --address 127.0.0.1 pod", "smoke"),
]


@pytest.mark.parametrize(("tool", "argv", "stage"), BEFORE)
def test_before_anything_is_applied(driver: Driver, tool: str, argv: str, stage: str) -> None:
    number = (signal.SIGINT, signal.SIGTERM)[BEFORE.index((tool, argv, stage)) % 2]  # so each stage gets both
    driver.fault(tool, argv, hang=True)
    outcome = driver.interrupt(number, group=number == signal.SIGINT)
    assert outcome.code == CODES[number], outcome.text
    assert f"interrupted ({number.name}) during {stage}" in outcome.err
    assert driver.world["revisions"] == []
    assert not outcome.went_back
    assert git(driver.checkout, "status", "--porcelain") == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("tool", "argv", "stage"), AFTER)
def test_after_that_it_goes_back(released: Driver, tool: str, argv: str, stage: str, number: signal.Signals) -> None:
    released.fault(tool, argv, hang=True)
    outcome = released.interrupt(number, *BAD, "--json", group=number == signal.SIGINT)
    assert outcome.code == CODES[number], outcome.text
    assert f"interrupted ({number.name}) during {stage}" in outcome.err
    assert released.live_image == digest("good")
    assert outcome.json["rollback"] == "done"
    assert outcome.json["code"] == CODES[number]


def test_a_second_signal_stops_the_waiting_for_the_rollback(released: Driver) -> None:
    released.fault("kubectl", "get endpointslices", hang=True)
    process = released.start(*BAD)
    released.hangs(process)
    released.fault("kubectl", "get pods", hang=True)
    os.killpg(process.pid, signal.SIGINT)
    released.hangs(process)
    os.killpg(process.pid, signal.SIGINT)
    outcome = released.ended(process)
    assert outcome.code == 130
    assert released.live_image == digest("good")  # to apply it was the first thing that it did


def test_an_interrupted_first_release_has_nothing_to_go_back_to(driver: Driver) -> None:
    driver.images_pushed("good")
    driver.fault("kubectl", "get endpointslices", hang=True)
    outcome = driver.interrupt(signal.SIGTERM, *GOOD)
    assert outcome.code == 143
    assert "nothing to go back to" in outcome.out


def test_interrupted_while_the_rollback_of_a_failure_is_waited_for(released: Driver) -> None:
    released.world.update(bad={digest("poor"): "ImagePullBackOff"})
    released.fault("kubectl", "port-forward", hang=True)
    outcome = released.interrupt(signal.SIGINT, *BAD, group=True)
    assert outcome.code == 130
    assert released.live_image == digest("good")


@pytest.mark.parametrize("verb", ["status", "smoke", "doctor", "rollback"])
def test_other_verbs(released: Driver, verb: str) -> None:
    released.fault("kubectl", "version -o json", hang=True)
    assert released.interrupt(signal.SIGTERM, verb).code == 143
