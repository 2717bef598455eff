"""What every answer has, whatever its protocol: ids, headers, errors, metrics, a log line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry
from prometheus_flask_exporter import PrometheusMetrics
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from serving import telemetry
from serving.answers import error_headers, json_response
from serving.body import WholeBody
from serving.errors import BodyTooLarge, ServingError
from serving.live import Live
from serving.metrics import SECONDS, HttpMetrics, Metrics, Named
from serving.protocols import Protocol
from serving.service import Service
from serving.telemetry import Request, RequestLog, failure

if TYPE_CHECKING:
    from serving.tracing.spans import Tracer

# A probe every few seconds is not worth a line each, whatever it finds: what changes is logged where it changes.
QUIET_ROUTES = frozenset({"/livez", "/readyz", "/health", "/ping", "/metrics"})


class UnknownRoute(ServingError):
    """No such path."""

    status = 404
    code = "unknown_route"


class WrongMethod(ServingError):
    """The path exists, but not for this method."""

    status = 405
    code = "wrong_method"


class BadRequest(ServingError):
    """What Flask refuses by itself."""

    status = 400
    code = "bad_request"


def route(_request: Any) -> str:
    """The route's pattern, never the raw path: a label must be bounded."""
    return str(request.url_rule.rule) if request.url_rule is not None else "unmatched"


class Exporter(PrometheusMetrics):
    """Without the series that says which exporter this is: there would be one for each process that ever was."""

    def info(self, *_: Any, **__: Any) -> None:
        """Nothing."""


def install_metrics(app: Flask) -> tuple[Metrics, HttpMetrics, CollectorRegistry]:
    """The service's metrics, those of HTTP by route, method and status, and the registry that has both."""
    own = Named()
    Exporter(app, path=None, defaults_prefix="ml", group_by=route, buckets=SECONDS, registry=own)
    return Metrics(own), HttpMetrics(own), own


def install(
    app: Flask, service: Service, protocols: Sequence[Protocol], requests: RequestLog, tracer: Tracer | None = None
) -> None:
    """Request ids, headers, log lines and errors for every route of ``app``.

    An error has the shape of the first of ``protocols`` that owns the path; the last owns all.
    """

    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()
        g.request_id = telemetry.request_id(request.headers.get(telemetry.REQUEST_ID_HEADER))
        if route(request) not in QUIET_ROUTES:
            g.counted = True
            service.metrics.in_flight.begin()

    @app.teardown_request
    def finish(_: BaseException | None) -> None:
        if g.pop("counted", False):
            service.metrics.in_flight.end()

    @app.after_request
    def end(response: Response) -> Response:
        live = _live(service)
        response.headers[telemetry.REQUEST_ID_HEADER] = g.request_id
        trace_id = None
        if tracer is not None and (seen := tracer.seen()) is not None:
            trace_id, header = seen
            response.headers.add(*header)
        if live is not None:
            response.headers["X-Model-Version"] = live.bundle.version
        if "error_code" in g:
            service.metrics.count_rejected(g.error_code)
        if (where := route(request)) not in QUIET_ROUTES:
            name, version = (live.bundle.name, live.bundle.version) if live else (None, None)
            duration_s = time.perf_counter() - g.started
            who = (g.request_id, name, version)
            line = (request.method, where, response.status_code, *who, duration_s, trace_id)
            requests.write(Request(time.time(), *line))
        return response

    _install_errors(app, protocols)
    app.wsgi_app = WholeBody(app.wsgi_app)  # type: ignore[method-assign]


def _install_errors(app: Flask, protocols: Sequence[Protocol]) -> None:
    def answer(err: ServingError) -> Response:
        g.error_code = err.code
        protocol = next(protocol for protocol in protocols if protocol.owns(request.path))
        response = json_response(protocol.error(err, g.get("request_id")), err.status)
        response.headers.extend(error_headers(err))
        return response

    def refused(err: HTTPException) -> Response:
        response = answer(_worded(err))
        if isinstance(err, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(err.valid_methods or ()))
        return response

    app.register_error_handler(ServingError, answer)
    app.register_error_handler(HTTPException, refused)
    app.register_error_handler(Exception, lambda err: answer(_failure(err)))


def _live(service: Service) -> Live | None:
    """The version that answered; where none did, the one that would have."""
    if "live" in g:
        answered: Live = g.live
        return answered
    try:
        return service.store.live((request.view_args or {}).get("model"))
    except ServingError:
        return None


def _worded(err: HTTPException) -> ServingError:
    """Flask's own refusals in our words."""
    if isinstance(err, NotFound):
        return UnknownRoute("there is nothing at this path")
    if isinstance(err, MethodNotAllowed):
        allowed = ", ".join(sorted(set(err.valid_methods or ()) - {"HEAD", "OPTIONS"}))
        return WrongMethod(f"this path takes {allowed}")
    if isinstance(err, RequestEntityTooLarge):
        return BodyTooLarge("the body is larger than this service takes (MAX_BODY_BYTES)")
    if err.code is not None and 400 <= err.code < 500:
        return BadRequest("the request cannot be read")
    return _failure(err)


def _failure(err: Exception) -> ServingError:
    return failure(err, request.method, route(request), g.get("request_id"))
