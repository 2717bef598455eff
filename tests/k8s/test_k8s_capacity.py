"""What pods may take fits into their limits, and into the quota at the worst moment of a roll-out."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from rendered import named, pod, quantity, render, workloads

from serving.settings import Settings

MI = 2**20
WORKER_MI, FURTHER_MI = 130, 55  # measured: a service of one worker at its peak, and each worker more
SMOKE = {"requests.cpu": "50m", "limits.cpu": "500m", "requests.memory": "64Mi", "limits.memory": "128Mi"}


def at_rest(limits: dict[str, str]) -> int:
    """Bytes of a service with as many workers as whole CPUs."""
    return (WORKER_MI + FURTHER_MI * (int(quantity(limits["cpu"])) - 1)) * MI


def needs(spec: dict[str, Any], kind: str, resource: str) -> Decimal:
    """Of a pod: the sum of its containers, or the largest of those that prepare it."""
    together = sum((quantity(one["resources"][kind][resource]) for one in spec["containers"]), Decimal())
    return max([together, *(quantity(one["resources"][kind][resource]) for one in spec.get("initContainers", ()))])


def most(objects: list[dict[str, Any]], workload: dict[str, Any]) -> int:
    """Pods of it that may be there at once: all, as many that still drain, and those that come in addition."""
    scalers = [one["spec"]["maxReplicas"] for one in objects if one["kind"] == "HorizontalPodAutoscaler"]
    if workload["metadata"]["name"] != "mlflow-live":
        return 1  # one replica, or a Job
    replicas = scalers[0] if scalers else 3  # as many as a laptop is scaled to by hand
    surge = workload["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    return 2 * replicas + math.ceil(replicas * int(surge.rstrip("%")) / 100)


def test_the_quota_admits_a_roll_out_at_its_worst_moment(objects: list[dict[str, Any]]) -> None:
    hard = named(objects, "ResourceQuota")["spec"]["hard"]
    parts = [(most(objects, workload), pod(workload)) for workload in workloads(objects)]
    assert sum(count for count, _ in parts) + 1 <= int(hard["pods"])
    for kind in ("requests", "limits"):
        for resource in ("cpu", "memory", "ephemeral-storage"):
            wanted = sum(count * needs(spec, kind, resource) for count, spec in parts)
            wanted += quantity(SMOKE.get(f"{kind}.{resource}", "64Mi"))
            assert wanted <= quantity(hard[f"{kind}.{resource}"]), f"{kind}.{resource}"


def test_a_container_that_asks_for_nothing_is_not_refused(objects: list[dict[str, Any]]) -> None:
    """The quota names resources, so every pod must; the limit range says it for those that do not."""
    (item,) = named(objects, "LimitRange")["spec"]["limits"]
    counted = {name.partition(".")[2] for name in named(objects, "ResourceQuota")["spec"]["hard"] if "." in name}
    assert {"cpu", "memory", "ephemeral-storage"} <= counted
    for name in ("cpu", "memory", "ephemeral-storage"):
        assert quantity(item["defaultRequest"][name]) <= quantity(item["default"][name])


def test_the_cpu_limit_is_whole_because_workers_are(objects: list[dict[str, Any]]) -> None:
    limit = quantity(pod(named(objects, "Deployment"))["containers"][0]["resources"]["limits"]["cpu"])
    assert limit == int(limit) >= 1


def test_memory_holds_the_workers_and_what_lies_in_memory(objects: list[dict[str, Any]]) -> None:
    """Half of the limit stays for a larger model than iris, and for the moment when two versions are loaded."""
    spec = pod(named(objects, "Deployment"))
    limits = spec["containers"][0]["resources"]["limits"]
    volumes = [volume["emptyDir"] for volume in spec["volumes"] if volume.get("emptyDir", {}).get("medium") == "Memory"]
    in_memory = sum(quantity(volume["sizeLimit"]) for volume in volumes)
    assert at_rest(limits) + in_memory <= quantity(limits["memory"]) / 2


def test_what_lies_on_disk_is_within_the_limit_for_disks(objects: list[dict[str, Any]]) -> None:
    """The kubelet counts volumes on disk, the log and the writable layer together."""
    for workload in workloads(objects):
        volumes = [volume.get("emptyDir", {}) for volume in pod(workload)["volumes"]]
        on_disk = sum(quantity(one["sizeLimit"]) for one in volumes if one and one.get("medium") != "Memory")
        limit = needs(pod(workload), "limits", "ephemeral-storage")
        assert on_disk < limit, workload["metadata"]["name"]


def test_spool_and_ledger_fit_their_volume(objects: list[dict[str, Any]]) -> None:
    (config,) = [one for one in objects if "LEDGER_SPOOL_BYTES" in one.get("data", ())]
    settings = Settings.from_env({name: text for name, text in config["data"].items() if name.startswith("LEDGER")})
    (state,) = [one["emptyDir"] for one in pod(named(objects, "Deployment"))["volumes"] if one["name"] == "state"]
    ledger = settings.ledger_max_rows * 1024  # 0.8 KiB measured, and SQLite's log of changes
    assert settings.ledger_spool_bytes + ledger <= quantity(state["sizeLimit"]) / 2


def test_the_autoscaler_rests_when_nobody_asks() -> None:
    for environment, least, greatest in (("staging", 2, 4), ("production", 3, 10)):
        objects = render(environment)
        scaler = named(objects, "HorizontalPodAutoscaler")["spec"]
        assert (scaler["minReplicas"], scaler["maxReplicas"]) == (least, greatest)
        assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "mlflow-live"}


def test_memory_at_rest_is_below_what_the_autoscaler_aims_at(objects: list[dict[str, Any]]) -> None:
    for scaler in (one["spec"] for one in objects if one["kind"] == "HorizontalPodAutoscaler"):
        aims = {one["resource"]["name"]: one["resource"]["target"]["averageUtilization"] for one in scaler["metrics"]}
        resources = pod(named(objects, "Deployment"))["containers"][0]["resources"]
        assert set(aims) == {"cpu", "memory"}
        # Otherwise it would go to its greatest number at once, and stay.
        assert at_rest(resources["limits"]) < quantity(resources["requests"]["memory"]) * aims["memory"] / 100
        behaviour = scaler["behavior"]
        assert behaviour["scaleUp"]["stabilizationWindowSeconds"] == 0
        assert behaviour["scaleDown"]["stabilizationWindowSeconds"] >= 300


def test_a_gpu_is_asked_for_where_gpus_are() -> None:
    spec = pod(named(render("production", "gpu"), "Deployment"))
    resources = spec["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert resources["limits"]["cpu"] == "2", "what the overlay says stays"
