"""JSON payloads, for every route that takes them."""

from __future__ import annotations

import json
from typing import Any

import orjson
from flask import request

from serving.answers import JSON
from serving.errors import InvalidInput, UnsupportedMediaType

# JSON as callers write its type; what else it may be called, Flask makes out.
JSON_TYPES = frozenset(
    {"", JSON, *(f"{JSON};{space}charset={name}" for space in ("", " ") for name in ("utf-8", "UTF-8"))}
)


def check_media(also: str | None = None) -> None:
    """Raises `UnsupportedMediaType` unless Flask's request says that its body is plain JSON, ``also``, or nothing."""
    kind = request.mimetype
    if kind and kind not in (JSON, also) and not kind.endswith("+json"):
        raise UnsupportedMediaType(f"the body's type is {kind[:80]}; send Content-Type: application/json")
    if request.content_encoding:
        raise UnsupportedMediaType(f"the body is encoded ({request.content_encoding[:40]}); send it as plain JSON")


def parsed(data: bytes) -> Any:
    """What stands in ``data``. Raises `InvalidInput`."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as err:
        return _lenient(data, err)


def _lenient(data: bytes, err: orjson.JSONDecodeError) -> Any:
    """Many clients write NaN and Infinity, which JSON does not have: read them, so that row and column are named."""
    try:
        body = json.loads(data)
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is read, but no answer could name it
        return body
    except (ValueError, RecursionError):
        raise InvalidInput(f"the body is not JSON: {err.msg} (line {err.lineno}, column {err.colno})") from None
