"""Every panel of the dashboards shows something: a real service, real traffic, a real Prometheus."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from harness import Running, free_port, wait_for
from monitored import JOB, Monitored, needs_prometheus
from registered import Registered

from grafana import generate

pytestmark = needs_prometheus

# As Grafana puts them in.
VARIABLES = {"$__rate_interval": "1m", "$job": JOB, "$model": ".*", "$feature": ".*"}
ROUNDS = 12


@dataclass
class Watched:
    """A service that has seen traffic, with a version that shadows another, and the Prometheus that watched it."""

    service: Running
    prometheus: Monitored
    rows: int


@pytest.fixture(scope="module")
def watched(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    registered.point(registered.add_profiled())
    registered.point("1", "challenger", route="shadow")
    home = tmp_path_factory.mktemp("watched")
    port = free_port()
    service = Running(home / "service", registered.uri, {"METRICS_PORT": str(port), "WEB_CONCURRENCY": "2"})
    prometheus = Monitored(home / "prometheus", [port])
    try:
        service.start()
        wait_for(lambda: service.call("/models/iris/compare").status == 200, 60, "nobody challenges")
        prometheus.start()
        yield Watched(service, prometheus, traffic(service))
        service.stop()
    finally:
        prometheus.stop()
        service.kill()
        registered.no_challenger()


def traffic(service: Running) -> int:
    """Predictions of all kinds with their truth, wrong input, a reload; how many rows were predicted."""
    from sklearn.datasets import load_iris

    X, y = load_iris(return_X_y=True)
    for round_ in range(ROUNDS):
        answer = service.call("/predict", {"features": X.tolist()}).json
        about = {"prediction_id": answer["prediction_id"], "label": y.tolist()}
        assert service.call("/feedback", [about]).status in (200, 202)
        assert service.call("/models/iris/predict", {"features": X[round_].tolist()}).status == 200
        assert service.call("/predict", {"features": ["x", 1, 1, 1]}).status == 400
    assert service.reload().status == 200
    return ROUNDS * (len(X) + 1)


def queries() -> Iterator[tuple[str, str]]:
    """Every query outside of Kubernetes, by where it is shown."""
    for text in generate.files().values():
        dashboard = json.loads(text)
        row = ""
        for panel in dashboard["panels"]:
            row = panel["title"] if panel["type"] == "row" else row
            if row != generate.KUBERNETES:
                for target in panel.get("targets", ()):
                    yield f"{dashboard['title']}: {row}: {panel['title']}", target["expr"]


def substituted(expr: str) -> str:
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def test_no_panel_is_empty(watched: Watched) -> None:
    asked = {(where, substituted(expr)) for where, expr in queries()}
    assert len(asked) > 70
    empty = set(asked)

    def none_is_empty() -> bool:
        nonlocal empty
        empty = {(where, expr) for where, expr in empty if not watched.prometheus.query(expr)}
        return not empty

    try:
        wait_for(none_is_empty, 180, "some panels are empty")
    except AssertionError as err:
        raise AssertionError("\n".join(f"{where}: {expr}" for where, expr in sorted(empty))) from err


def test_the_figures_are_those_of_the_traffic(watched: Watched) -> None:
    def total(promql: str) -> float:
        return sum(value for _, value in watched.prometheus.query(promql))

    wait_for(lambda: total('ml_predictions_total{outcome="ok"}') == watched.rows, 20, "not every row is counted")
    wait_for(lambda: total("max(ml_feature_bin_rows_total) > 0") > 0, 20, "no row fell into a bin")
    assert total(f'up{{job="{JOB}"}}') == 1
    assert watched.prometheus.query("ml_no_such_metric") == []
    assert total("ml_workers") == 2
    assert total('job:ml_predict_failures:ratio_rate5m{job="mlflow-live"}') == 0
    assert 0 <= total("job:ml_predict_slow:ratio_rate5m") <= 1
    ratios = watched.prometheus.query("sum by (feature) (model_feature_bin:ml_reference_bin:ratio)")
    assert len(ratios) == 4
    assert all(math.isclose(value, 1.0) for _, value in ratios)


def test_nothing_is_fired_by_a_service_that_is_well(watched: Watched) -> None:
    firing = {labels["alertname"] for labels, _ in watched.prometheus.query('ALERTS{alertstate="firing"}')}
    assert firing == {"Watchdog"}
