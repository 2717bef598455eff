"""Spans of requests and predictions. Imported only where traces are wanted: it needs OpenTelemetry's SDK.

Requests that go through Flask have their span from Flask's instrumentation; those that the lane answers get the same
here. A span here is written once, when it is over: the SDK's own, which anybody may change until then, cost as much as
a small model's whole answer.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from flask import Flask
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.wsgi import wsgi_getter
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

DEFAULT_SERVICE_NAME = "mlflow-live"
FLUSH_S = 2.0  # how long a worker's end may wait for the collector
SELDOM_S = 60.0
UNTRACED = r"^https?://[^/]+/(livez|readyz|health|metrics)(\?|$)"  # a probe every few seconds says nothing
RANDOM = TraceFlags(0x02)  # W3C trace context, level 2: the bits of the trace id are random
UNSET, ERROR = Status(), Status(StatusCode.ERROR)


class Seen(NamedTuple):
    """Where a request's trace is found: by its id in the log, by a header in the answer (a draft of the W3C)."""

    trace_id: str
    header: tuple[str, str]


def exporter(name: str) -> SpanExporter:
    """``otlp`` or ``console``, as their variables want it."""
    if name == "console":
        return ConsoleSpanExporter(out=sys.stdout, formatter=lambda span: span.to_json(indent=None) + "\n")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


class Own(Resource):
    """This service, as its variables call it. Hashed once: the SDK does it for every span, by way of JSON."""

    def __init__(self) -> None:
        found = Resource.create()
        if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
            found = found.merge(Resource({SERVICE_NAME: DEFAULT_SERVICE_NAME}))
        super().__init__(found.attributes, found.schema_url)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash


class Tracer:
    """Makes the spans of one process and hands them to ``exporters``, in threads of their own. `close` must end it.

    The SDK reads sampler, resource, batches and queue from its own variables.
    """

    def __init__(self, exporters: Iterable[SpanExporter]) -> None:
        self._provider = TracerProvider(resource=Own(), shutdown_on_exit=False)
        self._processors = [BatchSpanProcessor(exporter) for exporter in exporters]
        for processor in self._processors:
            self._provider.add_span_processor(processor)
        self._scope = InstrumentationScope("serving.tracing")
        self._sampler, self._ids = self._provider.sampler, self._provider.id_generator

    def instrument(self, app: Flask) -> None:
        """Have Flask's instrumentation write a span for each request of ``app`` but probes."""
        silent = NoOpMeterProvider()
        FlaskInstrumentor.instrument_app(
            app,
            tracer_provider=self._provider,
            meter_provider=silent,
            excluded_urls=UNTRACED,
            enable_commenter=False,
        )

    def mark_logs(self) -> None:
        """Put ``trace_id`` into what this process logs during a request, and let exporters complain seldom."""
        for handler in logging.getLogger().handlers:
            handler.addFilter(Marks())

    def close(self) -> None:
        """Send what is left, for at most `FLUSH_S`."""
        flushing = threading.Thread(target=self._provider.shutdown, name="flush-spans", daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)

    # --- requests ---

    def begin(self, environ: dict[str, Any], route: str, started_s: float) -> Serving:
        """The span of a request past Flask, current in this thread until its end; ``started_s`` by `perf_counter`."""
        name = f"{environ['REQUEST_METHOD']} {route}"
        outer = extract(environ, getter=wsgi_getter)
        parent = trace.get_current_span(outer).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else self._ids.generate_trace_id()
        sampling = self._sampler.should_sample(outer, trace_id, name, SpanKind.SERVER)
        flags = parent.trace_flags & RANDOM if parent.is_valid else RANDOM
        if sampling.decision.is_sampled():
            flags |= TraceFlags.SAMPLED
        span_id = self._ids.generate_span_id()
        context = SpanContext(trace_id, span_id, False, TraceFlags(flags), sampling.trace_state)
        current = trace.set_span_in_context(NonRecordingSpan(context), outer)
        write = partial(self._write, name, SpanKind.SERVER, context, parent if parent.is_valid else None)
        return Serving(write, context, contexts.attach(current), environ, route, started_s)

    def seen(self) -> Seen | None:
        """Of the request that this thread answers; None for one without a trace."""
        context = trace.get_current_span().get_span_context()
        return _seen(context) if context.is_valid else None

    # --- predictions ---

    def inference(self, live: Any, batch: Any) -> Any:
        """What a live version answers to ``batch``, with the spans of it below the current one. Raises what it raises.

        Several callers may be answered by one call of the model: each of them has it in its own trace.
        """
        parent = trace.get_current_span().get_span_context()
        if not parent.trace_flags.sampled:
            return live.predictor(batch)
        calls: list[Any] = []
        error, came_s = None, time.perf_counter()
        try:
            if live.batcher is None:
                return live.predictor(batch)
            return live.predictor(batch, watch=calls.append)
        except Exception as err:
            error = type(err.__cause__ or err).__name__
            raise
        finally:
            left_s = time.perf_counter()
            about = {"ml.model": live.bundle.name, "ml.version": live.bundle.version, "ml.rows": batch.rows}
            if live.batcher is None:
                self._child("inference", parent, about, came_s, left_s, error)
            for call in calls:
                together = about | {"ml.batch_rows": call.rows}
                self._child("queue", parent, about, came_s, call.began_s, None)
                self._child("inference", parent, together, call.began_s, min(call.ended_s, left_s), error)
            if live.batcher is not None and not calls:
                self._child("queue", parent, about, came_s, left_s, error)

    def _child(
        self, name: str, parent: SpanContext, about: dict[str, Any], began_s: float, ended_s: float, error: str | None
    ) -> None:
        context = SpanContext(
            parent.trace_id, self._ids.generate_span_id(), False, parent.trace_flags, parent.trace_state
        )
        attributes = about | {"error.type": error} if error else about
        self._write(name, SpanKind.INTERNAL, context, parent, attributes, began_s, ended_s, ERROR if error else UNSET)

    def _write(
        self,
        name: str,
        kind: SpanKind,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: dict[str, Any],
        began_s: float,
        ended_s: float,
        status: Status,
    ) -> None:
        """Hand over a span that is over; its times are those of `perf_counter`."""
        since_1970 = time.time_ns() - time.perf_counter_ns()
        span = ReadableSpan(
            name,
            context,
            parent,
            self._provider.resource,
            attributes,
            kind=kind,
            status=status,
            start_time=int(began_s * 1e9) + since_1970,
            end_time=int(ended_s * 1e9) + since_1970,
            instrumentation_scope=self._scope,
        )
        for processor in self._processors:
            processor.on_end(span)


class Serving:
    """A request that is being answered past Flask."""

    __slots__ = ("_context", "_environ", "_route", "_started_s", "_token", "_write")

    def __init__(
        self,
        write: Callable[..., None],
        context: SpanContext,
        token: Any,
        environ: dict[str, Any],
        route: str,
        started_s: float,
    ) -> None:
        self._write = write
        self._context = context
        self._token = token
        self._environ = environ
        self._route = route
        self._started_s = started_s

    def end(self, status: int) -> Seen:
        """The answer is there. In the thread of the beginning, once."""
        contexts.detach(self._token)
        if self._context.trace_flags.sampled:
            attributes = _of_request(self._environ) | {"http.route": self._route, "http.response.status_code": status}
            if status >= 500:
                attributes["error.type"] = str(status)
            self._write(attributes, self._started_s, time.perf_counter(), ERROR if status >= 500 else UNSET)
        return _seen(self._context)


def _seen(context: SpanContext) -> Seen:
    trace_id = f"{context.trace_id:032x}"
    return Seen(trace_id, ("traceresponse", f"00-{trace_id}-{context.span_id:016x}-{context.trace_flags:02x}"))


def _of_request(environ: dict[str, Any]) -> dict[str, Any]:
    """What Flask's instrumentation writes of a request, by the stable conventions for HTTP, in its own way."""
    port, peer = environ.get("SERVER_PORT"), environ.get("REMOTE_PORT")
    found = {
        "http.request.method": environ["REQUEST_METHOD"],
        "url.scheme": environ.get("wsgi.url_scheme"),
        "server.address": environ.get("HTTP_HOST"),
        "server.port": int(port) if port else None,
        "url.path": environ.get("PATH_INFO"),
        "url.query": environ.get("QUERY_STRING"),
        "client.address": environ.get("REMOTE_ADDR"),
        "client.port": int(peer) if peer else None,
        "user_agent.original": environ.get("HTTP_USER_AGENT"),
        "network.protocol.version": environ.get("SERVER_PROTOCOL", "").removeprefix("HTTP/"),
    }
    return {name: value for name, value in found.items() if value}


class Marks(logging.Filter):
    """Marks what is logged during a request with its trace, and keeps the SDK from saying the same for every batch."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log ``record``: of the SDK each kind of message once in `SELDOM_S`."""
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            record.trace_id = f"{context.trace_id:032x}"
        if not record.name.startswith("opentelemetry."):
            return True
        kind, now = str(record.msg), time.monotonic()
        if now - self._said.get(kind, -math.inf) < SELDOM_S:
            return False
        self._said[kind] = now
        return True
