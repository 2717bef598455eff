"""Answers, whatever the protocol."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson
from flask import Response

from serving.errors import ServingError

JSON = "application/json"


class Reply(NamedTuple):
    """A protocol's answer to a prediction: always 200."""

    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


def dumps(content: Any) -> bytes:
    """``content`` as JSON; NumPy arrays may stand in it, NaN becomes null."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def json_response(content: Any, status: int = 200) -> Response:
    """``content`` as Flask answers it."""
    return Response(dumps(content), status, mimetype=JSON)


def error_headers(err: ServingError) -> list[tuple[str, str]]:
    """The headers that an error adds to its answer."""
    return [("Retry-After", str(err.retry_after_s))] if err.retry_after_s is not None else []
