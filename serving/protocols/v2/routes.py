"""Flask's routes to the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, request

from serving.answers import error_headers, json_response
from serving.errors import InvalidInput, ModelNotReady, ServingError, UnsupportedMediaType
from serving.payload import check_media, parsed
from serving.protocols import flask_answer
from serving.protocols.v2 import binary, metadata
from serving.service import Service

if TYPE_CHECKING:
    from serving.protocols.v2 import V2

BY_MODEL = "/v2/models/<model>/infer"
BY_VERSION = "/v2/models/<model>/versions/<version>/infer"
ROUTES = (BY_MODEL, BY_VERSION)
CHARSETS = ("utf-8", "utf8", "us-ascii")


def blueprint(service: Service, v2: V2) -> Blueprint:
    """Flask's routes to ``v2``."""
    bp = Blueprint("v2", __name__)
    _add_server(bp, service)
    _add_models(bp, service)
    _add_repository(bp, service)

    @bp.post(BY_MODEL)
    @bp.post(BY_VERSION)
    def infer(model: str, version: str | None = None) -> Response:
        live = service.store.live(model, version)
        _check_media()
        return flask_answer(v2, service.store, live)

    return bp


def _add_server(bp: Blueprint, service: Service) -> None:
    @bp.get("/v2", strict_slashes=False)
    def server() -> Response:
        return json_response(metadata.server(service))

    @bp.get("/v2/health/live")
    def live() -> Response:
        return json_response({"live": True})

    @bp.get("/v2/health/ready")
    def ready() -> Response:
        if service.ready():
            return json_response({"live": True, "ready": True})
        err = ModelNotReady("the service is about to stop" if service.draining else "not every model is live yet")
        return _not_ready({"live": True, "ready": False}, err)


def _add_models(bp: Blueprint, service: Service) -> None:
    @bp.get("/v2/models/<model>")
    @bp.get("/v2/models/<model>/versions/<version>")
    def described(model: str, version: str | None = None) -> Response:
        return json_response(metadata.model(service.store.live(model, version).bundle))

    @bp.get("/v2/models/<model>/ready")
    @bp.get("/v2/models/<model>/versions/<version>/ready")
    def model_ready(model: str, version: str | None = None) -> Response:
        try:
            service.store.live(model, version)
        except ModelNotReady as err:
            return _not_ready({"name": model, "ready": False}, err)
        return json_response({"name": model, "ready": True})


def _not_ready(content: dict[str, Any], err: ServingError) -> Response:
    """For clients that read the status, those that read ``ready``, and those that read ``error``."""
    response = json_response({**content, "error": str(err)}, err.status)
    response.headers.extend(error_headers(err))
    return response


def _add_repository(bp: Blueprint, service: Service) -> None:
    @bp.post("/v2/repository/index")
    def index() -> Response:
        ready = _body().get("ready")
        if ready is not None and not isinstance(ready, bool):
            raise InvalidInput("'ready' must be true or false")
        return json_response(metadata.index(service, ready=bool(ready)))

    @bp.post("/v2/repository/models/<model>/load")
    def load(model: str) -> Response:
        parameters = _body().get("parameters") or {}
        if not isinstance(parameters, dict):
            raise InvalidInput("'parameters' must be an object")
        if given := [name for name in parameters if name == "config" or name.startswith("file:")]:
            raise InvalidInput(f"{given[0][:80]!r} is not taken: what a model is, its registry says")
        service.load(model)
        return json_response({"name": model, "load": True})

    @bp.post("/v2/repository/models/<model>/unload")
    def unload(model: str) -> Response:
        service.store.name(model)
        _body()
        service.unload(model)
        return json_response({"name": model, "unload": True})


def _body() -> dict[str, Any]:
    """The request's JSON object; it may be left out."""
    data = request.get_data(cache=False)
    if not data:
        return {}
    _check_media()
    body = parsed(data)
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    return body


def _check_media() -> None:
    """JSON in UTF-8, alone or before binary data. Raises `UnsupportedMediaType`."""
    charset = request.mimetype_params.get("charset", CHARSETS[0])
    if charset.lower() not in CHARSETS:
        raise UnsupportedMediaType(f"the body's charset is {charset[:80]}; send utf-8")
    if request.content_encoding:
        raise UnsupportedMediaType(f"the body is encoded ({request.content_encoding[:40]}); send it as it is")
    if request.mimetype != binary.MEDIA_TYPE:
        check_media()
