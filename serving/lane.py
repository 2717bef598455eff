"""The lane: predictions past Flask, whose dispatch takes several times as long as a compiled model.

WSGI in front of the application, for ``POST`` to the predict routes of models that are live, with plain JSON of a
known length within the limit. Everything else goes on to Flask as it came. What is answered here is the same to the
last byte: both have it from `Simple`. Request ids, headers, metrics, limits and the log line are those of
`serving.web`; what is hooked into Flask's requests there must be done here too.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from werkzeug.http import HTTP_STATUS_CODES

from serving.answers import JSON, dumps
from serving.errors import ServingError
from serving.metrics import HttpMetrics, Metrics
from serving.protocols.simple import BY_MODEL, BY_VERSION, DEFAULT_MODEL, Simple, error_content, error_headers, failure
from serving.store import Live, Store
from serving.telemetry import REQUEST_ID_HEADER, Request, RequestLog, request_id

if TYPE_CHECKING:
    from serving.tracing.spans import Tracer

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# As callers write it; whatever else Flask makes of a type, it makes there.
JSON_TYPES = {"", JSON, *(f"{JSON};{space}charset={name}" for space in ("", " ") for name in ("utf-8", "UTF-8"))}
STATUSES = {code: f"{code} {phrase.upper()}" for code, phrase in HTTP_STATUS_CODES.items()}  # as Flask writes them

CHEAP_S = 0.001
CHEAP_BODY_BYTES = 8192


class Lane:
    """WSGI middleware around ``app``; outermost, because it reads a body whole or not at all."""

    def __init__(
        self,
        app: App,
        store: Store,
        simple: Simple,
        metrics: Metrics,
        http_metrics: HttpMetrics,
        requests: RequestLog,
        *,
        max_body_bytes: int,
        tracer: Tracer | None = None,
    ) -> None:
        self.app = app
        self._store = store
        self._simple = simple
        self._metrics = metrics
        self._http_metrics = http_metrics
        self._requests = requests
        self._max_body_bytes = max_body_bytes
        self._tracer = tracer
        self._paths: dict[str, tuple[str, str | None]] = {DEFAULT_MODEL: (DEFAULT_MODEL, None)}
        for name in store.names:
            path = f"/models/{name}/predict".encode().decode("latin-1")  # as WSGI writes it
            self._paths[path] = (BY_MODEL, name)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        found = self._found(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""))
        length = self._length(environ)
        if found is None or length is None:
            return self.app(environ, start_response)
        started, (route, live) = time.perf_counter(), found
        data = environ["wsgi.input"].read(length)
        if len(data) != length:  # the caller has gone
            environ["wsgi.input"] = io.BytesIO(data)
            return self.app(environ, start_response)
        who = request_id(environ.get("HTTP_X_REQUEST_ID"))
        span = None if self._tracer is None else self._tracer.begin(environ, route, started)
        status, body, more = self._answer(route, live, data, who)
        trace_id = None
        if span is not None:
            trace_id, header = span.end(status)
            more = [*more, header]
        bundle, duration_s = live.bundle, time.perf_counter() - started
        headers = [
            ("Content-Type", JSON),
            ("Content-Length", str(len(body))),
            *more,
            (REQUEST_ID_HEADER, who),
            ("X-Model-Version", bundle.version),
        ]
        start_response(STATUSES[status], headers)
        self._http_metrics.count("POST", route, status, duration_s)
        self._requests.write(
            Request(time.time(), "POST", route, status, who, bundle.name, bundle.version, duration_s, trace_id)
        )
        return [body]

    def cheap(self, path: str, body_bytes: int) -> bool:
        """Whether a POST of ``body_bytes`` is answered here in about `CHEAP_S` at most."""
        found = self._found("POST", path)
        return found is not None and body_bytes <= CHEAP_BODY_BYTES and _longest_s(found[1], body_bytes) < CHEAP_S

    def _found(self, method: str, path: str) -> tuple[str, Live] | None:
        """The route's pattern and the version that answers; None where Flask has to say what is wrong."""
        if method != "POST" or not path.endswith("/predict"):
            return None
        known = self._paths.get(path)
        try:
            if known is not None:
                return known[0], self._store.live(known[1])
            start, _, version = path.removesuffix("/predict").rpartition("/versions/")
            _, name = self._paths.get(f"{start}/predict", (None, None))
            return None if name is None else (BY_VERSION, self._store.live(name, version))
        except ServingError:
            return None

    def _length(self, environ: dict[str, Any]) -> int | None:
        """The body's length in bytes; None for a body that Flask has to read or refuse."""
        if environ.get("CONTENT_TYPE", "") not in JSON_TYPES or environ.get("HTTP_CONTENT_ENCODING"):
            return None
        length = environ.get("CONTENT_LENGTH") or ""
        if "HTTP_TRANSFER_ENCODING" in environ or not (length.isascii() and length.isdecimal()):
            return None
        return int(length) if int(length) <= self._max_body_bytes else None

    def _answer(self, route: str, live: Live, data: bytes, who: str) -> tuple[int, bytes, list[tuple[str, str]]]:
        """Status, body, and the headers that an error adds."""
        self._metrics.in_flight.begin()
        try:
            return 200, self._simple.answer(live, data, who), []
        except ServingError as err:
            error = err
        except Exception as err:
            error = failure(err, "POST", route, who)
        finally:
            self._metrics.in_flight.end()
        self._metrics.count_rejected(error.code)
        return error.status, dumps(error_content(error, who)), error_headers(error)


def _longest_s(live: Live, body_bytes: int) -> float:
    """What the model takes at most for a body of that size, by what prepare and this worker measured, in seconds."""
    cost, runtime = live.bundle.cost, live.bundle.runtime
    if live.batcher is not None or runtime == "pyfunc":
        return math.inf  # one waits for other callers, the other for whatever its author wanted
    if cost is None:
        return live.warm_s if runtime in ("compiled", "onnx") else math.inf
    rows = max(1, body_bytes // (2 * max(1, len(live.bundle.signature.inputs))))  # a digit and a comma for each value
    return min(live.warm_s, cost["fixed_s"] + cost["per_row_s"]) + cost["per_row_s"] * rows
