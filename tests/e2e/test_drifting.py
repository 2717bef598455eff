"""Traffic that moves: the service itself and a real Prometheus say the same of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Running, free_port, wait_for
from monitored import Monitored, needs_prometheus
from registered import Registered

ROWS, A_REQUEST = 10_000, 100
SHIFTED = "petal width (cm)"

pytestmark = needs_prometheus


@pytest.fixture
def profiled(registered: Registered, service: Running) -> Iterator[Running]:
    """A service on a version with a profile, and the port for Prometheus."""
    registered.point(registered.add_profiled())
    service.settings.update(WEB_CONCURRENCY="2", METRICS_PORT=str(free_port()))
    yield service.start()
    service.stop()


@pytest.mark.parametrize("shift", [0.0, 1.0], ids=["unshifted", "shifted"])
def test_the_service_and_prometheus_say_the_same(profiled: Running, tmp_path: Path, shift: float) -> None:
    from sklearn.datasets import load_iris

    flowers = load_iris(as_frame=True).data
    rows = flowers.sample(ROWS, replace=True, random_state=3)
    rows[SHIFTED] += shift * flowers[SHIFTED].std()
    prometheus = Monitored(tmp_path / "prometheus", [int(profiled.settings["METRICS_PORT"])]).start()
    try:
        time.sleep(1.5)  # so that the counters were seen at zero
        for start in range(0, ROWS, A_REQUEST):
            assert (
                profiled.call("/predict", {"features": rows.iloc[start : start + A_REQUEST].to_numpy().tolist()}).status
                == 200
            )
        said = wait_for(lambda: _all_counted(profiled), 10, "not all rows are counted")
        seen = wait_for(lambda: _psi(prometheus), 20, "Prometheus has not seen all rows")
        thresholds = {series["feature"]: value for series, value in prometheus.query("ml_drift_threshold")}
    finally:
        prometheus.stop()
    scores = {line["name"]: line["score"] for line in said["features"]}
    print("score by", {name: (scores[name], seen[name]) for name in scores})
    assert seen == pytest.approx(scores, abs=0.01)
    drifted = [name for name in seen if seen[name] > thresholds[name]]
    assert drifted == said["drifted"] == ([SHIFTED] if shift else [])
    assert {line["rows"] for line in said["features"]} == {ROWS}


def _all_counted(service: Running) -> Any:
    said = service.call("/model/drift").json
    return said if said["features"][0]["rows"] == ROWS else None


def _psi(prometheus: Monitored) -> dict[str, float] | None:
    """The recorded scores, once every row was scraped."""
    rows = prometheus.query("sum by (feature) (ml_feature_bin_rows_total)")
    if {value for _, value in rows} != {ROWS}:
        return None
    time.sleep(3)  # rules are evaluated one group after the other
    return {series["feature"]: value for series, value in prometheus.query("model_feature:ml_feature_bin_rows:psi1h")}
