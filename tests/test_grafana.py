"""Grafana's dashboards: the files are what the code makes, and every panel can show something."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from flask.testing import FlaskClient
from promql import exposed, metrics_in

from grafana import generate, panels
from serving.settings import ROOT

HOME = ROOT / "grafana"
FILES = generate.files()
DASHBOARDS = {name: json.loads(text) for name, text in FILES.items()}
RULES = yaml.safe_load((ROOT / "ml_rules.yml").read_text(encoding="utf-8"))

# Not ours: Prometheus's own, those of every process that tells, kube-state-metrics' and cAdvisor's.
OTHERS = {"up", "ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes"}
KUBERNETES = {
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_usage_seconds_total",
    "container_memory_working_set_bytes",
    "kube_horizontalpodautoscaler_spec_max_replicas",
    "kube_horizontalpodautoscaler_spec_min_replicas",
    "kube_horizontalpodautoscaler_status_current_replicas",
    "kube_horizontalpodautoscaler_status_desired_replicas",
    "kube_pod_container_resource_limits",
    "kube_pod_container_status_last_terminated_reason",
    "kube_pod_container_status_restarts_total",
    "kube_pod_status_ready",
}
# Panels that need no plugin; none of those that were written in Angular (graph, singlestat, table-old).
KINDS = {"bargauge", "heatmap", "row", "stat", "table", "timeseries"}


def panels_of(dashboard: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every panel with the title of its row."""
    row = ""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            yield row, panel


PANELS = [
    pytest.param(row, panel, id=f"{name.removesuffix('.json')}: {panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for row, panel in panels_of(dashboard)
]


def test_the_committed_files_are_current() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in (HOME / "dashboards").iterdir()}
    assert written == FILES, "run make dashboards"


def test_every_metric_of_a_panel_exists(client: FlaskClient) -> None:
    recorded = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
    ours = exposed(client.get("/metrics").text) | recorded | OTHERS
    for dashboard in DASHBOARDS.values():
        for row, panel in panels_of(dashboard):
            known = KUBERNETES if row == generate.KUBERNETES else ours
            used = set().union(*(metrics_in(target["expr"]) for target in panel["targets"]))
            assert used, panel["title"]
            assert used - known == set(), panel["title"]


def test_no_metric_is_listed_in_vain() -> None:
    exprs = [
        target["expr"]
        for dashboard in DASHBOARDS.values()
        for _, panel in panels_of(dashboard)
        for target in panel["targets"]
    ]
    assert (OTHERS | KUBERNETES) - set().union(*map(metrics_in, exprs)) == set()


@pytest.mark.parametrize(("row", "panel"), PANELS)
def test_a_panel_has_what_it_needs(row: str, panel: dict[str, Any]) -> None:
    assert row
    assert panel["type"] in KINDS
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == panels.DATASOURCE
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    for target in panel["targets"]:
        assert target["datasource"] == panels.DATASOURCE
        assert target["instant"] is not target["range"]
        assert "[" not in target["expr"] or "[$__rate_interval]" in target["expr"], "a fixed window misses or blurs"


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
def test_ids_differ_and_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    squares: Counter[tuple[int, int]] = Counter()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= panels.COLUMNS
        squares.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
    assert set(squares.values()) == {1}


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
def test_every_variable_is_defined_and_used(dashboard: dict[str, Any]) -> None:
    text = json.dumps(dashboard["panels"]) + json.dumps([one["query"] for one in dashboard["templating"]["list"]])
    defined = {one["name"] for one in dashboard["templating"]["list"]}
    assert {name for name in defined if f"${name}" not in text} == set()
    assert {name for name in ("job", "model", "feature", "namespace", "app") if f"${name}" in text} == defined


def test_dashboards_have_uids_of_their_own() -> None:
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) == 3


def test_the_data_source_is_the_one_that_panels_name() -> None:
    [source] = yaml.safe_load((HOME / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert {"type": source["type"], "uid": source["uid"]} == panels.DATASOURCE
    scraped = yaml.safe_load((ROOT / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped


def test_nobody_changes_a_dashboard_in_grafana() -> None:
    [provider] = yaml.safe_load((HOME / "provisioning/dashboards/mlflow-live.yml").read_text())["providers"]
    assert provider["allowUiUpdates"] is False
    assert not any(dashboard["editable"] for dashboard in DASHBOARDS.values())
