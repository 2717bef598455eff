"""Under the policies everybody reaches whom they need and nobody else, by Kubernetes' rules for policies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from rendered import render, workloads

Objects = list[dict[str, Any]]
ALL = ("autoscaling", "mlflow", "network-policies", "argocd")


@dataclass(frozen=True)
class Pod:
    """One end of a connection. ``namespace``: its labels; ours has only its name."""

    labels: dict[str, str]
    namespace: dict[str, str] = field(default_factory=lambda: {"kubernetes.io/metadata.name": "ours"})


@pytest.fixture(scope="module", params=["local", "production"])
def walled(request: pytest.FixtureRequest) -> Objects:
    """An overlay with everything that talks."""
    own = ("autoscaling", "network-policies") if request.param == "production" else ()
    return render(request.param, *(part for part in ALL if part not in own))


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    listed = selector.get("matchExpressions", ())
    assert all(one["operator"] == "In" for one in listed)
    return wanted.items() <= labels.items() and all(labels.get(one["key"]) in one["values"] for one in listed)


def admits(peers: list[dict[str, Any]] | None, other: Pod) -> bool:
    """Whether a rule's ``from`` or ``to`` names the pod; nobody named is everybody."""
    if not peers:
        return True
    ours = other.namespace["kubernetes.io/metadata.name"] == "ours"
    return any(
        selects(peer.get("podSelector", {}), other.labels)
        and (selects(peer["namespaceSelector"], other.namespace) if "namespaceSelector" in peer else ours)
        for peer in peers
        if "ipBlock" not in peer
    )


def passes(objects: Objects, direction: str, one: Pod, other: Pod, port: int) -> bool:
    """Whether ``one``'s policies let it talk to ``other`` in that direction."""
    if one.namespace["kubernetes.io/metadata.name"] != "ours":
        return True
    policies = [
        x["spec"] for x in objects if x["kind"] == "NetworkPolicy" and selects(x["spec"]["podSelector"], one.labels)
    ]
    mine = [spec for spec in policies if direction in spec["policyTypes"]]
    side = {"Ingress": "from", "Egress": "to"}[direction]
    rules = [rule for spec in mine for rule in spec.get(direction.lower(), ())]
    return not mine or any(
        admits(rule.get(side), other) and any(allowed["port"] == port for allowed in rule["ports"]) for rule in rules
    )


def reaches(objects: Objects, source: Pod, target: Pod, port: int) -> bool:
    return passes(objects, "Egress", source, target, port) and passes(objects, "Ingress", target, source, port)


def ours(objects: Objects, name: str) -> Pod:
    (found,) = [one for one in workloads(objects) if one["metadata"]["name"] == name]
    return Pod(found["spec"]["template"]["metadata"]["labels"])


def theirs(namespace: str, **labels: str) -> Pod:
    marks = {key.replace("_", "/", 1).replace("_", "-"): value for key, value in labels.items()}
    return Pod({"app": "theirs"}, {"kubernetes.io/metadata.name": namespace} | marks)


NEEDED = [
    ("mlflow-live", "mlflow", 5000),
    ("mlflow-live", "postgres", 5432),
    ("mlflow", "postgres", 5432),
    ("mlflow", "minio", 9000),
    ("mlflow-setup", "mlflow", 5000),
    ("mlflow-live-smoke", "mlflow-live", 5000),
    ("mlflow-live-smoke", "mlflow-live", 9100),
]


@pytest.mark.parametrize(("source", "target", "port"), NEEDED)
def test_the_parts_reach_each_other(walled: Objects, source: str, target: str, port: int) -> None:
    assert reaches(walled, ours(walled, source), ours(walled, target), port)


def test_and_nothing_more(walled: Objects) -> None:
    names = [one["metadata"]["name"] for one in workloads(walled)]
    ports = {"mlflow": [5000], "postgres": [5432], "minio": [9000, 9001], "mlflow-live": [5000, 9100]}
    found = {
        (source, target, port)
        for source in names
        for target in names
        for port in ports.get(target, [80, 5000])
        if source != target and reaches(walled, ours(walled, source), ours(walled, target), port)
    }
    assert found == set(NEEDED)


def test_names_are_resolved_by_those_who_use_names(walled: Objects) -> None:
    dns = theirs("kube-system")
    for name in ("mlflow-live", "mlflow", "mlflow-setup", "mlflow-live-smoke"):
        assert reaches(walled, ours(walled, name), dns, 53), name
    assert not reaches(walled, ours(walled, "postgres"), dns, 53)


def test_strangers_reach_nothing(walled: Objects) -> None:
    for name, port in (("mlflow-live", 5000), ("mlflow-live", 9100), ("postgres", 5432), ("mlflow", 5000)):
        assert not reaches(walled, theirs("default"), ours(walled, name), port)
        assert not reaches(walled, ours(walled, name), theirs("default"), 443)


def test_a_pod_that_nobody_thought_of_is_shut_in(walled: Objects) -> None:
    forgotten = Pod({"app": "forgotten"})
    assert not reaches(walled, forgotten, theirs("kube-system"), 53)
    assert not reaches(walled, theirs("default"), forgotten, 80)


def test_callers_reach_predictions_and_only_prometheus_metrics(walled: Objects) -> None:
    api = ours(walled, "mlflow-live")
    for caller in (theirs("ingress-nginx"), theirs("shop", **{"mlflow-live_client": "true"})):
        assert reaches(walled, caller, api, 5000)
        assert not reaches(walled, caller, api, 9100)
    for prometheus in (theirs("monitoring"), theirs("o11y", **{"mlflow-live_monitoring": "true"})):
        assert reaches(walled, prometheus, api, 9100)
        assert not reaches(walled, prometheus, api, 5000)


def test_backends_of_another_namespace_are_reached_when_it_says_so(walled: Objects) -> None:
    api = ours(walled, "mlflow-live")
    for port in (5000, 5432, 9000, 4317, 4318):
        assert reaches(walled, api, theirs("platform", **{"mlflow-live_backend": "true"}), port)
        assert not reaches(walled, api, theirs("platform"), port)


def test_setup_reaches_the_api_server(walled: Objects) -> None:
    assert reaches(walled, ours(walled, "mlflow-setup"), theirs("the nodes"), 6443)


def test_the_ingress_leads_to_predictions_and_not_to_operations() -> None:
    (ingress,) = [one["spec"] for one in render("production", "ingress") if one["kind"] == "Ingress"]
    paths = ingress["rules"][0]["http"]["paths"]
    assert {path["pathType"] for path in paths} == {"Exact"}
    assert not {path["path"] for path in paths} & {"/metrics", "/model/reload", "/"}
    assert {path["backend"]["service"]["name"] for path in paths} == {"mlflow-live"}
    assert ingress["tls"][0]["hosts"] == [ingress["rules"][0]["host"]]
