"""Operations: probes, what is live, reload."""

from __future__ import annotations

from flask import Blueprint, Response

from serving.answers import json_response
from serving.service import Service

RETRY_AFTER_S = "1"


def blueprint(service: Service) -> Blueprint:
    """Routes for people and machines that run the service."""
    bp = Blueprint("ops", __name__)

    @bp.get("/livez")
    def livez() -> Response:
        return json_response({"status": "alive"})

    @bp.get("/readyz")
    def readyz() -> Response:
        return _readiness({"status": _word(service)}, service)

    @bp.get("/health")
    def health() -> Response:
        return _readiness({"status": _word(service), "models": service.overview()}, service)

    @bp.get("/models")
    def models() -> Response:
        return json_response({"models": service.overview()})

    @bp.get("/model/info")
    @bp.get("/models/<model>")
    def info(model: str | None = None) -> Response:
        return json_response(service.info(model))

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

    return bp


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
