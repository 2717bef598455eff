"""The lane: predictions past Flask, whose dispatch takes several times as long as a compiled model.

WSGI in front of the application, for ``POST`` to the protocols' routes of models that are live, with a body of a usual
type and of a known length within the limit. Everything else goes on to Flask as it came. What is answered here is the
same to the last byte: both have it from the protocol. Request ids, headers, metrics, limits and the log line are those
of `serving.web`; what is hooked into Flask's requests there must be done here too.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from werkzeug.http import HTTP_STATUS_CODES

from serving.answers import Reply, dumps, error_headers
from serving.errors import ServingError
from serving.live import SLOW_S, Live
from serving.metrics import HttpMetrics, Metrics
from serving.protocols import Call, Protocol
from serving.store import Store
from serving.telemetry import REQUEST_ID_HEADER, Request, RequestLog, failure, request_id

if TYPE_CHECKING:
    from serving.tracing.spans import Tracer

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

STATUSES = {code: f"{code} {phrase.upper()}" for code, phrase in HTTP_STATUS_CODES.items()}  # as Flask writes them

MODEL, VERSION = "<model>", "<version>"  # as they stand in a route's pattern

CHEAP_S = 0.001
CHEAP_BODY_BYTES = 8192


class Place(NamedTuple):
    """Where a path leads: the route's pattern, its protocol, and the model that the path names."""

    route: str
    protocol: Protocol
    model: str | None


class Lane:
    """WSGI middleware around ``app``; outermost, because it reads a body whole or not at all."""

    def __init__(
        self,
        app: App,
        store: Store,
        protocols: Sequence[Protocol],
        metrics: Metrics,
        http_metrics: HttpMetrics,
        requests: RequestLog,
        *,
        routing_header: str,
        max_body_bytes: int,
        tracer: Tracer | None = None,
    ) -> None:
        self.app = app
        self._store = store
        self._metrics = metrics
        self._http_metrics = http_metrics
        self._requests = requests
        self._max_body_bytes = max_body_bytes
        self._tracer = tracer
        self._protocols = protocols
        self._routing_key = f"HTTP_{routing_header.upper().replace('-', '_')}"
        self._names = store.names
        self._places = _places(protocols, self._names)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        found = self._found(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""))
        length = None if found is None else self._length(environ, found[0].protocol)
        if found is None or length is None:
            return self.app(environ, start_response)
        started, (place, live, pinned) = time.perf_counter(), found
        data = environ["wsgi.input"].read(length)
        if len(data) != length:  # the caller has gone
            environ["wsgi.input"] = io.BytesIO(data)
            return self.app(environ, start_response)
        who = request_id(environ.get("HTTP_X_REQUEST_ID"))
        if self._store.splits and not pinned:
            live = self._store.routed(live, environ.get(self._routing_key) or who)
        span = None if self._tracer is None else self._tracer.begin(environ, place.route, started)
        status, reply = self._answer(place, live, Call(data, who, lambda name: _field(environ, name)))
        body, trace_id, traced = reply.body, None, []
        if span is not None:
            trace_id, header = span.end(status)
            traced = [header]
        bundle, duration_s = live.bundle, time.perf_counter() - started
        headers = [
            ("Content-Type", reply.content_type),
            ("Content-Length", str(len(body))),
            *reply.headers,
            *traced,
            (REQUEST_ID_HEADER, who),
            ("X-Model-Version", bundle.version),
        ]
        start_response(STATUSES[status], headers)
        self._http_metrics.count("POST", place.route, status, duration_s)
        self._requests.write(
            Request(time.time(), "POST", place.route, status, who, bundle.name, bundle.version, duration_s, trace_id)
        )
        return [body]

    def cheap(self, path: str, body_bytes: int) -> bool:
        """Whether a POST of ``body_bytes`` is answered here in about `CHEAP_S` at most."""
        found = self._found("POST", path)
        if found is None or body_bytes > CHEAP_BODY_BYTES:
            return False
        return all(_longest_s(one, body_bytes) < CHEAP_S for one in self._may_answer(found[1]))

    def slow(self, path: str) -> bool:
        """Whether a POST there goes to a model that takes `SLOW_S` or more for a single row."""
        found = self._found("POST", path)
        return found is not None and any(SLOW_S <= one.warm_s < math.inf for one in self._may_answer(found[1]))

    def _may_answer(self, live: Live) -> tuple[Live, ...]:
        """The version that a path asks for, and the one that challenges it."""
        split = self._store.splits.get(live.bundle.name)
        return (live,) if split is None else (live, split.challenger)

    def _found(self, method: str, path: str) -> tuple[Place, Live, bool] | None:
        """Where ``path`` leads, the version that it asks for, and whether it names that version itself.

        None where Flask has to say what is wrong.
        """
        if method != "POST":
            return None
        if self._store.names is not self._names:
            self._names = self._store.names
            self._places = _places(self._protocols, self._names)
        place, version = self._places.get((path, "")), None
        if place is None:
            start, versions, rest = path.rpartition("/versions/")
            version, slash, end = rest.partition("/")
            place = self._places.get((start + versions, slash + end))
        try:
            return None if place is None else (place, place.protocol.live(place.model, version), version is not None)
        except ServingError:
            return None

    def _length(self, environ: dict[str, Any], protocol: Protocol) -> int | None:
        """The body's length in bytes; None for a body that Flask has to read or refuse."""
        if environ.get("CONTENT_TYPE", "") not in protocol.media or environ.get("HTTP_CONTENT_ENCODING"):
            return None
        length = environ.get("CONTENT_LENGTH") or ""
        if "HTTP_TRANSFER_ENCODING" in environ or not (length.isascii() and length.isdecimal()):
            return None
        return int(length) if int(length) <= self._max_body_bytes else None

    def _answer(self, place: Place, live: Live, call: Call) -> tuple[int, Reply]:
        """Status, and what is answered."""
        self._metrics.in_flight.begin()
        try:
            return 200, place.protocol.answer(live, call)
        except ServingError as err:
            error = err
        except Exception as err:
            error = failure(err, "POST", place.route, call.request_id)
        finally:
            self._metrics.in_flight.end()
        self._metrics.count_rejected(error.code)
        body = dumps(place.protocol.error(error, call.request_id))
        return error.status, Reply(body, headers=tuple(error_headers(error)))


def _places(protocols: Sequence[Protocol], names: Sequence[str]) -> dict[tuple[str, str], Place]:
    """Where paths lead, by what is before the version in a path and what is behind it."""
    places = {}
    for protocol in protocols:
        for route in protocol.routes:
            for name in names if MODEL in route else (None,):
                start, _, end = route.replace(MODEL, name or "").partition(VERSION)
                places[start.encode().decode("latin-1"), end] = Place(route, protocol, name)  # as WSGI has it
    return places


def _field(environ: dict[str, Any], name: str) -> str | None:
    """A header field of the request."""
    if name == "Content-Type":
        return str(environ.get("CONTENT_TYPE", ""))
    return environ.get(f"HTTP_{name.upper().replace('-', '_')}")


def _longest_s(live: Live, body_bytes: int) -> float:
    """What the model takes at most for a body of that size, by what prepare and this worker measured, in seconds."""
    cost, runtime = live.bundle.cost, live.bundle.runtime
    if live.batcher is not None or runtime in ("pyfunc", "image", "text"):
        return math.inf  # some wait for other callers, some do whatever their author wanted, or a row may be anything
    if cost is None:
        return live.warm_s if runtime in ("compiled", "onnx") else math.inf
    rows = max(1, body_bytes // (2 * max(1, len(live.bundle.signature.inputs))))  # a digit and a comma for each value
    return min(live.warm_s, cost["fixed_s"] + cost["per_row_s"]) + cost["per_row_s"] * rows
