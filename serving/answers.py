"""JSON answers, for every protocol."""

from __future__ import annotations

from typing import Any

import orjson
from flask import Response


def json_response(content: dict[str, Any], status: int = 200) -> Response:
    """``content`` as a JSON answer; NumPy arrays may stand in it, NaN becomes null."""
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS),
        status,
        mimetype="application/json",
    )
