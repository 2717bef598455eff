"""Traces: when there are any, what a span says, and that nobody has to wait for whoever collects them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from collector import Collector, Span, collecting, silent
from flask import Flask
from flask.testing import FlaskClient
from served import environment, free_port, running, settings_of

from serving import tracing
from serving.batching import Batcher
from serving.batching.cost import Cost
from serving.errors import DeadlineExceeded, ModelFailed
from serving.settings import ROOT
from serving.telemetry import JsonFormatter
from serving.tensors import Batch, Prediction
from serving.tracing.spans import Marks, Tracer, exporter

ROW = b'{"features": [5.1, 3.5, 1.4, 0.2]}'
ROWS = b'{"features": [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]}'
NOWHERE = b'{"features": ["Ulm", 2, -1.0, false]}'
LANE, FLASK = "application/json", "application/own+json"  # the second is not for the lane
PARENT = "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is set where the tests run."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


# --- when ------------------------------------------------------------------------------------------------------------

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, []),
        ({"OTEL_SERVICE_NAME": "flowers", "OTEL_TRACES_SAMPLER": "always_on"}, []),
        (ENDPOINT, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector/v1/traces"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": " Console "}, ["console"]),
        ({"OTEL_TRACES_EXPORTER": "otlp,console"}, ["console", "otlp"]),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, []),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "console"}, ["console"]),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "True"}, []),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "false"}, ["otlp"]),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ["otlp"]),
        (
            {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            ["otlp"],
        ),
    ],
)
def test_the_standard_variables_say_whether_and_where(
    variables: dict[str, str], expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert tracing.exporters(variables) == expected
    assert caplog.records == []


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "grpc"),
    ],
)
def test_what_there_is_not_is_said_and_left(
    variables: dict[str, str], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert tracing.exporters(variables) == []
    assert named in caplog.text


@pytest.mark.parametrize(("name", "value"), [("OTEL_BSP_MAX_QUEUE_SIZE", "1"), ("OTEL_BSP_SCHEDULE_DELAY", "0")])
def test_variables_that_cannot_be_read_cost_the_traces_not_the_service(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv(name, value)
    assert tracing.start(Flask("some")) is None
    assert "there will be no traces" in caplog.text


OFF = """
import sys, time
from app import create_app
client = create_app().test_client()
while client.get("/readyz").status_code != 200: time.sleep(0.02)
for kind in ("application/json", "application/own+json"):
    assert client.post("/predict", data=sys.argv[1], content_type=kind).status_code == 200
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
client.application.extensions["service"].close()
"""


@pytest.mark.parametrize("variables", [{}, {**ENDPOINT, "OTEL_SDK_DISABLED": "true"}])
def test_without_traces_nothing_of_opentelemetry_is_imported(
    prepared: Path, tmp_path: Path, variables: dict[str, str]
) -> None:
    shutil.copytree(prepared / "state", tmp_path / "state")
    settings = settings_of(tmp_path, model_dir=prepared / "models", log_level="error")
    command = [sys.executable, "-c", OFF, ROW.decode()]
    environ = {**environment(settings), **variables}
    done = subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]"


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(prepared: Path, tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Flask]:
    """A service in this process that sends its spans to `collector`."""
    home = tmp_path_factory.mktemp("traced")
    shutil.copytree(prepared / "state", home / "state")
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # while it is made, and no longer
            patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
            patch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
            app = stack.enter_context(running(settings_of(home, model_dir=prepared / "models")))
        deadline = time.monotonic() + 60
        while not app.extensions["service"].ready():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield app


@pytest.fixture
def traced_client(traced: Flask) -> FlaskClient:
    return traced.test_client()


def ask(client: FlaskClient, path: str, data: bytes, kind: str, **headers: str) -> Any:
    peer = {"REMOTE_ADDR": "10.0.0.9", "REMOTE_PORT": "40123"}
    return client.post(path, data=data, content_type=kind, headers=headers, environ_overrides=peer)


def trace_id_of(response: Any) -> str:
    version, trace_id, span_id, flags = response.headers["traceresponse"].split("-")
    assert (version, len(trace_id), len(span_id), len(flags)) == ("00", 32, 16, 2)
    return str(trace_id)


@pytest.mark.parametrize(
    ("path", "data", "status", "route", "inner"),
    [
        ("/predict", ROW, 200, "/predict", 1),
        ("/predict?why=not", ROW, 200, "/predict", 1),
        ("/models/iris/predict", ROWS, 200, "/models/<model>/predict", 1),
        ("/models/iris/versions/1/predict", ROW, 200, "/models/<model>/versions/<version>/predict", 1),
        ("/predict", b"{", 400, "/predict", 0),
        ("/models/prices/predict", NOWHERE, 500, "/models/<model>/predict", 1),
    ],
)
def test_a_request_has_the_same_span_past_flask_and_through_it(
    traced_client: FlaskClient, collector: Collector, path: str, data: bytes, status: int, route: str, inner: int
) -> None:
    roots: list[Span] = []
    for kind in (LANE, FLASK):
        response = ask(traced_client, path, data, kind, **{"User-Agent": "curl/8.5"})
        assert response.status_code == status
        root = collector.trace(trace_id_of(response), names=1 + inner)[0]
        assert response.headers["traceresponse"] == f"00-{root.trace_id}-{root.span_id}-03"
        roots.append(root)
    past, through = roots
    assert (past.name, past.kind, past.parent, past.failed) == (f"POST {route}", "server", "", status == 500)
    assert (past.name, past.kind, past.parent, past.failed) == (
        through.name,
        through.kind,
        through.parent,
        through.failed,
    )
    assert past.attributes == through.attributes
    assert past.resource == through.resource
    assert past.attributes["http.route"] == route
    assert past.attributes["http.response.status_code"] == status


@pytest.mark.parametrize("kind", [LANE, FLASK])
@pytest.mark.parametrize(("body", "rows"), [(ROW, 1), (ROWS, 2)])
def test_the_models_call_is_a_span_below(
    traced_client: FlaskClient, collector: Collector, kind: str, body: bytes, rows: int
) -> None:
    root, call = collector.trace(trace_id_of(ask(traced_client, "/predict", body, kind)), names=2)
    assert (call.name, call.kind, call.parent, call.failed) == ("inference", "internal", root.span_id, False)
    assert call.attributes == {"ml.model": "iris", "ml.version": "1", "ml.rows": rows}
    assert root.began <= call.began <= call.ended <= root.ended
    assert abs(root.began / 1e9 - time.time()) < 60


def test_a_model_that_fails_is_seen_without_a_word_of_its_input(
    traced_client: FlaskClient, collector: Collector
) -> None:
    trace_id = trace_id_of(ask(traced_client, "/models/prices/predict", NOWHERE, LANE))
    call = next(span for span in collector.trace(trace_id, names=2) if span.name == "inference")
    assert call.failed
    assert call.attributes["error.type"] == "RuntimeError"


@pytest.mark.parametrize("kind", [LANE, FLASK])
def test_the_callers_trace_goes_on(traced_client: FlaskClient, collector: Collector, kind: str) -> None:
    trace_id = os.urandom(16).hex()
    given = {"traceparent": f"00-{trace_id}-{PARENT}-01", "tracestate": "shop=7,bank=x"}
    response = ask(traced_client, "/predict", ROW, kind, **given)
    root, call = collector.trace(trace_id, names=2)
    assert (root.parent, root.state, call.state) == (PARENT, "shop=7,bank=x", "shop=7,bank=x")
    assert response.headers["traceresponse"] == f"00-{trace_id}-{root.span_id}-01"


@pytest.mark.parametrize("kind", [LANE, FLASK])
def test_what_the_caller_does_not_sample_is_not_sent_but_can_be_found_in_the_log(
    traced: Flask, traced_client: FlaskClient, collector: Collector, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    trace_id = os.urandom(16).hex()
    response = ask(traced_client, "/predict", ROW, kind, traceparent=f"00-{trace_id}-{PARENT}-00")
    assert re.fullmatch(f"00-{trace_id}-[0-9a-f]{{16}}-00", response.headers["traceresponse"])
    assert traced.extensions["requests"].flush()
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["trace_id"] == trace_id
    collector.trace(trace_id_of(ask(traced_client, "/predict", ROW, kind)), names=2)  # which came later
    assert [span for span in collector.spans if span.trace_id == trace_id] == []


@pytest.mark.parametrize("given", ["", "01", f"00-{'0' * 32}-{PARENT}-01", f"ff-{'1' * 32}-{PARENT}-01", "x" * 5000])
@pytest.mark.parametrize("kind", [LANE, FLASK])
def test_a_broken_context_begins_a_new_trace(traced_client: FlaskClient, kind: str, given: str) -> None:
    response = ask(traced_client, "/predict", ROW, kind, traceparent=given)
    assert response.status_code == 200
    assert trace_id_of(response) not in {"0" * 32, "1" * 32}


def test_requests_after_each_other_have_traces_of_their_own(traced_client: FlaskClient) -> None:
    kinds = [LANE, FLASK, LANE, LANE, FLASK]
    assert len({trace_id_of(ask(traced_client, "/predict", ROW, kind)) for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics"])
def test_probes_leave_no_span(traced_client: FlaskClient, path: str) -> None:
    assert "traceresponse" not in traced_client.get(path).headers
    assert "traceresponse" in traced_client.get("/model/info").headers


def test_without_traces_there_is_no_header_and_no_id_in_the_log(
    app: Flask, client: FlaskClient, capfd: pytest.CaptureFixture[str]
) -> None:
    for kind in (LANE, FLASK):
        given = {"traceparent": f"00-{'7' * 32}-{PARENT}-01", "X-Request-Id": "without-traces"}
        assert "traceresponse" not in ask(client, "/predict", ROW, kind, **given).headers
    assert app.extensions["requests"].flush()
    lines = [line for line in capfd.readouterr().out.splitlines() if "without-traces" in line]
    assert len(lines) == 2
    assert all("trace_id" not in json.loads(line) for line in lines)


def test_the_instrumentation_hooks_in_first(traced: Flask) -> None:
    """So that whatever answers early is in a span too."""
    assert traced.before_request_funcs[None][0].__module__ == "opentelemetry.instrumentation.flask"


# --- answered together -----------------------------------------------------------------------------------------------


class Slow:
    """Doubles ``x`` in ten milliseconds; fails on what is negative."""

    def __call__(self, batch: Batch) -> Prediction:
        time.sleep(0.01)
        x = batch.columns[0]
        if (x < 0).any():
            raise RuntimeError("too cold")
        return Prediction(x * 2, None, None)


@pytest.fixture
def tracer(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracer]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    tracer = Tracer([exporter("otlp")])
    yield tracer
    tracer.close()


@pytest.fixture
def together() -> Iterator[Any]:
    """A live version whose callers are answered together."""
    batcher = Batcher(Slow(), max_batch_rows=8, max_queue_rows=100, cost=Cost(0.01, 0.0, 64))
    bundle = SimpleNamespace(name="iris", version="3")
    yield SimpleNamespace(predictor=partial(batcher, deadline_s=5.0), batcher=batcher, bundle=bundle)
    batcher.close()


def traced_call(tracer: Tracer, live: Any, value: float) -> tuple[str, Any]:
    """The trace of one request of one row, and what came of it."""
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/predict", "SERVER_PROTOCOL": "HTTP/1.1"}
    span = tracer.begin(environ, "/predict", time.perf_counter())
    try:
        came = tracer.inference(live, Batch(("x",), block=np.array([[value]]))).values.tolist()
    except Exception as err:
        came = err
    return span.end(200).trace_id, came


def test_everyone_has_the_common_call_and_the_wait_for_it_in_their_own_trace(
    tracer: Tracer, collector: Collector, together: Any
) -> None:
    with ThreadPoolExecutor(6) as callers:
        answered = list(callers.map(partial(traced_call, tracer, together), [float(n) for n in range(6)]))
    assert [came for _, came in answered] == [[2.0 * n] for n in range(6)]
    traces = [collector.trace(trace_id, names=3) for trace_id, _ in answered]
    for root, queue, call in traces:
        assert [root.name, queue.name, call.name] == ["POST /predict", "queue", "inference"]
        assert queue.parent == call.parent == root.span_id
        assert root.began <= queue.began <= queue.ended == pytest.approx(call.began, abs=1e6)
        assert call.ended - call.began >= 10e6
        assert call.attributes["ml.rows"] == queue.attributes["ml.rows"] == 1
    rows = [call.attributes["ml.batch_rows"] for _, _, call in traces]
    assert max(rows) > 1
    starts = [call.began for _, _, call in traces]
    assert any(abs(a - b) < 1e6 for n, a in enumerate(starts) for b in starts[:n])


def test_a_common_call_that_fails_is_seen_by_everyone(tracer: Tracer, collector: Collector, together: Any) -> None:
    trace_id, came = traced_call(tracer, together, -1.0)
    assert isinstance(came, ModelFailed)
    _, queue, call = collector.trace(trace_id, names=3)
    assert (queue.failed, call.failed, call.attributes["error.type"]) == (False, True, "RuntimeError")


def test_who_waited_in_vain_has_only_waited(tracer: Tracer, collector: Collector, together: Any) -> None:
    together.predictor = partial(together.batcher, deadline_s=0.0)
    trace_id, came = traced_call(tracer, together, 1.0)
    assert isinstance(came, DeadlineExceeded)
    _, queue = collector.trace(trace_id, names=2)
    assert (queue.name, queue.failed, queue.attributes["error.type"]) == ("queue", True, "DeadlineExceeded")


def test_of_a_retired_version_there_is_a_call_too(tracer: Tracer, collector: Collector, together: Any) -> None:
    together.batcher.retire()
    trace_id, came = traced_call(tracer, together, 1.0)
    assert came == [2.0]
    assert [span.name for span in collector.trace(trace_id, names=3)] == ["POST /predict", "queue", "inference"]


def test_what_is_logged_in_a_common_call_is_logged_as_its_first_callers(
    tracer: Tracer, together: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(marks := Marks())
    trace_id, _ = traced_call(tracer, together, -1.0)
    caplog.handler.removeFilter(marks)
    (failed,) = [record for record in caplog.records if record.name == "serving.batching"]
    assert failed.trace_id == trace_id


# --- logs ------------------------------------------------------------------------------------------------------------


def test_what_is_logged_during_a_request_has_its_trace(tracer: Tracer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(marks := Marks())
    span = tracer.begin({"REQUEST_METHOD": "POST"}, "/predict", time.perf_counter())
    logging.getLogger("serving.part").error("within")
    trace_id, _ = span.end(200)
    logging.getLogger("serving.part").error("after")
    caplog.handler.removeFilter(marks)
    within, after = caplog.records
    assert within.trace_id == trace_id
    assert not hasattr(after, "trace_id")


def test_a_tracer_marks_what_this_process_logs(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    handler = logging.StreamHandler(said := io.StringIO())
    handler.setFormatter(JsonFormatter())
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    tracer = tracing.start(Flask("some"))
    assert tracer is not None
    span = tracer.begin({"REQUEST_METHOD": "POST"}, "/predict", time.perf_counter())
    logging.getLogger("serving.part").error("went wrong")
    trace_id, _ = span.end(500)
    tracer.close()
    assert json.loads(said.getvalue())["trace_id"] == trace_id


def test_the_sdk_says_the_same_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    marks, said = Marks(), []
    monkeypatch.setattr("serving.tracing.spans.SELDOM_S", 0.1)

    def passes(name: str, message: str, *values: Any) -> None:
        record = logging.getLogger(name).makeRecord(name, logging.ERROR, __file__, 1, message, values, None)
        said.append(marks.filter(record))

    for number in range(3):
        passes("opentelemetry.exporter", "not sent: %s", number)
    passes("opentelemetry.exporter", "queue full")
    passes("serving.part", "ours")
    passes("serving.part", "ours")
    time.sleep(0.15)
    passes("opentelemetry.exporter", "not sent: %s", 4)
    assert said == [True, False, False, True, True, True, True]


# --- who collects ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "mlflow-live"),
        ({"OTEL_SERVICE_NAME": "flowers"}, "flowers"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=petals,team=botany"}, "petals"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team=botany"}, "mlflow-live"),
    ],
)
def test_the_service_is_called_what_its_variables_say(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    with collecting() as collector:
        for name, value in {**variables, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}.items():
            monkeypatch.setenv(name, value)
        tracer = Tracer([exporter("otlp")])
        tracer.begin({"REQUEST_METHOD": "POST"}, "/predict", time.perf_counter()).end(200)
        tracer.close()
        assert collector.posts == ["/v1/traces"]
        (span,) = collector.spans
    assert span.resource["service.name"] == expected
    assert ("team" in span.resource) is ("team=" in variables.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    assert span.resource["telemetry.sdk.language"] == "python"


def test_the_sampler_is_what_its_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.1")
        tracer = Tracer([exporter("otlp")])
        for _ in range(1000):
            tracer.begin({"REQUEST_METHOD": "POST"}, "/predict", time.perf_counter()).end(200)
        tracer.close()
        assert 40 < len(collector.spans) < 180


def test_on_the_console_a_span_is_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    tracer = Tracer([exporter("console")])
    seen = tracer.begin({"REQUEST_METHOD": "POST"}, "/predict", time.perf_counter()).end(200)
    tracer.close()
    span = json.loads(capsys.readouterr().out)
    assert (span["name"], span["context"]["trace_id"]) == ("POST /predict", f"0x{seen.trace_id}")


@pytest.mark.parametrize("dead", ["refuses", "never answers"])
def test_a_dead_collector_holds_up_neither_requests_nor_the_end(monkeypatch: pytest.MonkeyPatch, dead: str) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with silent() as url:
        endpoint = url if dead == "never answers" else f"http://127.0.0.1:{free_port()}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        tracer = Tracer([exporter("otlp")])
        began = time.monotonic()
        for _ in range(5000):  # more than the queue takes
            tracer.begin({"REQUEST_METHOD": "POST"}, "/predict", time.perf_counter()).end(200)
        assert time.monotonic() - began < 5.0
        threads, began = threading.active_count(), time.monotonic()
        tracer.close()
        assert time.monotonic() - began < 3.0
        assert threading.active_count() <= threads + 1
