"""Protocols: how callers ask and are answered. They translate, and do nothing else.

Each is a `Protocol` with Flask's routes to it in a blueprint. What it answers to a prediction is the same by Flask and
by the lane in front of it (`serving.lane`), because both ask `Protocol.answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple
from typing import Protocol as Interface

from flask import Response, current_app, g, request

from serving.answers import Reply
from serving.errors import ServingError
from serving.live import Live
from serving.store import Store


class Call(NamedTuple):
    """A request for a prediction: its whole body, the id that it has, and its header fields by name."""

    data: bytes
    request_id: str
    header: Callable[[str], str | None]


class Protocol(Interface):
    """What the lane and the error handlers need to know of a protocol."""

    @property
    def routes(self) -> Collection[str]:
        """Of predictions, by POST; ``<model>`` and ``<version>`` stand in them, ``<version>`` after ``/versions/``."""

    @property
    def media(self) -> Collection[str]:
        """The content types, as callers write them, that the lane takes; Flask has the others."""

    def live(self, model: str | None, version: str | None, /) -> Live:
        """What answers at a path that names these. Raises `ServingError` where it is Flask's to say."""

    def answer(self, live: Live, call: Call) -> Reply:
        """What ``live`` answers. Raises `ServingError`."""

    def error(self, err: ServingError, request_id: str | None) -> Any:
        """The JSON of an error."""

    def owns(self, path: str) -> bool:
        """Whether what is wrong at ``path``, be it a route or not, is answered in this protocol's shape."""


def flask_answer(protocol: Protocol, store: Store, live: Live) -> Response:
    """What ``protocol`` answers to Flask's request, by ``live``, or its challenger where the path names no version."""
    if not (request.view_args or {}).get("version"):
        live = store.routed(live, request.headers.get(current_app.config["ROUTING_HEADER"]) or g.request_id)
    g.live = live
    call = Call(request.get_data(cache=False), g.request_id, request.headers.get)
    reply = protocol.answer(live, call)
    response = Response(reply.body, content_type=reply.content_type)
    response.headers.extend(reply.headers)  # behind its own, as the lane has them
    return response
