"""``/openapi.json``: the service described by OpenAPI 3.1, typed from the signatures of the versions that are live.

Plain dicts, made by small functions, one module for each protocol. A library would take the routes' types from Python
annotations; here they come from the registry, and change while the service runs.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from flask import Blueprint, Response, request

from serving.answers import JSON, dumps
from serving.errors import ModelNotReady
from serving.live import Live
from serving.openapi import mlflow, openai, ops, simple, v2
from serving.openapi.models import Model, keyed
from serving.openapi.parts import HEADERS
from serving.service import Service

PATH = "/openapi.json"
TITLE = "mlflow-live"
DESCRIPTION = """\
Models from an MLflow registry, over four protocols. Each has errors of its own shape, also for what every path may
answer beside what is listed: 404 for a path that is not there, 405 with `Allow` for another method.
"""
TAGS = {
    simple.TAG: "The service's own protocol.",
    mlflow.TAG: "As `mlflow models serve`.",
    v2.TAG: "As KServe, Triton and MLServer, with binary tensors and the repository.",
    openai.TAG: "As OpenAI's embeddings.",
    ops.TAG: "Probes, what is live, reload, labels, metrics.",
    ops.DOCS_TAG: "This document, and pages made of it.",
}


class Written(NamedTuple):
    """The document as it is sent, and what it describes."""

    lives: tuple[Live | None, ...]
    body: bytes
    etag: str


class Documents:
    """The document of what is live now, made once for each set of live versions."""

    def __init__(
        self,
        service: Service,
        is_text: Callable[[Live], bool],
        files: Collection[str],
    ) -> None:
        """``is_text`` says which versions OpenAI's protocol serves; ``files`` are those of the pages."""
        self._service = service
        self._is_text = is_text
        self._files = files
        self._lock = threading.Lock()
        self._written: Written | None = None

    def current(self) -> Written:
        """For the versions that this worker serves at this moment."""
        lives = tuple(map(self._live, self._service.store.names))
        written = self._written
        if written is not None and written.lives == lives:
            return written
        with self._lock:
            if self._written is None or self._written.lives != lives:
                body = dumps(self._document(lives))
                self._written = Written(lives, body, hashlib.sha256(body).hexdigest()[:32])
            return self._written

    def _live(self, name: str) -> Live | None:
        try:
            return self._service.store.live(name)
        except ModelNotReady:
            return None

    def _document(self, lives: Sequence[Live | None]) -> dict[str, Any]:
        names = self._service.store.names
        models = [
            Model(name, key, live.bundle if live else None, live is not None and self._is_text(live))
            for name, key, live in zip(names, keyed(names), lives, strict=True)
        ]
        return document(models, self._files, self._service.build.version or "unknown")


def document(models: Sequence[Model], files: Collection[str], version: str) -> dict[str, Any]:
    """All routes of all protocols; the first of ``models`` answers where none is named."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": version,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": about} for name, about in TAGS.items()],
        "paths": {
            **simple.paths(models),
            **mlflow.paths(models),
            **v2.paths(models),
            **openai.paths(models),
            **ops.paths(models, files),
        },
        "components": {
            "schemas": _merged(*(part.schemas(models) for part in (simple, mlflow, v2, openai)), ops.schemas()),
            "responses": _merged(*(part.responses() for part in (simple, mlflow, v2, openai))),
            "headers": _merged(HEADERS, mlflow.headers(), v2.headers(), ops.headers()),
        },
    }


def _merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for one in parts for name, part in one.items()}


def blueprint(documents: Documents) -> Blueprint:
    """Flask's route to the document."""
    bp = Blueprint("openapi", __name__)

    @bp.get(PATH)
    def openapi() -> Response:
        written = documents.current()
        response = Response(written.body, mimetype=JSON)
        response.set_etag(written.etag)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.make_conditional(request)
        del response.headers["Date"]  # the server has one
        return response

    return bp
