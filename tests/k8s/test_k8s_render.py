"""What is rendered is whole: names, namespaces, images, configuration, and nothing that belongs elsewhere."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered import (
    CLUSTERED,
    COMPONENTS,
    DIGEST,
    ENVIRONMENTS,
    K8S,
    ROOT,
    containers,
    kustomize,
    missing,
    named,
    parsed,
    pod,
    render,
    text,
    workloads,
)

from serving.settings import Settings

WAVE = "argocd.argoproj.io/sync-wave"
PARTS = {"argocd", "autoscaling", "gpu", "ingress", "mlflow", "monitoring", "network-policies"}


def identity(one: dict[str, Any]) -> tuple[str, str, str]:
    return one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]


def test_the_components_are_those_that_deploy_sh_offers() -> None:
    assert set(COMPONENTS) == PARTS


def test_no_two_objects_are_the_same(objects: list[dict[str, Any]]) -> None:
    assert len({identity(one) for one in objects}) == len(objects)


def test_everything_can_be_applied_in_this_order(objects: list[dict[str, Any]]) -> None:
    """The namespace first; accounts, configuration, quota and limits before the pods that need them."""
    kinds = [one["kind"] for one in objects]
    assert kinds[0] == "Namespace"
    first_pod = min(kinds.index(one["kind"]) for one in workloads(objects))
    for kind in ("ServiceAccount", "ConfigMap", "ResourceQuota", "LimitRange", "PriorityClass", "Role", "RoleBinding"):
        assert all(at < first_pod for at, found in enumerate(kinds) if found == kind), kind


@pytest.mark.parametrize("namespace", ["", "elsewhere"])
def test_everything_is_in_the_namespace_of_the_overlay_or_in_the_one_asked_for(
    variant: tuple[str, ...], namespace: str
) -> None:
    """A component's objects too, and the subject of a binding, into which kubectl would not fill it."""
    objects = render(*variant, namespace=namespace)
    expected = namespace or {"local": "mlflow-live"}.get(variant[0], f"mlflow-live-{variant[0]}")
    assert named(objects, "Namespace", expected)
    assert {one["metadata"].get("namespace") for one in objects if one["kind"] not in CLUSTERED} == {expected}
    bound = [subject["namespace"] for one in objects for subject in one.get("subjects", ())]
    assert set(bound) <= {expected}


def test_an_overlay_may_list_any_component(tmp_path: Path) -> None:
    """Which then sees the objects before they have a namespace."""
    copy = tmp_path / "k8s"
    shutil.copytree(K8S, copy)
    for environment in ENVIRONMENTS:
        file = copy / f"overlays/{environment}/kustomization.yaml"
        given = yaml.safe_load(file.read_text())
        given["components"] = given.get("components", []) + [f"../../components/{one}" for one in missing(environment)]
        file.write_text(yaml.safe_dump(given))
        here = parsed(kustomize(file.parent))
        there = render(environment, *missing(environment))
        assert {identity(one) for one in here} == {identity(one) for one in there}


def test_every_image_of_ours_is_replaced(objects: list[dict[str, Any]]) -> None:
    images = {one["image"] for workload in workloads(objects) for one in containers(pod(workload))}
    ours = {image for image in images if "mlflow-live" in image}
    assert ours <= {f"registry:5000/mlflow-live@{DIGEST}", "registry:5000/mlflow-live-mlflow:0123abc"}
    compose = (ROOT / "docker-compose.yml").read_text()
    assert all(f":-{image}}}" in compose for image in images - ours), "of others: those of docker-compose.yml"


def test_nothing_names_replicas_beside_an_autoscaler(objects: list[dict[str, Any]]) -> None:
    scaled = {one["spec"]["scaleTargetRef"]["name"] for one in objects if one["kind"] == "HorizontalPodAutoscaler"}
    for workload in workloads(objects):
        if workload["metadata"]["name"] in scaled | {"mlflow-live"}:
            assert "replicas" not in workload["spec"]


def test_no_secret_is_in_what_is_rendered(variant: tuple[str, ...], objects: list[dict[str, Any]]) -> None:
    assert "Secret" not in {one["kind"] for one in objects}
    for workload in workloads(objects):
        for one in containers(pod(workload)):
            assert not any("secretRef" in source for source in one.get("envFrom", ()))
            for variable in one.get("env", ()):
                assert "secretKeyRef" not in variable.get("valueFrom", {}), variable
                if re.search("PASSWORD|TOKEN|SECRET|DATABASE_URL", variable["name"]):
                    assert variable["name"].endswith("_FILE"), variable
    assert not re.search(r"://[^/\s{}]+:[^/\s{}]+@", text(*variant)), "an address with a password in it"


def test_references_lead_somewhere(objects: list[dict[str, Any]]) -> None:
    """To objects that are rendered, to Secrets that setup or the operator makes, or to what every namespace has."""
    there = {(one["kind"], one["metadata"]["name"]) for one in objects} | {("ConfigMap", "kube-root-ca.crt")}
    for workload in workloads(objects):
        spec = pod(workload)
        assert ("ServiceAccount", spec["serviceAccountName"]) in there
        if "priorityClassName" in spec:
            assert ("PriorityClass", spec["priorityClassName"]) in there
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())}
        sources = [
            source for volume in volumes.values() for source in volume.get("projected", {}).get("sources", [volume])
        ]
        maps = [source["configMap"]["name"] for source in sources if "configMap" in source]
        for one in containers(spec):
            maps += [source["configMapRef"]["name"] for source in one.get("envFrom", ())]
            assert {mount["name"] for mount in one.get("volumeMounts", ())} <= set(volumes) | claims
        assert {("ConfigMap", name) for name in maps} <= there
    for one in objects:
        if one["kind"] == "Service":
            selector = one["spec"]["selector"]
            (behind,) = [
                w for w in workloads(objects) if selector.items() <= w["spec"]["template"]["metadata"]["labels"].items()
            ]
            open_ports = {port["name"] for port in pod(behind)["containers"][0]["ports"]}
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= open_ports


# --- configuration ---------------------------------------------------------------------------------------------------


def test_the_service_takes_the_settings_of_every_overlay(objects: list[dict[str, Any]], tmp_path: Path) -> None:
    """As the container would read them; a misspelt name would stop its start."""
    (api,) = pod(named(objects, "Deployment"))["containers"]
    (config,) = [one for one in objects if one["metadata"]["name"] == api["envFrom"][0]["configMapRef"]["name"]]
    given = config["data"] | {variable["name"]: variable["value"] for variable in api.get("env", ())}
    if "DATABASE_URL_FILE" in given:
        given["DATABASE_URL_FILE"] = str(tmp_path / "database-url")
        Path(given["DATABASE_URL_FILE"]).write_text("postgresql://ledger@postgres/ledger")
    settings = Settings.from_env(given)
    mounts = {mount["mountPath"] for mount in api["volumeMounts"]}
    assert settings.prometheus_multiproc_dir in mounts
    assert not settings.database_url or settings.ledger_sample


def test_each_line_that_waits_to_be_taken_in_is_a_setting() -> None:
    for environment in ENVIRONMENTS:
        lines = (K8S / f"overlays/{environment}/settings.env").read_text().splitlines()
        waiting = [match[1] for line in lines if (match := re.match(r"# ([A-Z_]+)=\S", line))]
        ours = [name.removesuffix("_FILE").lower() for name in waiting if not name.startswith("AWS_")]
        assert ours, environment
        assert all(hasattr(Settings(), name) for name in ours), environment
        assert all(not line or line.startswith("#") or "=" in line for line in lines), (
            "without = kubectl's own variable"
        )


def test_a_changed_setting_changes_the_name_of_the_configuration(tmp_path: Path) -> None:
    """So pods roll, and `rollout undo` brings the old settings back."""
    copy = tmp_path / "k8s"
    shutil.copytree(K8S, copy)
    before = parsed(kustomize(copy / "overlays/local"))
    with (copy / "overlays/local/settings.env").open("a") as settings:
        settings.write("POLL_INTERVAL_S=7\n")
    after = parsed(kustomize(copy / "overlays/local"))
    (old,), (new,) = ([one for one in some if one["kind"] == "ConfigMap"] for some in (before, after))
    assert new["data"] == old["data"] | {"POLL_INTERVAL_S": "7"}
    assert new["metadata"]["name"] != old["metadata"]["name"]
    used = pod(named(after, "Deployment"))["containers"][0]["envFrom"]
    assert used == [{"configMapRef": {"name": new["metadata"]["name"]}}]


def test_an_overlay_may_be_applied_as_it_is() -> None:
    """kubectl apply -k k8s/overlays/local, with an image called mlflow-live in the node."""
    for environment in ENVIRONMENTS:
        objects = parsed(kustomize(K8S / "overlays" / environment))
        assert pod(named(objects, "Deployment"))["containers"][0]["image"] == "mlflow-live"


# --- what stands elsewhere too ---------------------------------------------------------------------------------------


def test_the_rules_of_the_operator_are_those_of_the_rules_file() -> None:
    spec = importlib.util.spec_from_file_location("prometheus_rule", K8S / "prometheus_rule.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rules = (ROOT / "ml_rules.yml").read_text()
    assert module.TARGET.read_text() == module.made(rules), "run: python k8s/prometheus_rule.py"
    assert yaml.safe_load(module.made(rules))["spec"] == yaml.safe_load(rules)


def test_the_databases_are_those_of_the_compose_stack() -> None:
    ours = K8S / "components/mlflow/postgres/databases.sql"
    assert ours.read_text() == (ROOT / "docker/postgres.sql").read_text(), f"run: cp docker/postgres.sql {ours}"


def test_an_application_leads_to_its_overlay_and_components() -> None:
    for environment in ("staging", "production"):
        application = yaml.safe_load((K8S / f"components/argocd/application-{environment}.yaml").read_text())
        source = application["spec"]["source"]
        assert named(render(environment), "Namespace", application["spec"]["destination"]["namespace"])
        assert all((ROOT / source["path"] / name).resolve().is_dir() for name in source["kustomize"]["components"])
        assert source["kustomize"]["images"][0].startswith("mlflow-live=")


def test_argo_cd_has_an_order_and_a_smoke_test() -> None:
    objects = render("production", "argocd")
    waves = {one["kind"]: int(one["metadata"].get("annotations", {}).get(WAVE, 0)) for one in objects}
    assert waves["Namespace"] < waves["ConfigMap"] < waves["Deployment"] < waves["HorizontalPodAutoscaler"]
    job = named(objects, "Job", "mlflow-live-smoke")
    assert job["metadata"]["annotations"]["argocd.argoproj.io/hook"] == "PostSync"
    assert pod(job)["containers"][0]["image"] == pod(named(objects, "Deployment"))["containers"][0]["image"]
