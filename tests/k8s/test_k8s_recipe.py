"""Every pod in every overlay is as hardened as linters and the Pod Security Standard `restricted` demand."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from rendered import ROOT, containers, named, pod, quantity, workloads

VOLUMES = {"configMap", "downwardAPI", "emptyDir", "projected", "secret", "persistentVolumeClaim"}
RESOURCES = {"cpu", "memory", "ephemeral-storage"}
PREFIX = "app.kubernetes.io/"


def test_the_namespace_admits_restricted_pods_only(objects: list[dict[str, Any]]) -> None:
    labels = objects[0]["metadata"]["labels"]
    for mode in ("enforce", "audit", "warn"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"
        assert labels[f"pod-security.kubernetes.io/{mode}-version"]


def test_pods_have_an_account_of_their_own_and_no_token(objects: list[dict[str, Any]]) -> None:
    accounts = [pod(workload)["serviceAccountName"] for workload in workloads(objects)]
    assert len(set(accounts)) == len(accounts)
    assert "default" not in accounts
    for one in [
        *(pod(workload) for workload in workloads(objects)),
        *(a for a in objects if a["kind"] == "ServiceAccount"),
    ]:
        assert one["automountServiceAccountToken"] is False


def test_pods_run_as_nobody_that_the_node_knows(objects: list[dict[str, Any]]) -> None:
    for workload in workloads(objects):
        security = pod(workload)["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}


def test_pods_share_nothing_with_the_node(objects: list[dict[str, Any]]) -> None:
    for workload in workloads(objects):
        spec = pod(workload)
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert spec["enableServiceLinks"] is False
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= VOLUMES
            assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"]


def test_containers_may_do_nothing_special(objects: list[dict[str, Any]]) -> None:
    for workload in workloads(objects):
        for one in containers(pod(workload)):
            security = one["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["privileged"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["runAsNonRoot"] is True
            assert security["runAsUser"] >= 10000
            assert security["runAsGroup"] >= 10000
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert all(port["containerPort"] > 1024 and "hostPort" not in port for port in one.get("ports", ()))


def test_containers_ask_for_what_they_need_and_are_bounded(objects: list[dict[str, Any]]) -> None:
    for workload in workloads(objects):
        for one in containers(pod(workload)):
            requests, limits = one["resources"]["requests"], one["resources"]["limits"]
            assert set(requests) >= RESOURCES
            assert set(limits) >= RESOURCES
            assert all(quantity(requests[name]) <= quantity(limits[name]) for name in requests), one["name"]


def test_images_are_those_of_a_release(objects: list[dict[str, Any]]) -> None:
    local = objects[0]["metadata"]["name"] == "mlflow-live"
    for workload in workloads(objects):
        for one in containers(pod(workload)):
            assert "@sha256:" in one["image"] or one["image"].rpartition(":")[2] not in ("", "latest"), one["image"]
            if workload["metadata"]["name"] == "mlflow-live":
                assert one["imagePullPolicy"] == ("IfNotPresent" if local else "Always")


def test_labels_say_what_an_object_is(objects: list[dict[str, Any]]) -> None:
    for one in workloads(objects):
        name = one["metadata"]["name"]
        for labels in (one["metadata"]["labels"], one["spec"]["template"]["metadata"]["labels"]):
            assert labels[f"{PREFIX}name"] == labels[f"{PREFIX}instance"] == name
            assert {f"{PREFIX}component", f"{PREFIX}part-of", f"{PREFIX}managed-by"} <= set(labels)
        if one["kind"] != "Job":
            assert one["spec"]["selector"]["matchLabels"] == {f"{PREFIX}name": name, f"{PREFIX}instance": name}
    assert all(one["metadata"]["labels"][f"{PREFIX}part-of"] == "mlflow-live" for one in objects)


def test_probes_tell_the_truth(objects: list[dict[str, Any]]) -> None:
    for workload in workloads(objects):
        name = workload["metadata"]["name"]
        if name in ("mlflow-setup", "mlflow-live-smoke"):
            continue  # nobody asks them anything
        (one,) = pod(workload)["containers"]
        assert one["livenessProbe"] != one["readinessProbe"]
        for probe in (one["startupProbe"], one["livenessProbe"], one["readinessProbe"]):
            assert "host" not in probe.get("httpGet", {}) | probe.get("tcpSocket", {})
        if name == "mlflow-live":
            asked = {kind: one[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
            assert asked["startup"] == asked["liveness"] == {"path": "/livez", "port": "http"}
            assert asked["readiness"] == {"path": "/readyz", "port": "http"}


@pytest.fixture(scope="session")
def end_s() -> float:
    """What the service may need from SIGTERM on. Asked in a process of its own, whose environment it changes."""
    code = "from serving import gunicorn_conf as g; print(g.graceful_timeout + g.LEDGER_END_S + 10)"  # on_exit waits so
    return float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)


def test_a_pod_has_the_time_to_end_what_it_began(objects: list[dict[str, Any]], end_s: float) -> None:
    spec = pod(named(objects, "Deployment"))
    pause = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > pause + end_s


def test_a_roll_out_is_judged_before_deploy_sh_gives_up(objects: list[dict[str, Any]]) -> None:
    deployment = named(objects, "Deployment")["spec"]
    startup = pod(named(objects, "Deployment"))["containers"][0]["startupProbe"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert startup["periodSeconds"] * startup["failureThreshold"] < deployment["progressDeadlineSeconds"] < 300
    assert deployment["revisionHistoryLimit"] >= 2


def test_pods_spread_where_they_can_and_run_on_one_node_where_they_must(objects: list[dict[str, Any]]) -> None:
    spec = pod(named(objects, "Deployment"))
    own = named(objects, "Deployment")["spec"]["selector"]
    (term,) = spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"] == {"topologyKey": "kubernetes.io/hostname", "labelSelector": own}
    constraints = spec["topologySpreadConstraints"]
    assert {one["topologyKey"] for one in constraints} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert all(one["whenUnsatisfiable"] == "ScheduleAnyway" and one["labelSelector"] == own for one in constraints)


def test_a_priority_is_the_overlay_s_own(variant: tuple[str, ...], objects: list[dict[str, Any]]) -> None:
    classes = {one["metadata"]["name"] for one in objects if one["kind"] == "PriorityClass"}
    expected = set() if variant[0] == "local" else {f"mlflow-live-{variant[0]}"}
    assert classes == expected == {pod(named(objects, "Deployment")).get("priorityClassName")} - {None}


def test_a_drain_of_nodes_is_slow_but_never_held_up(objects: list[dict[str, Any]]) -> None:
    budget = named(objects, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert budget["selector"] == named(objects, "Deployment")["spec"]["selector"]


def test_metrics_are_announced_on_the_port_that_has_them(objects: list[dict[str, Any]]) -> None:
    template = named(objects, "Deployment")["spec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    notes = template["metadata"]["annotations"]
    assert notes["prometheus.io/scrape"] == "true"
    assert notes["prometheus.io/path"] == "/metrics"
    assert int(notes["prometheus.io/port"]) == ports["metrics"] == 9100
