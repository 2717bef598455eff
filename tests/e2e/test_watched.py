"""A service that is watched: by scrapes that always come through, and by counts that survive those who counted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from harness import Running, call, free_port, wait_for
from prometheus_client.parser import text_string_to_metric_families
from registered import Registered


def scraped(port: int) -> dict[str, float]:
    """Each metric's sum over its series."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(call(port, "/metrics", timeout_s=10).text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def test_the_master_answers_scrapes_while_no_worker_does(service: Running) -> None:
    port = free_port()
    service.settings.update(METRICS_PORT=str(port), WEB_CONCURRENCY="2")
    service.start()
    for _ in range(20):
        assert service.predict().status == 200
    frozen = service.worker_pids()
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        seen = scraped(port)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    assert seen["ml_predictions_total"] == 20
    assert seen["process_resident_memory_bytes"] > 50_000_000
    assert seen["ml_workers"] == seen["ml_model_workers"] == 2
    assert scraped(service.port)["ml_predictions_total"] == 20
    service.stop()
    wait_for(lambda: _is_free(port), 5, "the port of the metrics is still in use")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing(registered: Registered, service: Running) -> None:
    """With a profile, a prediction, a refusal and a label: whatever has a series by then."""
    registered.point(registered.add_profiled())
    service.settings["WEB_CONCURRENCY"] = "2"
    service.start()
    answered = service.predict().json
    assert service.call("/predict", {"features": ["x", 1, 1, 1]}).status == 400
    assert service.call("/feedback", {"prediction_id": answered["prediction_id"], "label": "setosa"}).status in (
        200,
        202,
    )
    written = service.call("/metrics").text
    assert "ml_reference_bin_ratio{" in written
    found = subprocess.run(["promtool", "check", "metrics"], input=written, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_the_dead_are_folded_and_stay_counted(service: Running) -> None:
    service.settings["WEB_CONCURRENCY"] = "2"
    service.start()
    metrics_dir = service.folder / "state" / "metrics"
    for round_ in range(1, 4):
        for _ in range(20):
            assert service.predict().status == 200
        victim = service.worker_pids()[-1]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda gone=victim: not list(metrics_dir.glob(f"*_{gone}.db")), 10, "files of the dead are left")
        wait_for(service.all_ready, 30, "no new worker")
        assert scraped(service.port)["ml_predictions_total"] == 20 * round_
    few = 2 + 1 + 1  # the workers', the agent's, the dead's; an agent ends a moment after its worker
    wait_for(lambda: len(list(metrics_dir.glob("counter_*.db"))) <= few, 10, "files of dead agents are left")
    agent = service.agent_pids()[0]
    os.kill(agent, signal.SIGKILL)
    wait_for(lambda: not list(metrics_dir.glob(f"*_{agent}.db")), 10, "files of the dead agent are left")


def test_a_port_that_is_in_use_costs_only_that_port(service: Running) -> None:
    service.settings.update(METRICS_PORT=str(service.port), WEB_CONCURRENCY="1")
    service.start()
    assert service.predict().status == 200
    assert "METRICS_PORT" in service.log


def test_requests_under_way_are_seen(service: Running, tmp_path: Path) -> None:
    service.settings["WEB_CONCURRENCY"] = "1"
    service.start()
    assert scraped(service.port)["ml_in_flight_requests"] == 0
    call(service.port, "/predict", {"features": ["x", 1, 1, 1]})
    call(service.port, "/nothing")
    assert scraped(service.port)["ml_in_flight_requests"] == 0


def _is_free(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    return True
