"""JSON answers, for every protocol."""

from __future__ import annotations

from typing import Any

import orjson
from flask import Response

JSON = "application/json"


def dumps(content: Any) -> bytes:
    """``content`` as JSON; NumPy arrays may stand in it, NaN becomes null."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def json_response(content: dict[str, Any], status: int = 200) -> Response:
    """``content`` as Flask answers it."""
    return Response(dumps(content), status, mimetype=JSON)
