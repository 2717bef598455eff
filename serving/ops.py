"""Operations: probes, what is live, reload."""

from __future__ import annotations

import contextlib
import math

from flask import Blueprint, Response, request
from prometheus_client.exposition import choose_encoder

from serving.answers import json_response
from serving.errors import InvalidInput
from serving.exposition import Exposition
from serving.payload import check_media, parsed
from serving.service import Service

RETRY_AFTER_S = "1"


def blueprint(service: Service, exposition: Exposition) -> Blueprint:
    """Routes for people and machines that run the service."""
    bp = Blueprint("ops", __name__)
    _add_probes(bp, service)
    _add_models(bp, service)

    @bp.get("/metrics")
    def metrics() -> Response:
        wanted = request.args.getlist("name[]")
        registry = exposition.registry(described=bool(wanted))
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        chosen = registry.restricted_registry(wanted) if wanted else registry
        return Response(encode(chosen), content_type=content_type)

    return bp


def _add_probes(bp: Blueprint, service: Service) -> None:
    @bp.get("/livez")
    def livez() -> Response:
        return json_response({"status": "alive"})

    @bp.get("/readyz")
    def readyz() -> Response:
        return _readiness({"status": _word(service)}, service)

    @bp.get("/health")
    def health() -> Response:
        return _readiness({"status": _word(service), "models": service.overview()}, service)


def _add_models(bp: Blueprint, service: Service) -> None:
    @bp.get("/models")
    def models() -> Response:
        return json_response({"models": service.overview()})

    @bp.get("/model/info")
    @bp.get("/models/<model>")
    def info(model: str | None = None) -> Response:
        return json_response(service.info(model))

    @bp.get("/model/drift")
    @bp.get("/models/<model>/drift")
    def drift(model: str | None = None) -> Response:
        return json_response(service.drift(model))

    @bp.get("/model/compare")
    @bp.get("/models/<model>/compare")
    def compare(model: str | None = None) -> Response:
        return json_response(service.compare(model, _margin(request.args.get("margin", "0"))))

    @bp.post("/feedback")
    def feedback() -> Response:
        check_media()
        done = service.feedback(parsed(request.get_data(cache=False)))
        return json_response(done, 202 if "pending" in done else 200)

    @bp.post("/model/reload")
    @bp.post("/models/<model>/reload")
    def reload(model: str | None = None) -> Response:
        done = service.reload(model)
        return json_response(
            {
                "model": {"name": done.name, "version": done.version, "alias": done.alias},
                "changed": done.changed,
                "previous_version": done.previous_version,
                "workers": {"acknowledged": done.workers.acknowledged, "total": done.workers.total},
                "duration_s": round(done.duration_s, 3),
            }
        )


def _margin(text: str) -> float:
    """How much worse a challenger's quality may be. Raises `InvalidInput`."""
    with contextlib.suppress(ValueError):
        if 0 <= (margin := float(text)) < math.inf:
            return margin
    raise InvalidInput("margin must be a number from 0 on")


def _word(service: Service) -> str:
    if service.draining:
        return "draining"
    return "ready" if service.ready() else "loading"


def _readiness(content: dict[str, object], service: Service) -> Response:
    if service.ready():
        return json_response(content)
    response = json_response(content, 503)
    response.headers["Retry-After"] = RETRY_AFTER_S
    return response
