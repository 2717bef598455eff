"""The Open Inference Protocol v2 over REST, as KServe, MLServer and Triton speak it.

With its extensions for binary tensors, classification, and the model repository.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from serving.answers import Reply
from serving.errors import ServingError
from serving.live import Live
from serving.payload import JSON_TYPES
from serving.protocols import Call
from serving.protocols.v2 import binary, request
from serving.protocols.v2.answer import Form
from serving.protocols.v2.routes import ROUTES, blueprint
from serving.service import Service

__all__ = ["ROUTES", "STATUSES", "V2", "blueprint"]

STATUSES = (200, 400, 500, 503)  # that every service comes to see


class V2:
    """This protocol over one service."""

    routes = ROUTES
    media = JSON_TYPES | {binary.MEDIA_TYPE}

    def __init__(self, service: Service) -> None:
        self._service = service
        self._forms: WeakKeyDictionary[Live, Form] = WeakKeyDictionary()

    def owns(self, path: str) -> bool:
        return path == "/v2" or path.startswith("/v2/")

    def error(self, err: ServingError, _: str | None) -> dict[str, Any]:
        """``{"error": message}``; its code and where it is are in the words."""
        return {"error": err.discreet}

    def live(self, model: str | None, version: str | None) -> Live:
        """Raises `UnknownModel` or `ModelNotReady`."""
        return self._service.store.live(model, version)

    def answer(self, live: Live, call: Call) -> Reply:
        """What ``live`` answers. Raises `InvalidInput` or what the model raised as a `ServingError`."""
        asked = request.read(call.data, call.header(binary.HEADER))
        form = self._forms.get(live) or self._forms.setdefault(live, Form(live))

        def read(_: Any) -> Any:
            form.check(asked.outputs)
            return form.reader(request.arrays(asked))

        return form.reply(self._service.predict(live, read, asked.id or call.request_id), asked)
