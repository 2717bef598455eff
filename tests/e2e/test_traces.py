"""Traces of a real service: they arrive from every worker, before its end, and nobody waits for who collects them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from collector import Collector, collecting, silent
from harness import Running, free_port, wait_for
from registered import Registered
from test_together import MODEL, ROWS, ask_all

ROW = {"features": [5.1, 3.5, 1.4, 0.2]}
ENDS_WITHIN_S = 10.0


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def traced(service: Running, collector: Collector) -> Running:
    """A service of two workers that sends to `collector`; not started yet."""
    service.settings |= {
        "WEB_CONCURRENCY": "2",
        "DRAIN_S": "0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    return service


def lines(service: Running) -> list[dict[str, Any]]:
    return [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]


def trace_id_of(response: Any) -> str:
    return str(response.headers["traceresponse"].split("-")[1])


def test_a_prediction_is_found_by_its_trace_in_collector_and_log(traced: Running, collector: Collector) -> None:
    traced.settings |= {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
    traced.start()
    response = traced.predict()
    trace_id = trace_id_of(response)
    root, call = collector.trace(trace_id, names=2)
    assert (root.name, call.name, call.parent) == ("POST /predict", "inference", root.span_id)
    assert root.attributes["url.path"] == "/predict"
    assert root.attributes["server.port"] == traced.port
    assert root.resource["service.name"] == "mlflow-live"
    assert root.resource["deployment.environment.name"] == "test"
    assert call.attributes["ml.model"] == "iris"
    assert call.attributes["ml.version"] == response.headers["X-Model-Version"]
    line = wait_for(lambda: [line for line in lines(traced) if line.get("trace_id") == trace_id], 10, "not in the log")[
        0
    ]
    assert line["request_id"] == response.headers["X-Request-Id"]


def test_what_waits_is_sent_before_a_worker_ends(traced: Running, collector: Collector) -> None:
    traced.settings |= {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
    traced.start()
    wanted = {trace_id_of(traced.predict()) for _ in range(40)}
    assert collector.spans == []
    traced.stop()
    assert wanted <= {span.trace_id for span in collector.spans}
    assert len({span.span_id for span in collector.spans}) == len(collector.spans)


@pytest.mark.parametrize("dead", ["refuses", "never answers"])
def test_a_dead_collector_costs_no_prediction_and_few_lines(traced: Running, dead: str) -> None:
    with silent() as url:
        endpoint = url if dead == "never answers" else f"http://127.0.0.1:{free_port()}"
        traced.settings |= {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2"}
        traced.start()
        assert {traced.predict().status for _ in range(200)} == {200}
        time.sleep(3.0)  # in which many batches fail
        began = time.monotonic()
        traced.stop()
        assert time.monotonic() - began < ENDS_WITHIN_S
    complaints = [line for line in lines(traced) if line["logger"].startswith("opentelemetry")]
    assert len(complaints) <= 2 * 3  # of two workers, each kind of message once
    assert dead == "never answers" or complaints
    assert "Traceback" not in traced.log


def test_callers_who_are_answered_together_see_their_wait(
    traced: Running, collector: Collector, registered: Registered
) -> None:
    registered.point(registered.add_model(MODEL, ROWS))
    traced.settings |= {"WEB_CONCURRENCY": "1", "THREADS": "64"}
    traced.start()
    answers = ask_all(traced, times=2)
    assert {answer.status for _, answer in answers} == {200}
    traces = [collector.trace(trace_id_of(answer), names=3) for _, answer in answers]
    for root, queue, call in traces:
        assert [root.name, queue.name, call.name] == ["POST /predict", "queue", "inference"]
        assert queue.parent == call.parent == root.span_id
    assert max(call.attributes["ml.batch_rows"] for _, _, call in traces) > 4


def test_a_callers_context_is_taken_and_given_on(traced: Running, collector: Collector) -> None:
    import urllib.request

    traced.start()
    trace_id, parent = os.urandom(16).hex(), os.urandom(8).hex()
    request = urllib.request.Request(f"http://127.0.0.1:{traced.port}/predict", json.dumps(ROW).encode())
    request.add_header("Content-Type", "application/json")
    request.add_header("traceparent", f"00-{trace_id}-{parent}-01")
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["traceresponse"].startswith(f"00-{trace_id}-")
    root, _ = collector.trace(trace_id, names=2)
    assert root.parent == parent
