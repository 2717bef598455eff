"""ml_rules.yml: promtool likes it, every alert was seen silent and firing, and what it names exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask.testing import FlaskClient
from promql import exposed, metrics_in

from serving.drift import MIN_ROWS
from serving.metrics import LOAD_FAILURES, LOST, REJECTED, SECONDS
from serving.settings import ROOT, Settings

RULES = ROOT / "ml_rules.yml"
RUNBOOK = ROOT / "docs" / "TROUBLESHOOTING.md"
CASES = sorted((ROOT / "tests" / "rules").glob("*.yml"))
SEVERITIES = {"page", "ticket", "none"}
NEVER_SILENT = {"Watchdog"}

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def rules_in(path: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


RECORDED = [rule for rule in rules_in(RULES) if "record" in rule]
ALERTS = [rule for rule in rules_in(RULES) if "alert" in rule]


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)


# --- promtool --------------------------------------------------------------------------------------------------------


@promtool
def test_the_rules_are_valid_and_lint_finds_nothing() -> None:
    checked = check("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@promtool
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_the_rules_do_what_their_cases_say(cases: Path) -> None:
    tested = check("test", "rules", cases)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_groups_are_evaluated_in_one_order(cases: Path) -> None:
    groups = [group["name"] for group in yaml.safe_load(RULES.read_text())["groups"]]
    assert yaml.safe_load(cases.read_text())["group_eval_order"] == groups


@promtool
def test_lint_finds_a_rule_that_is_there_twice(tmp_path: Path) -> None:
    rule = {"record": "job:x:sum", "expr": "sum by (job) (x)"}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "a", "rules": [rule, rule]}]}))
    assert check("check", "rules", "--lint=all", "--lint-fatal", tmp_path / "rules.yml").returncode != 0


@promtool
def test_a_wrong_threshold_fails_a_case(tmp_path: Path) -> None:
    changed = RULES.read_text().replace("ratio_rate5m > 0.05", "ratio_rate5m > 0.5")
    (tmp_path / "tests" / "rules").mkdir(parents=True)
    (tmp_path / "ml_rules.yml").write_text(changed)
    cases = shutil.copy(ROOT / "tests" / "rules" / "service.yml", tmp_path / "tests" / "rules")
    failed = check("test", "rules", cases)
    assert failed.returncode != 0
    assert "ErrorRatio" in failed.stdout + failed.stderr


# --- cases -----------------------------------------------------------------------------------------------------------


def seen(alert: dict[str, Any], files: list[Path]) -> set[bool]:
    """Whether some case saw ``alert`` fire (True), and some other saw it silent (False)."""
    found = set()
    for path in files:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for one in case.get("alert_rule_test", ()):
                if one["alertname"] == alert["alert"]:
                    found.add(any(alert["labels"].items() <= exp["exp_labels"].items() for exp in one["exp_alerts"]))
    return found


def named(alert: dict[str, Any]) -> str:
    return " ".join([alert["alert"], alert["labels"].get("window", "")]).strip()


@pytest.mark.parametrize("alert", ALERTS, ids=named)
def test_every_alert_was_seen_firing_and_silent(alert: dict[str, Any]) -> None:
    assert seen(alert, CASES) == ({True} if alert["alert"] in NEVER_SILENT else {True, False})


def test_an_alert_without_cases_is_found(tmp_path: Path) -> None:
    silent = {"alertname": "A", "eval_time": "1m", "exp_alerts": []}
    firing = {**silent, "exp_alerts": [{"exp_labels": {"severity": "page", "window": "1h"}}]}
    cases = tmp_path / "cases.yml"
    cases.write_text(yaml.safe_dump({"tests": [{"alert_rule_test": [silent, firing]}]}))
    assert seen({"alert": "A", "labels": {"severity": "page", "window": "1h"}}, [cases]) == {True, False}
    assert seen({"alert": "A", "labels": {"severity": "page", "window": "6h"}}, [cases]) == {False}
    assert seen({"alert": "B", "labels": {}}, [cases]) == set()


# --- what is said ----------------------------------------------------------------------------------------------------


def slugs(markdown: str) -> Iterator[str]:
    """The anchors that GitHub makes of headings: in lower case, without punctuation, repeated ones numbered."""
    counted: dict[str, int] = {}
    without_code = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#{1,6} +(.+?) *$", without_code, flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        counted[slug] = counted.get(slug, -1) + 1
        yield f"{slug}-{counted[slug]}" if counted[slug] else slug


def test_anchors_are_those_of_github() -> None:
    text = "# `POST /feedback`: what?\n```\n# no heading\n```\n## Port 5000 is in use\n## A_b\n### A_b\n"
    assert list(slugs(text)) == ["post-feedback-what", "port-5000-is-in-use", "a_b", "a_b-1"]


@pytest.mark.parametrize("alert", ALERTS, ids=named)
def test_an_alert_says_what_it_must(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in SEVERITIES
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert len(alert["annotations"]["summary"]) <= 60
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert path.endswith("docs/TROUBLESHOOTING.md")
    assert anchor == alert["alert"].lower()
    assert anchor in slugs(RUNBOOK.read_text(encoding="utf-8"))


def test_the_runbook_names_what_exists(client: FlaskClient) -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) - set(slugs(text)) == set()
    assert [path for path in re.findall(r"\]\((\.\./[\w./]+)\)", text) if not (RUNBOOK.parent / path).exists()] == []
    known = exposed(client.get("/metrics").text)
    begun = re.findall(r"(?<![:\w])ml_\w+(?![\w:.])", text)  # a family, one of its series, or what several begin with
    assert [name for name in begun if not any(one.startswith(name) for one in known)] == []
    assert set(re.findall(r"\b\w+:ml_\w+:\w+", text)) - {rule["record"] for rule in RECORDED} == set()
    settings = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)\b", text))
    assert len(settings) >= 8
    assert settings - {setting.upper() for setting in Settings.__dataclass_fields__} == set()


def test_the_runbook_has_every_reason_for_a_refusal() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    assert [reason for reason in LOAD_FAILURES if f"`{reason}`" not in text] == []
    assert [reason for reason in REJECTED if f"`{reason}`" not in text] == []
    assert [reason for reason in LOST if f"`{reason}`" not in text] == []


def test_a_number_of_an_alert_is_formatted() -> None:
    bare = [alert["alert"] for alert in ALERTS if "{{ $value }}" in alert["annotations"]["description"]]
    assert bare == ["TwoVersionsServing"]  # a whole number


def test_recorded_names_have_level_metric_and_operation() -> None:
    names = [rule["record"] for rule in RECORDED]
    assert [name for name in names if not re.fullmatch(r"[a-z_]+:ml_\w+:[a-z_0-9]+", name)] == []
    assert len(set(names)) == len(names)


# --- what is named ---------------------------------------------------------------------------------------------------


def test_every_metric_of_the_rules_exists(client: FlaskClient) -> None:
    known = exposed(client.get("/metrics").text) | {rule["record"] for rule in RECORDED} | {"up"}
    used = set().union(*(metrics_in(rule["expr"]) for rule in RECORDED + ALERTS))
    assert len(used) > 50
    assert used - known == set()


def test_an_unknown_metric_is_found() -> None:
    scrape = '# TYPE ml_a counter\nml_a_total{x="ml_c"} 1\n# TYPE ml_b histogram\n'
    assert exposed(scrape) == {"ml_a_total", "ml_b_bucket", "ml_b_count", "ml_b_sum"}
    expr = (
        'sum by (model) (rate(ml_a_total{x="ml_c"}[5m])) / on (model) group_left () job:ml_x:rate5m > 0 or ml_d * 1.5'
    )
    assert metrics_in(expr) == {"ml_a_total", "job:ml_x:rate5m", "ml_d"}


def test_every_recorded_series_is_used() -> None:
    """By another rule or by a panel; what nobody looks at is not computed."""
    used = set().union(*(metrics_in(rule["expr"]) for rule in RECORDED + ALERTS))
    for dashboard in (ROOT / "grafana" / "dashboards").glob("*.json"):
        for panel in json.loads(dashboard.read_text(encoding="utf-8"))["panels"]:
            used = used.union(*(metrics_in(target["expr"]) for target in panel.get("targets", ())))
    assert {rule["record"] for rule in RECORDED} - used == set()


def test_numbers_are_those_of_the_code() -> None:
    text = RULES.read_text()
    assert set(re.findall(r"_rows:increase1[hd] >= (\d+)", text)) == {str(MIN_ROWS)}
    assert {float(edge) for edge in re.findall(r'le="([\d.]+)"', text)} <= set(SECONDS)


def test_every_window_is_computed_alike() -> None:
    """The same expression but for the window, so that no copy was forgotten in a change."""
    shapes: dict[str, set[str]] = {}
    for rule in RECORDED:
        if ending := re.search(r"(rate|increase|ratio|psi|change)(\d+[mhd])$", rule["record"]):
            window = ending[2]
            shape = re.sub(rf"{window}\b", "W", rule["expr"])
            shapes.setdefault(rule["record"].removesuffix(window), set()).add(shape)
    assert len(shapes) >= 14
    assert {name: found for name, found in shapes.items() if len(found) > 1} == {}


def test_rules_and_dashboards_count_the_same_routes() -> None:
    made = (ROOT / "grafana" / "generate.py").read_text(encoding="utf-8")
    [matcher] = set(re.findall(r'route=~"([^"]+)"', RULES.read_text() + made))
    predicting = ["/predict", "/models/<model>/predict", "/models/<model>/versions/<version>/predict", "/invocations"]
    predicting += ["/models/<model>/invocations", "/v2/models/<model>/infer", "/v1/embeddings"]
    others = ["/metrics", "/livez", "/feedback", "/model/reload", "/model/info", "/v2/models/<model>", "unmatched"]
    assert all(re.fullmatch(matcher, route) for route in predicting)
    assert not any(re.fullmatch(matcher, route) for route in others)
