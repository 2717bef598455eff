"""prometheus.yml: promtool likes it, with and without Kubernetes, and the rules find what it scrapes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.settings import ROOT

CONFIG = (ROOT / "prometheus.yml").read_text(encoding="utf-8")
RULES = (ROOT / "ml_rules.yml").read_text(encoding="utf-8")
IN_KUBERNETES = re.sub(r"^  #k8s ", "  ", CONFIG, flags=re.MULTILINE)
DISCOVERY = "    kubernetes_sd_configs:\n      - role: pod\n"

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def check(config: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What promtool says of ``config`` beside the rules."""
    (folder / "prometheus.yml").write_text(config)
    (folder / "ml_rules.yml").write_text(RULES)
    command = ["promtool", "check", "config", str(folder / "prometheus.yml")]
    return subprocess.run(command, capture_output=True, text=True)


def jobs(config: str) -> dict[str, dict[str, Any]]:
    return {job["job_name"]: job for job in yaml.safe_load(config)["scrape_configs"]}


@promtool
def test_the_configuration_is_valid(tmp_path: Path) -> None:
    checked = check(CONFIG, tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "rules found" in checked.stdout


@promtool
def test_it_is_valid_in_kubernetes_too(tmp_path: Path) -> None:
    assert IN_KUBERNETES.count(DISCOVERY) == 1
    # Debian's promtool is built without Kubernetes, so its discovery alone is left out.
    checked = check(IN_KUBERNETES.replace(DISCOVERY, ""), tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@promtool
def test_a_malformed_configuration_is_found(tmp_path: Path) -> None:
    assert check(CONFIG.replace("scrape_interval: 15s", "scrape_interval: soon"), tmp_path).returncode != 0


def test_the_service_mlflow_and_prometheus_are_scraped() -> None:
    assert set(jobs(CONFIG)) == {"prometheus", "mlflow-live", "mlflow"}
    assert set(jobs(IN_KUBERNETES)) == {*jobs(CONFIG), "pods"}


@pytest.mark.parametrize(
    ("job", "matches"),
    [("mlflow-live", True), ("production/mlflow-live", True), ("mlflow", False), ("prometheus", False)],
)
def test_the_rules_look_for_the_service_s_job(job: str, matches: bool) -> None:
    [matcher] = set(re.findall(r'up\{job=~"([^"]+)"\}', RULES))
    assert bool(re.fullmatch(matcher, job)) is matches
    assert "mlflow-live" in jobs(CONFIG)


def test_pods_are_found_by_their_annotations() -> None:
    """Each step of the relabelling, applied to a pod as Prometheus does."""
    labels = {
        "__meta_kubernetes_namespace": "production",
        "__meta_kubernetes_pod_name": "mlflow-live-7d4b-x2x",
        "__meta_kubernetes_pod_phase": "Running",
        "__meta_kubernetes_pod_ip": "10.0.0.7",
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": "mlflow-live",
        "__meta_kubernetes_pod_annotation_prometheus_io_scrape": "true",
        "__meta_kubernetes_pod_annotation_prometheus_io_port": "9100",
        "__meta_kubernetes_pod_annotation_prometheus_io_path": "/metrics",
        "__address__": "10.0.0.7:5000",
    }
    steps = jobs(IN_KUBERNETES)["pods"]["relabel_configs"]
    target = relabelled(labels, steps)
    assert target is not None
    assert (target["__address__"], target["__metrics_path__"]) == ("10.0.0.7:9100", "/metrics")
    assert (target["job"], target["pod"]) == ("production/mlflow-live", "mlflow-live-7d4b-x2x")
    assert relabelled({**labels, "__meta_kubernetes_pod_annotation_prometheus_io_scrape": "false"}, steps) is None
    assert relabelled({**labels, "__meta_kubernetes_pod_phase": "Succeeded"}, steps) is None


def relabelled(labels: dict[str, str], steps: list[dict[str, Any]]) -> dict[str, str] | None:
    """``labels`` after the steps keep, drop and replace; None where the target is dropped."""
    labels = dict(labels)
    for step in steps:
        text = step.get("separator", ";").join(labels.get(name, "") for name in step["source_labels"])
        found = re.fullmatch(step.get("regex", "(.*)"), text)
        action = step.get("action", "replace")
        if (action == "keep" and not found) or (action == "drop" and found):
            return None
        if action == "replace" and found:
            labels[step["target_label"]] = found.expand(step.get("replacement", "$1").replace("$", "\\"))
    return labels
